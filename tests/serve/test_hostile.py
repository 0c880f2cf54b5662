"""What nobody should send, drawn from the server's own schema and by hand: never a crash, never a 5xx.

Many more of them: `MUM_HOSTILE_REQUESTS=10000 pytest tests/serve/test_hostile.py`.
"""

import json
import os
import random
import socket
import struct
import time

import numpy as np
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from pictures import animation, bomb, encoded, picture

REQUESTS = int(os.environ.get("MUM_HOSTILE_REQUESTS", "400"))
"""Of the hand-made kind."""

EXAMPLES = REQUESTS // 50
"""By the schema, of each operation."""


def test_no_request_of_the_schema_breaks_it(server):
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [operation.ok() for operation in schema.get_all_operations()]
    paths = {operation.path for operation in operations}
    assert paths >= {"/v2/models/{model_name}/images", "/v2/models/{model_name}/reconstruct"}
    for operation in operations:

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def answers(case):
            answer = case.call(timeout=20)
            assert answer.status_code < 500, (case.method, case.path, answer.text)

        answers()


def hostile_requests(seed):
    """Method, path, headers and body of requests without end."""
    generator = random.Random(seed)
    tensor = {"name": "images", "shape": [1, 3, 16, 16], "datatype": "FP32", "data": [0.0] * 768}
    odd = [None, -1, 0, 1 << 70, 1e400, "", "a" * 9999, [], {}, True, [[]], "\ud800", {"a": [None]}]
    photos = [encoded(picture(24, 24), kind) for kind in ("JPEG", "PNG", "WEBP", "TIFF", "BMP")] + [animation(), bomb()]

    def bytes_of(photo):
        place = generator.randrange(len(photo))
        damage = generator.randbytes(generator.randrange(1, 9))
        return generator.choice([photo[:place], photo[:place] + damage + photo[place:], damage + photo, damage])

    def form_of(files):
        parts = [b"--x\r\nContent-Disposition: form-data; name=f; filename=a\r\n\r\n" + file for file in files]
        return b"\r\n".join([*parts, b"--x--"])

    def form_type():
        return {"content-type": f"multipart/form-data; boundary={generator.choice(['x', '', 'x' * 500])}"}

    while True:
        field = generator.choice([*tensor, "inputs", "outputs", "id", "parameters"])
        value = generator.choice(odd)
        inputs = [{**tensor, field: value}] if field in tensor else [tensor]
        request = {"inputs": inputs} if field in tensor else {"inputs": inputs, field: value}
        body = json.dumps(request).encode()
        yield "POST", "/v2/models/mum/infer", {"content-type": "application/json"}, body
        yield "POST", "/v2/models/mum/infer", {"content-type": "application/json"}, bytes_of(body)
        length = generator.choice(["0", "-1", "9" * 30, "x", str(len(body)), str(generator.randrange(len(body)))])
        binary = {"content-type": "application/octet-stream", "inference-header-content-length": length}
        yield "POST", "/v2/models/mum/infer", binary, bytes_of(body)
        query = generator.choice(
            ["", "?size=16", "?size=1e9", "?size=full", "?outputs=,", "?outputs=%00", "?size=16384"]
        )
        yield "POST", f"/v2/models/mum/images{query}", {}, bytes_of(generator.choice(photos))
        yield "POST", "/v2/models/mum/images", form_type(), bytes_of(form_of([generator.choice(photos)]))
        scene = form_of(generator.choices(photos, k=generator.randrange(1, 4)))
        query = generator.choice(
            ["", "?size=8", "?size=64&mask_ratio=1e-9", "?mask_ratio=nan", "?seed=-1", "?size=16384"]
        )
        yield "POST", f"/v2/models/mum/reconstruct{query}", form_type(), generator.choice([scene, bytes_of(scene)])
        path = generator.choice(
            ["/v2/models/%2e%2e", "/v2/models/mum:x/infer", "/v2/models//versions//infer", "/%ff", "/page/.."]
        )
        yield generator.choice(["GET", "POST", "PUT", "DELETE", "HEAD"]), path, {}, b""


def test_hand_made_hostility(server):
    with requests.Session() as session:
        for (method, path, headers, body), _ in zip(hostile_requests(seed=0), range(REQUESTS), strict=False):
            answer = session.request(method, server.url + path, headers=headers, data=body, timeout=20)
            assert answer.status_code < 500, (method, path, headers, body[:300], answer.text)
    assert requests.get(f"{server.url}/v2/health/ready", timeout=5).status_code == 200
    assert server.process.poll() is None


def test_half_open_and_slow_connections_hold_nobody_up(server):
    """A hundred connections that say nothing more, and one that drips: others are answered as ever."""
    connections = [socket.create_connection(("127.0.0.1", server.http_port)) for _ in range(100)]
    try:
        for i, connection in enumerate(connections):
            header = b"POST /v2/models/mum/images HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n"
            connection.sendall(header[: 10 + i] if i % 2 else header + b"drip")
        start = time.monotonic()
        answer = requests.post(f"{server.url}/v2/models/mum/images?size=32", data=encoded(picture(32, 32)), timeout=10)
        assert answer.status_code == 200
        assert time.monotonic() - start < 10
    finally:
        for connection in connections:
            # Closed with a reset, as by a client that lost its network.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()


def test_tensors_of_extreme_numbers(server):
    """Not finite in, refused; finite but enormous in, an answer or a refusal."""
    for value in (3e38, -3e38, 1e-45):
        tensor = {"name": "images", "shape": [1, 3, 16, 16], "datatype": "FP32", "data": [value] * 768}
        answer = requests.post(f"{server.url}/v2/models/mum/infer", json={"inputs": [tensor]}, timeout=20)
        assert answer.status_code == 200, answer.text
        assert np.shape(answer.json()["outputs"][0]["data"])
