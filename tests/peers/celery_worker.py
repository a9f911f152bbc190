# An ordinary Celery application: what its tasks got goes into a list, for the test to read.
import base64
import json
import os
import time

import redis
from celery import Celery

app = Celery("tasks", broker=os.environ["BROKER"])
app.conf.worker_prefetch_multiplier = 1
app.conf.broker_connection_retry_on_startup = True
if "KEY_PREFIX" in os.environ:
    app.conf.broker_transport_options = {"global_keyprefix": os.environ["KEY_PREFIX"]}
results = redis.Redis.from_url(os.environ["RESULTS"])


def data_of(event, raw):
    """What `data` is, after a comparison with the raw bytes."""
    if "data" not in event:
        return "none"
    data = event["data"]
    if isinstance(data, str) and data.encode("utf-8", "surrogatepass") == raw:
        return "text"
    return "json" if repr(data) == repr(json.loads(raw)) else "wrong"


def ran(task, event):
    raw = base64.b64decode(event["data_base64"], validate=True)
    request = task.request
    results.rpush("ran", json.dumps({
        "task": task.name,
        "id": request.id,
        "at": time.time(),
        "traceparent": request.get("traceparent"),
        "header": request.headers.get("traceparent"),
        "argsrepr": request.argsrepr,
        "ignore_result": request.ignore_result,
        "data": data_of(event, raw),
        "body": raw.hex(),
        "event": {name: event[name] for name in event if name not in ("data", "data_base64")},
    }))


@app.task(name="hooks.handle", bind=True)
def handle(self, event):
    ran(self, event)


@app.task(name="hooks.push", bind=True)
def push(self, event):
    ran(self, event)


@app.task(name="hooks.issues.opened", bind=True)
def opened(self, event):
    ran(self, event)
