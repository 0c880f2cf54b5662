"""The same encoder in fewer bits: names of the variants, and how the quantised ones are made of the float32 graph.

fp16 is traced anew; int8 holds the matrix products' weights as int8, a scale for each output channel. `int8_dynamic`
measures the scale of the activations while it runs, `int8_static` once, on images of the dataset.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

Variant = Literal["fp32", "fp16", "int8_dynamic", "int8_static"]

LARGEST_IN_ONE_FILE = 1_500_000_000
"""Bytes; above, weights lie beside the graph, since a protobuf message ends at 2 GB."""

_WEIGHTS: dict[str, Any] = {
    "op_types_to_quantize": ["MatMul"],
    "per_channel": True,
    "weight_type": QuantType.QInt8,
    "extra_options": {"MatMulConstBOnly": True},
}


def file_name(variant: Variant) -> str:
    """Of a variant's graph in the export folder; float32 is the plain one."""
    return "encoder.onnx" if variant == "fp32" else f"encoder.{variant}.onnx"


def quantise_dynamically(source: Path, target: Path) -> None:
    """Write a graph with int8 matrix products whose activations are scaled as they come.

    Args:
        source: The float32 graph.
        target: The file to write.
    """
    model = _loaded(source)
    quantize_dynamic(model, target, use_external_data_format=_is_large(source), **_WEIGHTS)
    _copy_metadata(source, target)


def quantise_statically(source: Path, target: Path, inputs: Iterable[np.ndarray]) -> None:
    """Write a graph with int8 matrix products whose activations have fixed scales.

    Args:
        source: The float32 graph.
        target: The file to write.
        inputs: What the graph takes, from images like those it will see; the range of each activation is taken of them.
    """
    model = _loaded(source)
    quantize_static(
        model,
        target,
        _Inputs(model.graph.input[0].name, inputs),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        use_external_data_format=_is_large(source),
        **_WEIGHTS,
    )
    _copy_metadata(source, target)


class _Inputs(CalibrationDataReader):
    """Hands the calibrator one input after the other."""

    def __init__(self, name: str, inputs: Iterable[np.ndarray]):
        self._feeds: Iterator[dict[str, np.ndarray]] = ({name: given} for given in inputs)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def _loaded(path: Path) -> onnx.ModelProto:
    """The graph; marked as prepared, since there is nothing for the quantiser's preparation to fold or fuse."""
    model = onnx.load(path)
    add_pre_process_metadata(model)
    return model


def _is_large(path: Path) -> bool:
    return path.with_name(f"{path.name}.data").exists()


def _copy_metadata(source: Path, target: Path) -> None:
    properties = {one.key: one.value for one in onnx.load(source, load_external_data=False).metadata_props}
    model = onnx.load(target, load_external_data=False)
    onnx.helper.set_model_props(model, properties)
    onnx.save(model, target)
