"""The model: a stock timm encoder, the multi-view decoder, masking, and weights that travel.

Importing this package registers the encoders `mum_vit_{tiny,small,base,large,huge}_patch16` with timm.
"""

import mum_model.model.torchvision_on_cpu  # noqa: F401  isort: skip  (before the first import of timm)

from mum_model.model.interchange import (
    load_encoder,
    load_multiview,
    load_mum,
    load_reference_state_dict,
    reference_state_dict,
    save_encoder,
    save_multiview,
    save_mum,
)
from mum_model.model.multiview import MultiViewConfig, MultiViewModel
from mum_model.model.mum import MuM, MuMConfig, MuMOutput, create_mum

__all__ = [
    "MuM",
    "MuMConfig",
    "MuMOutput",
    "MultiViewConfig",
    "MultiViewModel",
    "create_mum",
    "load_encoder",
    "load_multiview",
    "load_mum",
    "load_reference_state_dict",
    "reference_state_dict",
    "save_encoder",
    "save_multiview",
    "save_mum",
]
