"""Latency of exported encoders beside PyTorch, image by image in turns: `python benchmarks/onnx_latency.py`.

Weights are fresh, since time does not depend on them; ratios are medians over interleaved repeats in one process.
Beside the variants stand the form without fused attention (timm's own), the same after ONNX Runtime's transformer
optimiser, and the standard's Attention operator; with the fused operators that each really runs; and a floor: the
time of the float32 matrix products alone at the rate of one large product, which no float32 encoder can go below.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.transformers import optimizer

import mum_model.model  # noqa: F401  isort: skip  (before timm, which it makes importable on a CPU build of torch)
import timm

from mum_model.export.contract import input_contract
from mum_model.export.onnx_graph import GraphForm, OpenRotation, write_graph
from mum_model.export.variants import quantise_dynamically, quantise_statically
from mum_model.files import write_json
from mum_model.inference import available_cores
from mum_model.model.encoder import ENCODER_ARGUMENTS, ENCODER_SIZES

PRODUCT_SIDE = 1024
"""Of the square matrices whose product says how fast the processor can be."""

FUSED = ("Attention", "MultiHeadAttention", "RotaryEmbedding", "BiasGelu", "SkipLayerNormalization", "Softmax")


def encoder(size: str) -> Any:
    """Of a size, with the same weights each time."""
    torch.manual_seed(0)
    return timm.create_model(f"mum_vit_{size}_patch16").eval()


def forms(size: str, folder: Path) -> dict[str, Path]:
    """Every form of the graph; written where the folder has not got it."""
    written = folder / "forms.json"
    if not written.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(written, {name: path.name for name, path in write_forms(size, folder).items()})
    return {name: folder / file for name, file in json.loads(written.read_text()).items()}


def write_forms(size: str, folder: Path) -> dict[str, Path]:
    """Write every form of the graph."""
    contract = input_contract(encoder(size), "float32")
    paths = {name: folder / f"{name}.onnx" for name in ("fp32", "standard", "decomposed", "fp16")}
    write_graph(encoder(size), paths["fp32"], contract, GraphForm(23, "onnxruntime", 96), {})
    write_graph(encoder(size), paths["standard"], contract, GraphForm(23, "standard", 96), {})
    write_graph(encoder(size), paths["fp16"], contract, GraphForm(23, "onnxruntime", 96, torch.float16), {})
    write_decomposed(encoder(size), paths["decomposed"])
    shape = ENCODER_SIZES[size]
    optimised = optimizer.optimize_model(
        str(paths["decomposed"]), "vit", num_heads=shape["num_heads"], hidden_size=shape["embed_dim"], opt_level=0
    )
    paths["decomposed, then optimiser"] = folder / "optimised.onnx"
    optimised.save_model_to_file(str(paths["decomposed, then optimiser"]))
    for name, quantise in {"int8_dynamic": quantise_dynamically, "int8_static": calibrated}.items():
        paths[name] = folder / f"{name}.onnx"
        quantise(paths["fp32"], paths[name])
    return paths


class Decomposed(torch.nn.Module):
    """The encoder with timm's own attention, as matrix products and a softmax."""

    def __init__(self, one: Any):
        super().__init__()
        one.rope = OpenRotation(one.rope)  # timm's own would tie it to a size
        self.one = one

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """CLS and patch tokens."""
        tokens = self.one.forward_features(images)
        return tokens[:, 0], tokens[:, 1:]


def write_decomposed(one: Any, path: Path) -> None:
    """Write the graph with timm's own attention."""
    program = torch.onnx.export(
        Decomposed(one).eval(),
        (torch.zeros(2, 3, 96, 112),),
        dynamo=True,
        verbose=False,
        opset_version=20,
        input_names=["images"],
        output_names=["cls", "patch_tokens"],
        dynamic_shapes={"images": {0: "N", 2: "H", 3: "W"}},
    )
    assert program is not None
    program.save(path)


def calibrated(source: Path, target: Path) -> None:
    """Quantise statically on smooth random images."""
    generator = np.random.default_rng(0)
    quantise_statically(source, target, (generator.normal(size=(1, 3, 224, 224)).astype(np.float32) for _ in range(8)))


def opened(path: Path, given: argparse.Namespace) -> tuple[onnxruntime.InferenceSession, dict[str, int]]:
    """A session, and the fused operators that it runs."""
    report = given.forms / "report.onnx"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = given.threads
    options.optimized_model_filepath = str(report)
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=given.providers)
    counts = Counter(node.op_type for node in onnx.load(report, load_external_data=False).graph.node)
    quantised = {name for name in counts if "Quantize" in name and "MatMul" in name} | {"QLinearMatMul"}
    return session, {name: counts[name] for name in (*FUSED, *sorted(quantised)) if counts[name]}


PEAK = """
import re, sys
from pathlib import Path
import numpy as np
import onnxruntime

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
session.run(None, {"images": np.zeros((1, 3, int(sys.argv[2]), int(sys.argv[2])), np.float32)})
# Not getrusage's: that begins with the memory of whoever started the process.
print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024)
"""


def peak_megabytes(path: Path, side: int) -> int:
    """Largest resident memory of a process that runs one image."""
    done = subprocess.run([sys.executable, "-c", PEAK, path, str(side)], capture_output=True, text=True, check=True)
    return round(float(done.stdout))


