"""The server beside bare ONNX Runtime, in turns, and under load: `python benchmarks/server_load.py EXPORT`.

A real `mum serve` on one thread of inference; clients are threads of this process over gRPC with binary tensors.
Measured: seconds from start to ready; images a second of bare ONNX Runtime and through the server, window by window in
turns, on the same batches; latency at 70 % of the server's rate, with even and with random (Poisson) arrivals; memory
over many requests.
"""

import argparse
import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import requests
import tritonclient.grpc as grpc_client

from benchmarks.onnx_latency import machine
from mum_model.serve.encoder import OnnxEncoder

CLIENTS = 3


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A server process."""

    def __init__(self, export: Path):
        """Start it and wait until it is ready; `seconds_to_ready` says how long that took."""
        self.http_port, self.grpc_port = free_port(), free_port()
        settings = {"paths.export": export, "serve.http_port": self.http_port, "serve.grpc_port": self.grpc_port}
        overrides = [f"{name}={value}" for name, value in settings.items()]
        start = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mum_model.cli", "serve", *overrides, "machine.threads=1", "serve.linger_seconds=0"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while not self._is_ready():
            time.sleep(0.05)
        self.seconds_to_ready = time.perf_counter() - start

    def _is_ready(self) -> bool:
        try:
            return requests.get(f"http://127.0.0.1:{self.http_port}/v2/health/ready", timeout=5).ok
        except requests.ConnectionError:
            return False

    @property
    def megabytes(self) -> float:
        """Resident memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) / 1024

    def client(self) -> Callable[[np.ndarray], object]:
        """A connection of its own: sends images, waits for their CLS."""
        connection = grpc_client.InferenceServerClient(f"127.0.0.1:{self.grpc_port}")

        def infer(images: np.ndarray) -> object:
            given = grpc_client.InferInput("images", list(images.shape), "FP32")
            given.set_data_from_numpy(images)
            return connection.infer("mum", [given], outputs=[grpc_client.InferRequestedOutput("cls")]).as_numpy("cls")

        return infer


def rate(callers: list[Callable[[np.ndarray], object]], images: np.ndarray, seconds: float) -> float:
    """Images a second while every caller asks again as soon as it has its answer."""
    end = time.perf_counter() + seconds
    counts = [0] * len(callers)

    def ask(i: int) -> None:
        while time.perf_counter() < end:
            callers[i](images)
            counts[i] += len(images)

    start = time.perf_counter()
    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(callers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - start)


def throughput(bare: OnnxEncoder, server: Server, images: np.ndarray, windows: int, seconds: float) -> dict[str, Any]:
    """Bare and served, window by window in turns."""
    clients = [server.client() for _ in range(CLIENTS)]
    rates = [
        (rate([lambda given: bare(given, ["cls"])], images, seconds), rate(clients, images, seconds))
        for _ in range(windows)
    ]
    ratios = [served / alone for alone, served in rates]
    return {
        "images": list(images.shape),
        "bare_images_per_second": round(median(alone for alone, _ in rates), 1),
        "served_images_per_second": round(median(served for _, served in rates), 1),
        "served_over_bare": {"median": round(median(ratios), 3), "all": [round(ratio, 3) for ratio in ratios]},
    }


def latency(
    server: Server, image: np.ndarray, gap: Callable[[float], float], load: float, requests_sent: int
) -> dict[str, Any]:
    """Requests of one image at a share of the rate that the server reaches; from when one was due to its answer."""
    full = rate([server.client() for _ in range(CLIENTS)], image, 5)
    seconds, clients = [], threading.local()

    def ask(arrival: float) -> None:
        if not hasattr(clients, "infer"):
            clients.infer = server.client()
        clients.infer(image)
        seconds.append(time.perf_counter() - arrival)

    with ThreadPoolExecutor(32) as executor:
        due = time.perf_counter()
        for _ in range(requests_sent):
            due += gap(load * full)
            time.sleep(max(0.0, due - time.perf_counter()))
            executor.submit(ask, due)
    p50, p99 = (round(1000 * float(np.quantile(seconds, share)), 1) for share in (0.5, 0.99))
    return {
        "load": load,
        "full_images_per_second": round(full, 1),
        "requests": len(seconds),
        "p50_ms": p50,
        "p99_ms": p99,
        "p99_over_p50": round(p99 / p50, 2),
    }


def memory(server: Server, image: np.ndarray, requests_sent: int) -> dict[str, Any]:
    """Of the server before, and after each tenth of many requests."""
    client = server.client()
    megabytes = [server.megabytes]
    for _ in range(10):
        for _ in range(requests_sent // 10):
            client(image)
        megabytes.append(server.megabytes)
    return {"requests": requests_sent, "megabytes": [round(one, 1) for one in megabytes]}


def main() -> None:
    """Measure and print; `--output` keeps it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path, help="folder that `mum export` wrote, of float32 input")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--windows", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=2.5)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/server_load.json"))
    given = parser.parse_args()
    images = np.random.default_rng(0).normal(size=(8, 3, given.side, given.side)).astype(np.float32)
    small = np.ascontiguousarray(images[:1, :, :64, :64])
    server = Server(given.export)
    try:
        result = {
            "machine": machine(),
            "megabytes_of_graph": round((given.export / "encoder.onnx").stat().st_size / 1e6, 1),
            "seconds_to_ready": round(server.seconds_to_ready, 1),
            "throughput": throughput(
                OnnxEncoder(given.export, threads=1), server, images, given.windows, given.seconds
            ),
            "latency": {
                "even arrivals": latency(server, images[:1], lambda rate: 1 / rate, 0.7, 200),
                "random arrivals": latency(server, images[:1], random.Random(0).expovariate, 0.7, 200),
            },
            "memory": memory(server, small, given.requests),
        }
    finally:
        server.process.terminate()
        server.process.wait(30)
    given.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
