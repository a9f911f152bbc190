"""From start to the first answer, with so many sources; the median of ten."""
import http.client, json, statistics, subprocess, sys, time
from common import BINARY, Gateway, machine

SOURCES = int(sys.argv[1]) if len(sys.argv) > 1 else 1000


def takes_any_secret(preset):
    """HMAC over a template, the secret as text: what most presets are."""
    if not preset["scheme"].startswith("hmac") or preset["needs"] != ["secrets"]:
        return False
    shown = subprocess.run([BINARY, "providers", "show", preset["preset"], "--json"], capture_output=True, check=True)
    return "\nkey = " not in json.loads(shown.stdout)["preset_file"]


listed = json.loads(subprocess.run([BINARY, "providers", "--json"], capture_output=True, check=True).stdout)
PRESETS = [preset["preset"] for preset in listed if takes_any_secret(preset)]
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
provider = "{PRESETS[number % len(PRESETS)]}"
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
print(f"{SOURCES} sources of {len(PRESETS)} presets: ready after {statistics.median(times) * 1000:.0f} ms (median of {len(times)}, {min(times) * 1000:.0f} to {max(times) * 1000:.0f})")
