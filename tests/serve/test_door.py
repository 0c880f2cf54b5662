"""The door: bodies that are too large, too many, too slow or left half-way never reach the application."""

import asyncio
import json

import pytest

from mum_model.serve.door import Door


def body_of(*parts, end=True, delay=0.0):
    """An ASGI `receive` that gives a body in parts, and then nothing or a disconnect."""
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    messages.append({"type": "http.request", "body": b"", "more_body": False} if end else {"type": "http.disconnect"})
    waiting = iter(messages)

    async def receive():
        await asyncio.sleep(delay)
        return next(waiting)

    return receive


async def echo(scope, receive, send):
    message = await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["path"].encode() + b" " + message["body"]})


async def pass_through(door, receive, path="/v2/models/a/infer", headers=()):
    sent = []

    async def send(message):
        sent.append(message)

    await door({"type": "http", "method": "POST", "path": path, "headers": list(headers)}, receive, send)
    return sent[0]["status"], sent[1]["body"], dict(sent[0]["headers"])


def door(max_bytes=10, max_held_bytes=15, body_seconds=5):
    return Door(echo, max_bytes, max_held_bytes, body_seconds)


def one(door, receive, **request):
    return asyncio.run(pass_through(door, receive, **request))


def test_a_body_arrives_whole():
    status, body, headers = one(door(), body_of(b"abc", b"de"))
    assert (status, body) == (200, b"/v2/models/a/infer abcde")
    assert len(headers[b"x-request-id"]) == 32


def test_a_version_is_a_model_of_its_own():
    _, body, _ = one(door(), body_of(), path="/v2/models/a/versions/3/infer")
    assert body == b"/v2/models/a:3/infer "


@pytest.mark.parametrize(
    ("receive", "headers", "expected"),
    [
        (body_of(b"x" * 6, b"x" * 6), [], (413, "more than 10 bytes")),
        (body_of(), [(b"content-length", b"11")], (413, "got 11 bytes")),
        (body_of(), [(b"content-length", b"-1")], (413, "got -1 bytes")),
        (body_of(b"abc", end=False), [], (400, "the client went away")),
    ],
)
def test_refused_before_the_application(receive, headers, expected):
    status, body, answered = one(door(), receive, headers=headers)
    assert status == expected[0]
    assert expected[1] in json.loads(body)["error"]
    assert answered[b"connection"] == b"close"


def test_a_body_that_drips_is_given_up():
    status, body, _ = one(door(body_seconds=0.05), body_of(b"a", b"b", b"c", delay=0.04))
    assert status == 408
    assert b"within 0.05 s" in body


def test_memory_for_bodies_is_limited_and_given_back():
    async def scenario():
        narrow = door()
        crowd = [pass_through(narrow, body_of(b"x" * 8, delay=0.02)) for _ in range(3)]
        statuses = [status for status, _, _ in await asyncio.gather(*crowd)]
        return statuses, await pass_through(narrow, body_of(b"x" * 10))

    statuses, (after, _, _) = asyncio.run(scenario())
    assert sorted(statuses) == [200, 503, 503] or sorted(statuses) == [200, 200, 503]
    assert after == 200
