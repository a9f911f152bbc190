"""Signs webhooks with the providers' own libraries and posts them, as the providers would.

One job a line on standard input, one answer a line on standard output, both JSON. `sign` and `send` are base64: what
the signature is made over and what is sent, which differ where a test changes a body on its way.
"""

import base64
import http.client
import json
import sys
import urllib.parse
from datetime import datetime, timezone


def stripe(job, body):
    from stripe import WebhookSignature

    header = WebhookSignature.generate_signature_header(body.decode(), job["secret"], job["time"])
    return {"Stripe-Signature": header}


def slack(job, body):
    from slack_sdk.signature import SignatureVerifier

    time = str(job["time"])
    signature = SignatureVerifier(job["secret"]).generate_signature(timestamp=time, body=body)
    return {"X-Slack-Request-Timestamp": time, "X-Slack-Signature": signature}


def standard_webhooks(job, body):
    from standardwebhooks import Webhook

    time = datetime.fromtimestamp(job["time"], timezone.utc)
    signature = Webhook(job["secret"]).sign(msg_id=job["id"], timestamp=time, data=body.decode())
    return {"webhook-id": job["id"], "webhook-timestamp": str(job["time"]), "webhook-signature": signature}


def discord(job, body):
    # Discord publishes no signer; its verifier is built on this library.
    from nacl.signing import SigningKey

    time = str(job["time"])
    signature = SigningKey(bytes.fromhex(job["secret"])).sign(time.encode() + body).signature.hex()
    return {"X-Signature-Timestamp": time, "X-Signature-Ed25519": signature}


PROVIDERS = {"stripe": stripe, "slack": slack, "standard-webhooks": standard_webhooks, "discord": discord}


def post(url, headers, body):
    url = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=30)
    try:
        connection.request("POST", url.path, body, headers)
        answer = connection.getresponse()
        return {"status": answer.status, "body": answer.read().decode("utf-8", "replace")}
    finally:
        connection.close()


for line in sys.stdin:
    job = json.loads(line)
    proof = PROVIDERS[job["provider"]](job, base64.b64decode(job["sign"]))
    answer = post(job["url"], {**job["headers"], **proof}, base64.b64decode(job["send"]))
    print(json.dumps(answer), flush=True)
