"""Memory of a real `mum serve` over many requests of mixed sizes and kinds: `python benchmarks/server_soak.py EXPORT`.

Photos of many sizes, tensors, reconstructions where the export has them, and one request in ten that is refused; from
several clients at once. Resident memory and open files of the server are noted at even stops.
"""

import argparse
import random
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import requests
import tritonclient.http as http_client

from benchmarks.onnx_latency import machine
from benchmarks.server_load import Server
from mum_model.files import write_json

CLIENTS = 4
SIDES = range(32, 97, 16)
"""Pixels, multiples of any patch size."""

Ask = Callable[[requests.Session], requests.Response]


def soak(url: str, pid: int, requests_sent: int, stops: int) -> list[dict[str, Any]]:
    """Send requests to a server and watch its process.

    Args:
        url: Of the server; its model is named `mum`.
        pid: Of its process.
        requests_sent: How many in all.
        stops: How often memory is noted, at even distances.

    Returns:
        A row a stop: `requests` so far, `megabytes` resident, `open_files`, and how often each of the `statuses` since
        the last one.
    """
    generator = random.Random(0)
    kinds = [_photo, _photo, _tensor, _reconstruction if _reconstructs(url) else _photo]
    rows = [_row(pid, 0, Counter())]
    for stop in range(1, stops + 1):
        count = requests_sent * stop // stops - rows[-1]["requests"]
        work = [_refused(url) if i % 10 == 0 else generator.choice(kinds)(url, generator) for i in range(count)]
        rows.append(_row(pid, rows[-1]["requests"] + count, _send(work)))
        print(rows[-1], flush=True)
    return rows


def _send(work: list[Ask]) -> Counter[str]:
    """Answers by status."""
    statuses: Counter[str] = Counter()

    def ask(part: list[Ask]) -> None:
        with requests.Session() as session:
            for one in part:
                statuses[str(one(session).status_code)] += 1

    threads = [threading.Thread(target=ask, args=(work[i::CLIENTS],)) for i in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statuses


def _reconstructs(url: str) -> bool:
    models = requests.get(f"{url}/page/models", timeout=10).json()
    return any(model["name"] == "mum" and model["reconstructs"] for model in models)


def _jpeg(generator: random.Random) -> bytes:
    shape = (generator.choice(SIDES), generator.choice(SIDES), 3)
    encoded: Any = cv2.imencode(".jpg", np.random.default_rng(shape[0]).integers(0, 256, shape, dtype=np.uint8))[1]
    return encoded.tobytes()


def _photo(url: str, generator: random.Random) -> Ask:
    data, query = _jpeg(generator), {"size": generator.choice(SIDES), "outputs": "cls,patch_tokens"}
    return lambda session: session.post(f"{url}/v2/models/mum/images", params=query, data=data, timeout=120)


def _reconstruction(url: str, generator: random.Random) -> Ask:
    files = [("file", (f"{i}.jpg", _jpeg(generator))) for i in range(generator.randrange(1, 5))]
    query = {"size": generator.choice(SIDES), "seed": generator.randrange(100)}
    return lambda session: session.post(f"{url}/v2/models/mum/reconstruct", params=query, files=files, timeout=120)


def _tensor(url: str, generator: random.Random) -> Ask:
    shape = (generator.randrange(1, 4), 3, generator.choice(SIDES), generator.choice(SIDES))
    given = http_client.InferInput("images", list(shape), "FP32")
    given.set_data_from_numpy(np.zeros(shape, np.float32))
    body, length = http_client.InferenceServerClient.generate_request_body([given])
    headers = {"content-type": "application/octet-stream", "inference-header-content-length": str(length)}
    return lambda session: session.post(f"{url}/v2/models/mum/infer", data=body, headers=headers, timeout=120)


def _refused(url: str) -> Ask:
    return lambda session: session.post(f"{url}/v2/models/mum/images", data=b"\xff\xd8\xff cut", timeout=120)


def held(pid: int) -> dict[str, Any]:
    """Resident `megabytes` and the number of `open_files`, sockets among them, of a process."""
    process = Path(f"/proc/{pid}")
    status = (process / "status").read_text().splitlines()
    kilobytes = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
    return {"megabytes": round(kilobytes / 1024, 1), "open_files": len(list((process / "fd").iterdir()))}


def _row(pid: int, done: int, statuses: Counter[str]) -> dict[str, Any]:
    return {"requests": done, **held(pid), "statuses": dict(sorted(statuses.items()))}


def main() -> None:
    """Measure and print; `--output` keeps it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path, help="folder that `mum export` wrote, of float32 input")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--stops", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/server_soak.json"))
    given = parser.parse_args()
    server = Server(given.export, 8)
    try:
        rows = soak(f"http://127.0.0.1:{server.http_port}", server.process.pid, given.requests, given.stops)
    finally:
        server.process.terminate()
        server.process.wait(30)
    options = [argument for argument in sys.argv[1:] if Path(argument) != given.export]
    command = " ".join(["python benchmarks/server_soak.py EXPORT", *options])
    megabytes = round((given.export / "encoder.onnx").stat().st_size / 1e6, 1)
    write_json(given.output, {"command": command, "machine": machine(), "megabytes_of_graph": megabytes, "stops": rows})


if __name__ == "__main__":
    main()
