"""Takes messages off a broker with its own client library and prints each as one line of JSON.

consume.py amqp URL QUEUE            from a queue, acknowledged one by one
consume.py nats URL STREAM SUBJECT   makes the stream (file storage), says "ready", then reads it from its beginning
consume.py stream URL STREAM         from a Redis Stream, from its beginning

Bodies are base64. It runs until it is killed, and through restarts of the broker.
"""

import asyncio
import base64
import json
import sys
import time


def tell(**message):
    print(json.dumps(message, default=str), flush=True)


def text(value):
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value


def amqp(url, queue):
    import pika

    while True:
        try:
            with pika.BlockingConnection(pika.URLParameters(url)) as connection:
                channel = connection.channel()
                for method, properties, body in channel.consume(queue):
                    known = ("content_type", "content_encoding", "delivery_mode", "priority", "correlation_id", "reply_to")
                    known += ("expiration", "message_id", "timestamp", "type", "app_id")
                    tell(
                        body=base64.b64encode(body).decode(),
                        headers=properties.headers or {},
                        properties={name: getattr(properties, name) for name in known},
                        exchange=method.exchange,
                        routing_key=method.routing_key,
                        redelivered=method.redelivered,
                    )
                    channel.basic_ack(method.delivery_tag)
        except pika.exceptions.AMQPError:
            time.sleep(0.2)


async def nats(url, stream, subject):
    import nats as library
    from nats.js.api import ConsumerConfig, DeliverPolicy, StorageType, StreamConfig

    connection = await library.connect(url, max_reconnect_attempts=-1, reconnect_time_wait=0.2)
    jetstream = connection.jetstream()
    await jetstream.add_stream(StreamConfig(name=stream, subjects=[subject], storage=StorageType.FILE))
    tell(ready=True)
    config = ConsumerConfig(deliver_policy=DeliverPolicy.ALL, ack_wait=300)
    subscription = await jetstream.pull_subscribe(subject, durable="reader", stream=stream, config=config)
    while True:
        try:
            for message in await subscription.fetch(100, timeout=1):
                metadata = message.metadata
                tell(
                    body=base64.b64encode(message.data).decode(),
                    headers=dict(message.headers or {}),
                    subject=message.subject,
                    sequence=metadata.sequence.stream,
                )
                await message.ack()
        except library.errors.Error:
            await asyncio.sleep(0.1)


def stream(url, name):
    import redis as library

    client, last = library.Redis.from_url(url), "0"
    while True:
        try:
            for _, entries in client.xread({name: last}, count=100, block=1000) or []:
                for last, fields in entries:
                    data = base64.b64encode(fields.pop(b"data", b"")).decode()
                    tell(id=text(last), body=data, fields={text(key): text(value) for key, value in fields.items()})
        except library.exceptions.RedisError:
            time.sleep(0.2)


kind, *arguments = sys.argv[1:]
if kind == "nats":
    asyncio.run(nats(*arguments))
else:
    {"amqp": amqp, "stream": stream}[kind](*arguments)
