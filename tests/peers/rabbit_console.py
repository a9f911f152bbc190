# What a test wants of RabbitMQ, one JSON object a line, by pika: queues are made and emptied, messages read whole.
import json
import sys

import pika

channel = None


def plain(value):
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, dict):
        return {name: plain(entry) for name, entry in value.items()}
    return value


def do(asked):
    global channel
    what, queue = asked["do"], asked.get("queue")
    if what == "connect":
        channel = pika.BlockingConnection(pika.URLParameters(asked["url"])).channel()
    elif what == "declare":
        channel.queue_declare(queue, durable=True, arguments=asked.get("arguments"))
    elif what == "exchange":
        channel.exchange_declare(asked["exchange"], asked["kind"], durable=True)
        channel.queue_bind(queue, asked["exchange"], asked["key"])
    elif what == "count":
        return channel.queue_declare(queue, passive=True).method.message_count
    elif what == "take":
        taken = []
        while True:
            method, properties, body = channel.basic_get(queue, auto_ack=True)
            if method is None:
                return taken
            kept = {name: plain(value) for name, value in vars(properties).items()}
            taken.append({"exchange": method.exchange, "key": method.routing_key, "body": body.hex(), **kept})
    return None


for line in sys.stdin:
    print(json.dumps(do(json.loads(line))), flush=True)