def measure(size: str, given: argparse.Namespace) -> dict[str, Any]:
    """Ratios and cosines of one encoder."""
    torch.set_num_threads(given.threads)
    paths = forms(size, given.forms / size)
    sessions, fused = {}, {}
    for form, path in paths.items():
        sessions[form], fused[form] = opened(path, given)
    megabytes = {form: round(path.stat().st_size / 1e6, 1) for form, path in paths.items()}
    latency = [
        measure_side(in_pytorch(size, given), sessions, side, given.repeats, operations(size, side))
        for side in given.sides
    ]
    peak = {
        f"side {side}": {form: peak_megabytes(paths[form], side) for form in ("fp32", "standard", "decomposed")}
        for side in given.memory_sides
    }
    facts = {"megabytes": megabytes, "peak_megabytes": peak, "fused_operators": fused}
    form = {"device": given.device, "dtype": given.dtype, "compiled": given.compile}
    return {"encoder": size, "threads": given.threads, "pytorch": form, **facts, "latency": latency}


def in_pytorch(size: str, given: argparse.Namespace) -> Callable[[np.ndarray], np.ndarray]:
    """The encoder in PyTorch: patch tokens of an image, from and to the memory of the CPU."""
    dtype = getattr(torch, given.dtype)
    model = encoder(size).to(given.device, dtype)
    forward = torch.compile(model.forward_features) if given.compile else model.forward_features

    @torch.inference_mode()
    def patch_tokens(image: np.ndarray) -> np.ndarray:
        return forward(torch.from_numpy(image).to(given.device, dtype))[:, 1:].float().cpu().numpy()

    return patch_tokens


def operations(size: str, side: int) -> int:
    """Additions and multiplications of all matrix products for one image: linear layers, attention, patches."""
    shape, patch = ENCODER_SIZES[size], ENCODER_ARGUMENTS["patch_size"]
    width, patches = shape["embed_dim"], (side // patch) ** 2
    tokens = patches + 1
    layers = 2 * tokens * int(4 + 2 * ENCODER_ARGUMENTS["mlp_ratio"]) * width**2
    attention = 4 * tokens**2 * width
    return shape["depth"] * (layers + attention) + 2 * patches * 3 * patch**2 * width


def large_product() -> Callable[[], object]:
    """One product of large matrices."""
    a, b = torch.rand(2, PRODUCT_SIDE, PRODUCT_SIDE)
    return lambda: a @ b


def measure_side(
    pytorch: Callable[[np.ndarray], np.ndarray], sessions: dict[str, Any], side: int, repeats: int, operations: int
) -> dict[str, Any]:
    """One image of one size through all, in turns."""
    image = np.random.default_rng(1).normal(size=(1, 3, side, side)).astype(np.float32)
    calls: dict[str, Callable[[], np.ndarray]] = {"pytorch": lambda: pytorch(image)}
    calls |= {
        form: lambda s=session: s.run(["patch_tokens"], {"images": image})[0] for form, session in sessions.items()
    }
    expected, product = pytorch(image), large_product()
    cosine = {form: float(_cosine(expected, call()).min()) for form, call in calls.items()}
    seconds: dict[str, list[float]] = {form: [] for form in calls}
    rates = []
    for _ in range(repeats):
        for form, call in calls.items():
            seconds[form].append(_seconds(call))
        rates.append(2 * PRODUCT_SIDE**3 / min(_seconds(product) for _ in range(3)))
    # A ratio of each round, then their median: what slows the machine for a moment meets both sides of a ratio.
    ratio = {form: median(np.divide(times, seconds["pytorch"])) for form, times in seconds.items()}
    return {
        "side": side,
        "repeats": repeats,
        "milliseconds": {form: round(1000 * median(times), 1) for form, times in seconds.items()},
        "over_pytorch": {form: round(float(value), 3) for form, value in ratio.items()},
        "min_cosine": {form: round(value, 6) for form, value in cosine.items()},
        "gigaflop": round(operations / 1e9, 2),
        "gigaflop_per_second_of_a_large_product": round(median(rates) / 1e9, 1),
        "float32_floor_over_pytorch": round(float(median(operations / np.multiply(rates, seconds["pytorch"]))), 3),
    }


def _seconds(call: Callable[[], object]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


def machine() -> dict[str, Any]:
    """What the numbers were taken on."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    return {
        "cpu": next(line.split(":")[1].strip() for line in info if line.startswith("model name")),
        "cores": available_cores(),
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "timm", "onnx", "onnxruntime", "kserve")},
    }


def main() -> None:
    """Measure and print; `--output` keeps it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["small", "base"])
    parser.add_argument("--sides", nargs="+", type=int, default=[224, 448])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu", help="of PyTorch")
    parser.add_argument("--dtype", default="float32", help="of PyTorch")
    parser.add_argument("--compile", action="store_true", help="PyTorch's encoder; eager else")
    parser.add_argument("--providers", nargs="+", default=["CPUExecutionProvider"], help="of ONNX Runtime")
    parser.add_argument("--memory-sides", nargs="*", type=int, default=[768], help="for the peak of memory")
    parser.add_argument("--forms", type=Path, help="folder that keeps the graphs, for measuring in several pieces")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/onnx_latency.json"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        given.forms = given.forms or Path(temporary)
        results = [measure(size, given) for size in given.sizes]
    facts = {"command": " ".join(["python benchmarks/onnx_latency.py", *sys.argv[1:]]), "machine": machine()}
    write_json(given.output, {**facts, "results": results})
    for result in results:
        for latency in result["latency"]:
            print(result["encoder"], latency["side"], latency["over_pytorch"])


if __name__ == "__main__":
    main()
