"""The KFP component `dataset_version`."""

from components.dataset_version.component import dataset_version

__all__ = ["dataset_version"]
