"""The KFP component `gate`."""

from components.gate.component import gate

__all__ = ["gate"]
