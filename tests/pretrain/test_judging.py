"""Evaluation while a training runs: numbers arrive, steps do not wait, and a failure harms nothing."""

import json
import shutil
import time

import pytest

from mum_model.files import write_text
from mum_model.pretrain.judging import Judge
from tests.conftest import run_mum
from tests.pretrain.runs import command, losses

QUICK = ["evaluate.pairs={train:8,val:4,test:4}", "evaluate.probe.iterations=2", "evaluate.seeds=1"]


@pytest.mark.slow
def test_checkpoints_are_judged_and_recorded(tiny_run, tiny_dataset, tmp_path):
    """Every third step; the losses are those of a training that nobody judged."""
    run = tmp_path / "run"
    settings = ["pretrain.evaluate_every=3", "pretrain.keep_checkpoints=1", *QUICK]
    output = run_mum("pretrain", *command(tmp_path, tiny_dataset, *settings, "evaluate.figures=0"))
    assert losses(run) == losses(tiny_run)
    lines = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert lines, output
    assert lines[-1]["step"] == 6
    assert lines[-1]["dataset.matching.probe_epe"] > 0
    recorded = json.loads((run / "evaluations" / "step-00000006" / "metrics.json").read_text())
    assert lines[-1] == {"step": 6, **recorded["checkpoint"]}
    assert (run / "evaluations.png").stat().st_size > 1000
    assert not list((run / "evaluations").glob("*.encoder"))


@pytest.fixture
def run(tmp_path):
    """A run folder with two checkpoints, whose evaluation fails at once: its configuration is empty."""
    for step in (3, 6):
        encoder = tmp_path / "run" / "checkpoints" / f"step-{step:08d}" / "encoder"
        encoder.mkdir(parents=True)
        (encoder / "config.json").write_text("{}")
    (tmp_path / "run" / "config.yaml").write_text("{}\n")
    return tmp_path / "run"


def test_a_failed_evaluation_is_told_and_harms_nothing(run, caplog):
    recorded = []
    judge = Judge(run, 3, lambda *found: recorded.append(found))
    judge.saved(3)
    judge.finish()
    assert recorded == []
    assert "evaluation of step 3 failed" in caplog.text
    assert "step-00000003.log" in caplog.text
    assert (run / "evaluations" / "step-00000003.log").read_text()


def test_a_checkpoint_that_cannot_be_read_is_told_and_harms_nothing(run, caplog):
    shutil.rmtree(run / "checkpoints" / "step-00000003" / "encoder")
    judge = Judge(run, 3, lambda *found: None)
    judge.saved(3)
    judge.finish()
    assert "step 3 is not judged, the training goes on" in caplog.text


def test_one_at_a_time_and_the_newest_first(run, caplog):
    judge = Judge(run, 3, lambda *found: None)
    judge.saved(3)
    judge.saved(4)  # no multiple
    judge.saved(6)
    judge.finish()
    assert "step 3 is not judged: step 6 came before its turn" in caplog.text
    assert [path.name for path in (run / "evaluations").glob("*.log")] == ["step-00000006.log"]


def test_looking_does_not_wait_and_stopping_does_not_linger(run):
    judge = Judge(run, 3, lambda *found: None)
    judge.saved(9)
    judge.look()
    assert not (run / "evaluations").exists(), "its checkpoint is not whole yet"
    judge.saved(3)
    began = time.monotonic()
    judge.look()
    assert time.monotonic() - began < 1, "starting a process is all that a step pays"
    judge.stop()
    assert not list((run / "evaluations").glob("*.encoder"))


def test_evaluations_of_steps_that_are_taken_again_are_dropped(tiny_dataset, tmp_path):
    write_text(tmp_path / "run" / "evaluations.jsonl", json.dumps({"step": 3, "loss": 1.0}) + "\n")
    run_mum("pretrain", *command(tmp_path, tiny_dataset, "pretrain.steps=1"))
    assert (tmp_path / "run" / "evaluations.jsonl").read_text() == ""
