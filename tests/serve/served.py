"""Starts and stops server processes in which torch and timm cannot be imported and no file can be written."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

PATCH = 8
DIM = 64

SERVE_WITHOUT_TORCH = """
import errno, os, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "timm"):
            raise ImportError(f"{name} must not be imported here")

def refuse_to_write(event, arguments):
    if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR) and not str(arguments[0]).startswith("/dev/"):
        raise OSError(errno.EROFS, "read-only file system", arguments[0])

sys.meta_path.insert(0, Refuse())
sys.addaudithook(refuse_to_write)
from mum_model.config import compose
from mum_model.serve import serve

serve(compose(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen
    log: Path
    http_port: int
    grpc_port: int
    seconds_to_ready: float

    @property
    def url(self):
        return f"http://127.0.0.1:{self.http_port}"

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def metric(server, line):
    page = requests.get(f"{server.url}/metrics", timeout=5).text
    return float(next(text.split()[-1] for text in page.splitlines() if text.startswith(line)))


def serve_command(exported, http_port, grpc_port, *overrides):
    return [
        sys.executable,
        "-c",
        SERVE_WITHOUT_TORCH,
        f"paths.export={exported}",
        f"serve.http_port={http_port}",
        f"serve.grpc_port={grpc_port}",
        "machine.threads=1",
        "serve.linger_seconds=0",
        *overrides,
    ]


@contextmanager
def running_server(exported, log, *overrides):
    http_port, grpc_port = free_port(), free_port()
    start = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            serve_command(exported, http_port, grpc_port, *overrides), stdout=file, stderr=file, env=dict(os.environ)
        )
    try:
        wait_until_ready(process, http_port, log)
        yield Server(process, log, http_port, grpc_port, time.monotonic() - start)
    finally:
        process.kill()
        process.wait()


def wait_until_ready(process, port, log):
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if requests.get(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5).json() == {"ready": True}:
                return
        except requests.ConnectionError:
            time.sleep(0.05)
    pytest.fail(f"the server did not get ready:\n{log.read_text()}")
