"""Memory of idle TLS connections: PSS of the gateway before and with so many of them open, each after one request."""
import socket, ssl, sys, time
from common import Gateway, machine, raise_files

COUNT = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
CONFIGURATION = """
[listeners.public]
address = "127.0.0.1:0"
tls.certificate = "certs/server.pem"
tls.private_key = "certs/server.key"
[limits]
max_connections = 50000
max_connections_per_client = 50000
idle_timeout = "30m"
[log]
audit = "off"
[upstreams.app]
urls = ["http://127.0.0.1:9"]
[sources.github]
path = "/github"
provider = "github"
secrets = [{ value = "0123456789abcdef" }]
upstream = "app"
"""

raise_files()
gateway = Gateway(CONFIGURATION)
try:
    address = gateway.address("public")
    context = ssl.create_default_context(cafile=gateway.folder + "/certs/ca.pem")

    def connect():
        stream = context.wrap_socket(socket.create_connection(address), server_hostname="localhost")
        stream.sendall(b"POST /nobody HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")
        head = stream.recv(4096)
        assert head.startswith(b"HTTP/1.1 404"), head
        return stream

    warm = [connect() for _ in range(100)]
    before = gateway.pss()
    idle = [connect() for _ in range(COUNT)]
    time.sleep(1)
    after = gateway.pss()
    print(f"{machine()}")
    print(f"at rest {before / 2**20:.1f} MiB; {COUNT} idle TLS 1.3 connections: {(after - before) / COUNT / 1024:.1f} KiB each")
finally:
    gateway.close()
