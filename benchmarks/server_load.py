"""The server beside bare ONNX Runtime, in turns, and under load: `python benchmarks/server_load.py EXPORT`.

A real `mum serve` on one thread of inference for each of `--batch-images`; clients are over gRPC with binary tensors
that are built once. Measured: seconds from start to ready; images a second of bare ONNX Runtime and through the server,
window by window in turns, on the same batches, with the share of the time in which the server computed and the
processor time of both; latency at a share of the server's rate, with even and with random (Poisson) arrivals, beside
bare ONNX Runtime that takes the same arrivals one after the other, and what a queue without any cost of its own would
give for them and bare times.
"""

import argparse
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
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

    def __init__(self, export: Path, batch_images: int):
        """Start it and wait until it is ready; `seconds_to_ready` says how long that took."""
        self.http_port, self.grpc_port = free_port(), free_port()
        settings = {"paths.export": export, "serve.http_port": self.http_port, "serve.grpc_port": self.grpc_port}
        settings |= {"serve.batch_images": batch_images, "machine.threads": 1, "serve.linger_seconds": 0}
        overrides = [f"{name}={value}" for name, value in settings.items()]
        start = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mum_model.cli", "serve", *overrides],
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
    def processor_seconds(self) -> float:
        """Of all cores, since the start."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def computing_seconds(self) -> float:
        """That ONNX Runtime ran, since the start."""
        page = requests.get(f"http://127.0.0.1:{self.http_port}/metrics", timeout=5).text
        name = 'mum_request_stage_seconds_sum{stage="infer"}'
        return next((float(line.split()[-1]) for line in page.splitlines() if line.startswith(name)), 0.0)

    def client(self, images: np.ndarray) -> Callable[[], object]:
        """A connection of its own: sends these images, waits for their CLS."""
        connection = grpc_client.InferenceServerClient(f"127.0.0.1:{self.grpc_port}")
        request = request_of(images)
        return lambda: connection.infer("mum", **request).as_numpy("cls")


def request_of(images: np.ndarray) -> dict[str, Any]:
    """Built once: turning numbers into bytes takes processor time that the server needs."""
    given = grpc_client.InferInput("images", list(images.shape), "FP32")
    given.set_data_from_numpy(images)
    return {"inputs": [given], "outputs": [grpc_client.InferRequestedOutput("cls")]}


def rate(callers: list[Callable[[], object]], images: int, seconds: float) -> float:
    """Images a second while every caller asks for so many again as soon as it has its answer."""
    end = time.perf_counter() + seconds
    counts = [0] * len(callers)

    def ask(i: int) -> None:
        while time.perf_counter() < end:
            callers[i]()
            counts[i] += images

    start = time.perf_counter()
    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(callers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - start)


def throughput(bare: OnnxEncoder, server: Server, images: np.ndarray, windows: int, seconds: float) -> dict[str, Any]:
    """Bare and served, window by window in turns."""
    clients = [server.client(images) for _ in range(CLIENTS)]
    rate(clients, len(images), 1)
    rows = []
    for _ in range(windows):
        before = time.process_time()
        start = time.perf_counter()
        alone = rate([lambda: bare(images, ["cls"])], len(images), seconds)
        bare_cost = (time.process_time() - before) / (alone * (time.perf_counter() - start))
        before, computed, start = server.processor_seconds, server.computing_seconds, time.perf_counter()
        served = rate(clients, len(images), seconds)
        elapsed = time.perf_counter() - start
        cost = (server.processor_seconds - before) / (served * elapsed)
        rows.append((alone, served, served / alone, (server.computing_seconds - computed) / elapsed, cost / bare_cost))
    alone, served, ratio, computing, cost = np.transpose(rows)
    return {
        "images": list(images.shape),
        "bare_images_per_second": round(median(alone), 1),
        "served_images_per_second": round(median(served), 1),
        "served_over_bare": {
            "median": round(median(ratio), 3),
            "interval_95": interval_of_median(ratio),
            "all": ratio.round(3).tolist(),
        },
        "share_of_time_computing": round(median(computing), 3),
        "processor_time_over_bare": round(median(cost), 3),
    }


def interval_of_median(values: np.ndarray) -> list[float]:
    """Where the median lies in 95 of 100 cases, by the bootstrap."""
    draws = np.random.default_rng(0).choice(values, (10_000, len(values)))
    return np.quantile(np.median(draws, axis=1), (0.025, 0.975)).round(3).tolist()


def batch_seconds(bare: OnnxEncoder, image: np.ndarray, largest: int, rounds: int = 7) -> list[float]:
    """Of bare ONNX Runtime for 1, 2, ... images at once: medians over rounds in turns."""
    batches = [np.repeat(image, count, axis=0) for count in range(1, largest + 1)]
    return [median(times) for times in zip(*(map(_timed(bare), batches) for _ in range(rounds)), strict=True)]


def _timed(bare: OnnxEncoder) -> Callable[[np.ndarray], float]:
    def seconds(images: np.ndarray) -> float:
        start = time.perf_counter()
        bare(images, ["cls"])
        return time.perf_counter() - start

    return seconds


def queueing(gaps: list[float], seconds: list[float]) -> list[float]:
    """Seconds from arrival to answer if nothing but the computing took time.

    Args:
        gaps: Seconds between arrivals.
        seconds: For 1, 2, ... images at once; what waits is computed together, up to so many.
    """
    arrivals = np.cumsum(gaps)
    free = 0.0
    answered: list[float] = []
    while len(answered) < len(arrivals):
        first = len(answered)
        start = max(free, arrivals[first])
        count = int(np.searchsorted(arrivals[first : first + len(seconds)], start, side="right"))
        free = start + seconds[count - 1]
        answered += [free - arrival for arrival in arrivals[first : first + count]]
    return answered


def latency(
    server: Server, bare: OnnxEncoder, image: np.ndarray, gaps: list[float], seconds: list[float], load: float
) -> dict[str, Any]:
    """Requests of one image at a share of the rate that the server reaches; from when one was due to its answer.

    Args:
        server: Serves as many images at once as `seconds` has entries.
        bare: The same encoder.
        image: Of each request.
        gaps: Between arrivals, of mean 1.
        seconds: Of bare ONNX Runtime for 1, 2, ... images.
        load: The share.
    """
    full = rate([server.client(image) for _ in range(CLIENTS)], 1, 4)
    gaps = [gap / (load * full) for gap in gaps]
    connection, request = grpc_client.InferenceServerClient(f"127.0.0.1:{server.grpc_port}"), request_of(image)
    connection.infer("mum", **request)
    served: list[float] = []
    failures: list[Exception] = []
    done = threading.Semaphore(0)

    def on_answer(due: float, error: Exception | None) -> None:
        served.append(time.perf_counter() - due)
        failures.extend([error] if error else [])
        done.release()

    due = time.perf_counter()
    for gap in gaps:
        due += gap
        time.sleep(max(0.0, due - time.perf_counter()))
        connection.async_infer("mum", callback=lambda result, error, due=due: on_answer(due, error), **request)
    for _ in gaps:
        done.acquire()
    if failures:
        raise failures[0]
    # The queue's load is the same share of its own rate, which differs from the server's by what the server costs.
    ideal_gaps = np.array(gaps) * full * min(time / (i + 1) for i, time in enumerate(seconds))
    return {
        "load": load,
        "full_images_per_second": round(full, 1),
        "requests": len(served),
        "served": quantiles(served),
        "bare_one_by_one": quantiles(one_by_one(bare, image, gaps)),
        "ideal": quantiles(queueing(ideal_gaps.tolist(), seconds)),
    }


def one_by_one(bare: OnnxEncoder, image: np.ndarray, gaps: list[float]) -> list[float]:
    """Seconds from when an image was due until bare ONNX Runtime had its features: how uneven the machine itself is."""
    taken, due = [], time.perf_counter()
    for gap in gaps:
        due += gap
        time.sleep(max(0.0, due - time.perf_counter()))
        bare(image, ["cls"])
        taken.append(time.perf_counter() - due)
    return taken


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Median, 99 %, and how far apart they are."""
    p50, p99 = (1000 * float(np.quantile(seconds, share)) for share in (0.5, 0.99))
    return {"p50_ms": round(p50, 1), "p99_ms": round(p99, 1), "p99_over_p50": round(p99 / p50, 2)}


