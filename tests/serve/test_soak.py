"""Clients that stop half-way and disks that are full: memory and connections stay bounded, and others are served."""

import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import time

import pytest
import requests
from pictures import encoded, picture, write
from served import running_server

from benchmarks.server_soak import held, soak

REQUESTS = int(os.environ.get("MUM_SOAK_REQUESTS", "600"))
"""Of mixed sizes and kinds, while memory is watched."""


@pytest.fixture(scope="module")
def impatient(exported, tmp_path_factory):
    """A server that gives clients two seconds, and 30 MB."""
    overrides = ["serve.body_seconds=2", "serve.answer_seconds=2", "serve.max_held_bytes=30000000"]
    with running_server(exported, tmp_path_factory.mktemp("impatient") / "log", *overrides) as server:
        yield server


def open_files(server):
    return held(server.process.pid)["open_files"]


def is_served(server):
    """Whether an ordinary request is answered."""
    url = f"{server.url}/v2/models/mum/images?size=32"
    return requests.post(url, data=encoded(picture(32, 32)), timeout=10).status_code == 200


def connected(server, data):
    """A client that sends so much and nothing more."""
    connection = socket.create_connection(("127.0.0.1", server.http_port), timeout=20)
    connection.sendall(data)
    return connection


def is_closed(connection):
    """Whether the server has hung up, once all that it sent has been read."""
    with contextlib.suppress(ConnectionResetError):
        while connection.recv(1 << 16):
            pass
    return True


HALF_OPEN = {
    "nothing": b"",
    "half a line": b"POST /v2/mod",
    "half a head": b"POST /v2/models/mum/images HTTP/1.1\r\nHost: a\r\nX-A: ",
    "half a body": b"POST /v2/models/mum/images HTTP/1.1\r\nHost: a\r\nContent-Length: 900\r\n\r\ndrip",
    "half a second request": b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\nGET /v2",
}


@pytest.mark.parametrize("kind", HALF_OPEN)
def test_half_open_connections_are_closed(impatient, kind):
    before = open_files(impatient)
    connections = [connected(impatient, HALF_OPEN[kind]) for _ in range(50)]
    assert is_served(impatient)
    assert all(map(is_closed, connections))
    assert open_files(impatient) <= before + 2


def test_more_connections_than_the_process_may_open(exported, tmp_path):
    """The server runs out of them, and is back as soon as the silent ones are closed."""
    allowed = 128
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, limits[1]))
    try:
        server_of_few = running_server(exported, tmp_path / "log", "serve.body_seconds=2")
        server = server_of_few.__enter__()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    try:
        connections = [connected(server, b"POST /") for _ in range(2 * allowed)]
        time.sleep(5)
        assert is_served(server)
        assert server.stop() == 0
        for connection in connections:
            connection.close()
    finally:
        server_of_few.__exit__(None, None, None)


WANTS_MUCH = (
    b"POST /v2/models/mum/images?size=512&outputs=patch_tokens HTTP/1.1\r\n"
    b"Host: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
)
"""An answer of 4096 tokens of 64 numbers in JSON."""


def test_answers_that_nobody_takes_are_dropped(impatient):
    """Meanwhile there is room for so many of them only, and probes are answered."""
    photo = encoded(picture(64, 64))
    connections = []
    before = open_files(impatient)
    for _ in range(30):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", impatient.http_port))
        connection.sendall(WANTS_MUCH % (len(photo), photo))
        connections.append(connection)
    end = time.monotonic() + 60
    while open_files(impatient) > before and time.monotonic() < end:
        assert requests.get(f"{impatient.url}/v2/health/live", timeout=5).ok
        time.sleep(0.1)
    assert open_files(impatient) <= before
    assert is_served(impatient)
    lines = [json.loads(line) for line in impatient.log.read_text().splitlines()]
    assert {line["status"] for line in lines if line["message"] == "request"} <= {200, 400, 408, 503}
    for connection in connections:
        connection.close()


def test_a_slow_client_that_goes_on_reading_gets_all(impatient):
    photo = encoded(picture(64, 64))
    connection = connected(impatient, WANTS_MUCH.replace(b"512", b"128") % (len(photo), photo))
    received = b""
    while b'"patch_tokens"' not in received or not received.endswith(b"}]}"):
        part = connection.recv(1 << 14)
        assert part, "cut off"
        received += part
        time.sleep(0.01)
    connection.close()


def test_memory_is_flat(impatient):
    """Requests of many sizes and kinds, bad ones among them; `benchmarks/server_soak.py` sends 10,000."""
    rows = soak(impatient.url, impatient.process.pid, REQUESTS, stops=6)
    assert {status for row in rows for status in row["statuses"]} <= {"200", "400"}
    assert rows[-1]["megabytes"] < 1.1 * rows[1]["megabytes"] + 5
    assert rows[-1]["open_files"] <= rows[1]["open_files"] + 4


# A full disk. The servers of these tests cannot write a file at all (`served.py`), and answer.


@pytest.fixture
def full(tmp_path):
    """A volume that holds 40 kB, in a name space of its own: how to start a command there, and where it lies."""
    volume = tmp_path / "volume"
    volume.mkdir()
    mount = f"mount -t tmpfs -o size=40k none {volume}"
    small = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*small, mount], check=False).returncode:
        pytest.skip("no name spaces for users on this machine")
    # What is left there when the command ends is listed behind what it says.
    return [*small, f'{mount} && "$@"; echo "status $?"; ls -A {volume}', "sh", sys.executable, "-m", "mum_model.cli"]


def run(command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.mark.parametrize("name", ["features.npz", "features.parquet"])
def test_embed_on_a_full_disk(exported, tmp_path, full, name):
    for i in range(4):
        write(tmp_path / "photos" / f"{i}.png", picture(96, 96, i))
    output = tmp_path / "volume" / name
    done = run([*full, "embed", str(tmp_path / "photos"), f"--model={exported}", f"--output={output}"])
    assert done.stdout.splitlines()[-1] == "status 2"
    assert f"mum: {output}: cannot be written, No space left on device; make room there or choose" in done.stderr


def test_export_on_a_full_disk(encoder, tmp_path, full):
    overrides = ["export.checks=[[1,64,64]]", "export.latency.runs=1", "machine.threads=1"]
    target = tmp_path / "volume" / "export"
    done = run([*full, "export", f"paths.run={encoder[1]}", f"paths.export={target}", *overrides])
    assert done.stdout.splitlines()[-1] == "status 2"
    assert "No space left on device; look at the volume, its space and its owner" in done.stderr
