"""MuM, multi-view masked image modelling, as a pipeline: prepare, pretrain, evaluate, export, serve.

The names below are looked up on first use, so that serving a model never imports torch.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "MuM": "mum_model.model",
    "MuMConfig": "mum_model.model",
    "create_mum": "mum_model.model",
    "load_encoder": "mum_model.model",
    "load_mum": "mum_model.model",
    "load_reference_state_dict": "mum_model.model",
    "reference_state_dict": "mum_model.model",
    "save_encoder": "mum_model.model",
    "save_mum": "mum_model.model",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'mum_model' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
