"""The `mum` command itself."""

import json

import pytest

from mum_model.cli import COMMANDS, STAGES
from tests.conftest import paths, run_mum


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
    assert f"usage: mum {command}" in run_mum(command, "--help")


def test_prepare_lists_its_sources():
    from mum_model.data.sources import SOURCES

    output = run_mum("prepare", "--list-sources")
    for source in SOURCES:
        for text in (source.name, source.layout, source.truth, source.licence, source.origin):
            assert text in output


def test_an_unknown_stage_is_named():
    output = run_mum("pretran", status=2)
    assert "'pretran' is no stage" in output
    assert "pretrain" in output


def test_an_unknown_setting_is_named():
    assert "pretrain.stepz" in run_mum("pretrain", "pretrain.stepz=3", status=1)


def test_summary_says_what_is_not_there_yet(tmp_path):
    assert "not made yet" in run_mum("summary", *paths(tmp_path))


def test_summary_is_a_table_with_every_place(tmp_path):
    key = "dataset.matching.probe_epe"
    numbers = {key: 12.34, f"{key}_low": 11.5, f"{key}_high": 13.0}
    metrics = dict.fromkeys(("mum", "random", "pixels"), numbers)
    ratio = {"dataset.mum_over_random": 0.9, "dataset.mum_over_pixels": 0.8}
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "metrics.json").write_text(json.dumps({**metrics, "ratio": ratio}))
    output = run_mum("summary", *paths(tmp_path))
    assert "12.3 [11.5, 13.0]" in output
    assert "mum over random: 0.900" in output
    assert str(tmp_path / "export" / "encoder.onnx") not in output
