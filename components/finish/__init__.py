"""The KFP component `finish`."""

from components.finish.component import finish

__all__ = ["finish"]
