"""Instructions that the gateway itself executes for one request, all of its threads together, under callgrind.

One process is asked few requests and another many; what the many took more is theirs, without start and end. One
connection that is kept alive, one request after the other, each unique and of the same size, so that every run asks the
same. The upstream answers from here.
"""

import hashlib
import hmac
import os
import pathlib
import re
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time

SECRET = b"0123456789abcdef"
FEW, MANY = 200, 1200
START_WITHIN = 60

GATEWAY = """
[listeners.plain]
address = "127.0.0.1:0"
[listeners.tls]
address = "127.0.0.1:0"
tls.certificate = "certs/server.pem"
tls.private_key = "certs/server.key"
[limits]
failed_auth = {{ rate = "1000000/s", burst = 1000000 }}
[log]
level = "info"
audit = "audit.log"
[upstreams.app]
urls = ["http://127.0.0.1:{upstream}"]
[sources.github]
path = "/github"
provider = "github"
secrets = [{{ value = "{secret}" }}]
upstream = "app"
rate_limit = {{ rate = "1000000/s", burst = 1000000 }}
"""

CASES = {
    "whole: HMAC checked, forwarded": ("plain", 200),
    "whole: HMAC checked, forwarded, TLS 1.3": ("tls", 200),
    "whole: forged, refused": ("plain", 401),
}


def upstream():
    """Answers whatever comes; requests are told by their lengths alone."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection):
        file = connection.makefile("rb")
        while True:
            length = 0
            while (line := file.readline()) not in (b"\r\n", b""):
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            if not line:
                return
            file.read(length)
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    def accept():
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener.getsockname()[1]


def address(log, process, listener):
    until = time.monotonic() + START_WITHIN
    while time.monotonic() < until:
        found = re.search(rf"listening listener=\"?{listener}\"? address=[0-9.]+:(\d+)", log.read_text())
        if found:
            return int(found[1])
        if process.poll() is not None:
            break
        time.sleep(0.01)
    raise SystemExit(f"the gateway did not start under valgrind:\n{log.read_text()}")


def request(number, forged):
    body = b"%016d" % number + b"x" * 1008
    signature = hmac.new(b"forged" if forged else SECRET, body, hashlib.sha256).hexdigest()
    head = (
        "POST /github HTTP/1.1\r\nhost: hooks.example.com\r\ncontent-type: application/json\r\n"
        f"user-agent: GitHub-Hookshot/044aadd\r\nx-github-event: push\r\nx-github-delivery: {number:036d}\r\n"
        f"x-hub-signature-256: sha256={signature}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def ask(port, is_tls, times, expected):
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if is_tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = context.wrap_socket(connection)
    file = connection.makefile("rb")
    for number in range(times):
        connection.sendall(request(number, expected != 200))
        status = int(file.readline().split()[1])
        if status != expected:
            raise SystemExit(f"answered with {status} where {expected} was expected")
        length = 0
        while (line := file.readline()) != b"\r\n":
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        file.read(length)
    connection.close()


def profile(hookward, listener, times, expected, read, *options):
    """What `read` makes of callgrind's file, of one gateway from its start to its end."""
    with tempfile.TemporaryDirectory(prefix="hookward-whole-") as name:
        folder = pathlib.Path(name)
        subprocess.run([hookward, "certs", folder / "certs"], check=True, stdout=subprocess.DEVNULL)
        text = GATEWAY.format(upstream=upstream(), secret=SECRET.decode())
        (folder / "gateway.toml").write_text(text)
        out = folder / "out"
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", *options, hookward, "run"]
        # As many threads as one processor gets, whatever the machine has.
        processor = min(os.sched_getaffinity(0))
        with open(folder / "log", "w") as log:
            process = subprocess.Popen(
                command, cwd=folder, stderr=log, preexec_fn=lambda: os.sched_setaffinity(0, {processor})
            )
        try:
            ask(address(folder / "log", process, listener), listener == "tls", times, expected)
            process.send_signal(signal.SIGTERM)
            process.wait(START_WITHIN)
        finally:
            process.kill()
            process.wait()
        return read(out)


def executed(out):
    return int(re.search(r"^(?:totals|summary): (\d+)", out.read_text(), re.M)[1])


def count(hookward, name):
    """Of one request."""
    listener, expected = CASES[name]
    few, many = (profile(hookward, listener, times, expected, executed) for times in (FEW, MANY))
    return round((many - few) / (MANY - FEW))
