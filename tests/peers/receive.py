"""Stands behind the gateway and verifies every delivery again with the providers' own libraries.

The argument is a JSON object from provider to secret; /PROVIDER answers 200 to what its library accepts and 400 to
what it refuses. The port it listens on is the first line of standard output.
"""

import contextlib
import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECRETS = json.loads(sys.argv[1])


def github(secret, headers, body):
    from gidgethub.sansio import Event

    event = Event.from_http(headers, body, secret=secret)
    assert event.event and event.delivery_id


def stripe(secret, headers, body):
    from stripe import Webhook

    event = Webhook.construct_event(body, headers["stripe-signature"], secret)
    assert event.object == "event"


def slack(secret, headers, body):
    from slack_sdk.signature import SignatureVerifier

    assert SignatureVerifier(secret).is_valid_request(body, headers)


def standard_webhooks(secret, headers, body):
    from standardwebhooks import Webhook

    Webhook(secret).verify(body, headers, json_parse=False)


def discord(public_key, headers, body):
    from discord_interactions import verify_key

    assert verify_key(body, headers["x-signature-ed25519"], headers["x-signature-timestamp"], public_key)


PROVIDERS = {
    "github": github,
    "stripe": stripe,
    "slack": slack,
    "standard-webhooks": standard_webhooks,
    "discord": discord,
}


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        provider = self.path.strip("/")
        try:
            PROVIDERS[provider](SECRETS[provider], headers, body)
            status, answer = 200, f"verified by {provider} (python)"
        except Exception as refused:
            status, answer = 400, f"refused by {provider} (python): {refused!r}"
        answer = answer.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
print(server.server_address[1], flush=True)
# Some libraries print what they refuse, and nobody reads it.
with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
    server.serve_forever()
