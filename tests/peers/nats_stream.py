"""Does as it is told, one line of JSON after the other, with nats-py: makes streams and reads what is in them."""

import asyncio
import base64
import json
import sys

import nats
from nats.js.errors import NotFoundError


async def do(js, job):
    what = job.pop("do")
    if what == "create":
        await js.add_stream(**job)
        return {}
    if what == "update":
        await js.update_stream(**job)
        return {}
    info = await js.stream_info(job["stream"])
    if what == "count":
        return {"count": info.state.messages}
    messages = []
    if info.state.messages:
        reader = await js.subscribe("hooks.>", stream=job["stream"], ordered_consumer=True)
        for _ in range(info.state.messages):
            message = await reader.next_msg(timeout=20)
            messages.append({
                "subject": message.subject,
                "headers": message.headers or {},
                "data": base64.b64encode(message.data).decode(),
            })
        await reader.unsubscribe()
    return {"messages": messages}


async def main():
    options = json.loads(sys.argv[1])

    async def quiet(_):
        pass

    client = await nats.connect(
        reconnect_time_wait=0.05, max_reconnect_attempts=-1, error_cb=quiet, ping_interval=1, **options
    )
    js = client.jetstream(timeout=5)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        job = json.loads(line)
        # A server that has just come back may not have its streams yet.
        for attempt in range(40):
            try:
                answer = await do(js, dict(job))
                break
            except NotFoundError:
                raise
            except (nats.errors.Error, OSError) as error:
                answer = {"error": repr(error)}
                await asyncio.sleep(0.1)
        print(json.dumps(answer), flush=True)


asyncio.run(main())
