"""The application of an unmodified Celery worker, whose tasks write down what they were given.

One line of JSON a task in the file RECORD. BROKER is its URL; SETTINGS is a JSON object of further Celery settings.
"""

import json
import os

from celery import Celery

app = Celery("hooks", broker=os.environ["BROKER"])
app.conf.update(
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
    worker_send_task_events=False,
    **json.loads(os.environ.get("SETTINGS", "{}")),
)


def record(task, args, kwargs):
    request = task.request
    line = {
        "task": task.name,
        "id": request.id,
        "args": args,
        "kwargs": kwargs,
        "headers": request.headers,
        "traceparent": request.get("traceparent"),
        "correlation_id": request.correlation_id,
        "ignore_result": request.ignore_result,
        "argsrepr": request.argsrepr,
        "delivery_info": request.delivery_info,
        "redelivered": bool((request.delivery_info or {}).get("redelivered")),
    }
    # One write of one line: the pool's processes append to the same file.
    descriptor = os.open(os.environ["RECORD"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, (json.dumps(line, default=str) + "\n").encode())
    os.close(descriptor)


# Names of tasks may depend on the event: each that a test expects is listed in TASKS.
for name in os.environ.get("TASKS", "hooks.handle").split(","):

    @app.task(name=name, bind=True)
    def handle(self, *args, **kwargs):
        record(self, args, kwargs)
