"""The KFP component `pretrain`."""

from components.pretrain.component import pretrain

__all__ = ["pretrain"]
