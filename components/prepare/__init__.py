"""The KFP component `prepare`."""

from components.prepare.component import prepare

__all__ = ["prepare"]
