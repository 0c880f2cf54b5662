"""The `mum` command itself."""

import pytest

from mum_model.cli import COMMANDS, STAGES
from tests.conftest import run_mum


def test_help_lists_every_stage():
    output = run_mum("--help")
    assert all(f"  {name}" in output for name in [*STAGES, *COMMANDS])
    assert run_mum() == output


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_shows_its_configuration(stage):
    assert "learning_rate: 0.5" in run_mum(stage, "--cfg", "job", "pretrain.learning_rate=0.5")
    assert "mask_ratio" in run_mum(stage, "--help")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command):
    assert "IMAGE" in run_mum(command, "--help")


def test_an_unknown_stage_is_named():
    output = run_mum("pretran", status=2)
    assert "'pretran' is no stage" in output
    assert "pretrain" in output


def test_an_unknown_setting_is_named():
    assert "pretrain.stepz" in run_mum("pretrain", "pretrain.stepz=3", status=1)
