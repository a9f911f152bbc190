"""From start to the first answer, with so many sources; the median of ten."""
import http.client, statistics, sys, time
from common import Gateway, machine

SOURCES = int(sys.argv[1]) if len(sys.argv) > 1 else 500
CONFIGURATION = """
[listeners.public]
address = "127.0.0.1:0"
tls.certificate = "certs/server.pem"
tls.private_key = "certs/server.key"
[admin]
address = "127.0.0.1:0"
[upstreams.app]
urls = ["http://127.0.0.1:9"]
""" + "".join(f"""
[sources.s{number}]
path = "/s{number}"
provider = "{['github', 'stripe', 'slack', 'shopify'][number % 4]}"
secrets = [{{ value = "0123456789abcdef{number}" }}]
upstream = "app"
""" for number in range(SOURCES))

times = []
for _ in range(10):
    gateway = Gateway(CONFIGURATION)
    try:
        host, port = gateway.address("admin")
        while True:
            try:
                connection = http.client.HTTPConnection(host, port, timeout=5)
                connection.request("GET", "/readyz")
                if connection.getresponse().status == 200:
                    break
            except OSError:
                pass
            time.sleep(0.0005)
        times.append(time.monotonic() - gateway.started)
    finally:
        gateway.close()
print(f"{machine()}")
print(f"{SOURCES} sources: ready after {statistics.median(times) * 1000:.0f} ms (median of {len(times)}, {min(times) * 1000:.0f} to {max(times) * 1000:.0f})")
