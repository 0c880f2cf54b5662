"""The KFP component `deploy`."""

from components.deploy.component import deploy

__all__ = ["deploy"]
