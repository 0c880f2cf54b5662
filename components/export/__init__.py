"""The KFP component `export`."""

from components.export.component import export

__all__ = ["export"]