def main() -> None:
    """Measure and print; `--output` keeps it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path, help="folder that `mum export` wrote, of float32 input")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--batch-images", type=int, nargs="+", default=[8, 1], help="serve.batch_images to compare")
    parser.add_argument("--windows", type=int, default=12, help="of throughput; 0 measures none")
    parser.add_argument("--seconds", type=float, default=2.5)
    parser.add_argument("--rounds", type=int, default=1, help="of latency, in turns; 0 measures none")
    parser.add_argument("--latency-requests", type=int, default=1000, help="in a round")
    parser.add_argument("--load", type=float, default=0.7, help="share of the server's rate, for latency")
    parser.add_argument("--arrivals", nargs="+", default=["even", "random"], choices=["even", "random"])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/server_load.json"))
    given = parser.parse_args()
    images = np.random.default_rng(0).normal(size=(8, 3, given.side, given.side)).astype(np.float32)
    bare = OnnxEncoder(given.export, threads=1)
    servers: dict[int, Server] = {}
    try:
        for count in given.batch_images:
            servers[count] = Server(given.export, count)
        seconds = batch_seconds(bare, images[:1], max(servers)) if given.rounds else []
        first = servers[given.batch_images[0]]
        result = {
            "command": " ".join(
                ["python benchmarks/server_load.py EXPORT", *(a for a in sys.argv[1:] if Path(a) != given.export)]
            ),
            "machine": machine(),
            "caveats": "Servers, bare runs, clients and perhaps other work share the cores: ratios count, not times.",
            "megabytes_of_graph": round((given.export / "encoder.onnx").stat().st_size / 1e6, 1),
            "seconds_to_ready": {count: round(server.seconds_to_ready, 1) for count, server in servers.items()},
            "bare_milliseconds_of_batches": [round(1000 * one, 1) for one in seconds],
            "throughput": throughput(bare, first, images, given.windows, given.seconds) if given.windows else None,
            "latency": [
                {
                    "arrivals": kind,
                    "batch_images": count,
                    **latency(
                        server, bare, images[:1], gaps(kind, given.latency_requests, turn), seconds[:count], given.load
                    ),
                }
                for turn in range(given.rounds)
                for kind in given.arrivals
                for count, server in servers.items()
            ],
        }
    finally:
        for server in servers.values():
            server.process.terminate()
            server.process.wait(30)
    given.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def gaps(kind: str, requests_sent: int, seed: int) -> list[float]:
    """Gaps of mean 1 between requests: even ones, or those of a Poisson process."""
    generator = random.Random(seed)
    return [1.0 if kind == "even" else generator.expovariate(1) for _ in range(requests_sent)]


if __name__ == "__main__":
    main()
