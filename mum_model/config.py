"""Composes the configuration tree in `conf/`: the same for the command line, DVC, KFP and the tests."""

from collections.abc import Sequence
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig

from mum_model.errors import UserError

CONFIG_DIR = Path(__file__).parent / "conf"
CONFIG_NAME = "config"


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """Compose the configuration with Hydra overrides, as `mum <stage> OVERRIDE...` does.

    Args:
        overrides: Hydra overrides, for instance `["model=small", "pretrain.steps=100"]`.

    Returns:
        The configuration that every stage function takes.

    Raises:
        UserError: An override names something that is not in the tree.
    """
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        try:
            return hydra_compose(CONFIG_NAME, overrides=list(overrides))
        except HydraException as error:
            raise UserError(f"configuration: {error}") from error
