"""What `encoder` lists: names, layers, and wildcards for a whole series of encoders."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from mum_model.errors import UserError

NAMES = {"run": "mum"}
WEIGHTS = (".pth", ".pt", ".safetensors")
FILES = (".onnx", *WEIGHTS)
_LAYER = re.compile(r"(?P<source>.+)@(?P<layer>\*|\d+)")


@dataclass(frozen=True)
class Spec:
    """One encoder of the list.

    Attributes:
        name: In the report.
        source: What opens it, see the package's docstring.
        layer: Block whose tokens are judged, from 0; `*` for each of them in turn; None for the last.
    """

    name: str
    source: str
    layer: str | None

    @property
    def step(self) -> int | None:
        """Steps of training, of a checkpoint's folder."""
        found = re.search(r"step-0*(\d+)$", self.name)
        return int(found.group(1)) if found else None


def parse_specs(listed: Any) -> list[Spec]:
    """Read `encoder`.

    Args:
        listed: A spec, or a list of specs and of `{NAME: SPEC}`; each may end in `@LAYER` or `@*`, and a path may hold
            wildcards.

    Returns:
        In the order of the list, wildcards in their natural order.

    Raises:
        UserError: A name cannot be one or is there twice, or a wildcard finds nothing.
    """
    entries = listed if isinstance(listed, ListConfig) else [listed]
    specs = [spec for entry in entries for spec in _specs(entry)]
    names = [spec.name for spec in specs]
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"encoder: two are named '{name}'; name them, as in encoder=[{{first: ...}},{{second: ...}}]"
            )
    return specs


def _specs(entry: Any) -> Iterator[Spec]:
    if isinstance(entry, DictConfig):
        if len(entry) != 1:
            raise UserError(f"encoder: {dict(entry)} must be one name with one encoder, as in {{dinov3: timm/NAME}}")
        ((name, text),) = entry.items()
        source, layer = _layer(str(text))
        yield Spec(_checked_name(str(name)), source, layer)
        return
    source, layer = _layer(str(entry))
    sources = _found(source) if "*" in source else {_name(source): source}
    for name, one in sources.items():
        yield Spec(_checked_name(name if layer in (None, "*") else f"{name}-layer{layer}"), one, layer)


def _layer(text: str) -> tuple[str, str | None]:
    found = _LAYER.fullmatch(text)
    return (found["source"], found["layer"]) if found else (text, None)


def _found(pattern: str) -> dict[str, str]:
    """Paths that a pattern finds, by the part that the first wildcard stands for, unless it is hidden."""
    path = Path(pattern).expanduser()
    parts = path.parts
    varying = next(i for i, part in enumerate(parts) if "*" in part)
    anywhere = Path(*parts[:varying]).glob(str(Path(*parts[varying:])))
    found = sorted(one for one in anywhere if not one.parts[varying].startswith("."))  # as the lock beside a run is
    if not found:
        raise UserError(f"encoder: nothing is {pattern}")
    return {_plain(one.parts[varying]): str(one) for one in found}


def _name(source: str) -> str:
    if source.startswith(("pixels/", "random/")):
        return source.replace("/", "-")
    last = source.rstrip("/").rpartition("/")[2].rpartition(":")[2] or source
    return NAMES.get(source, _plain(Path(last).stem if Path(last).suffix in FILES else last))


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)


def _checked_name(name: str) -> str:
    if name in ("figures", "ratio") or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError(f"encoder: '{name}' cannot name an encoder; use letters, digits, '.', '_' and '-'")
    return name
