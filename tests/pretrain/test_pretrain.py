"""Training through the command: resume after a kill, several processes, ZeRO stages, what is written."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch
from prometheus_client.parser import text_string_to_metric_families

import mum_model
from mum_model.pretrain.schedule import learning_rate, parameter_groups
from mum_model.pretrain.telemetry import read_metrics
from tests.conftest import TINY, paths, run_mum


def losses(run):
    return [record.loss for record in read_metrics(run)]


def command(root, *overrides):
    """Overrides of a run of its own on the shared dataset."""
    return [*TINY, *paths(root), *overrides]


@pytest.fixture
def root(tiny_dataset, tmp_path):
    (tmp_path / "dataset").symlink_to(tiny_dataset)
    return tmp_path


def test_what_a_run_leaves(tiny_run):
    last = json.loads((tiny_run / "metrics.json").read_text())
    records = read_metrics(tiny_run)
    assert [record.step for record in records] == [1, 2, 3, 4, 5, 6]
    assert last["loss"] == records[-1].loss
    assert all(np.isfinite(list(vars(record).values())).all() for record in records)
    assert all(record.gradient_norm > 0 and record.memory_bytes > 10**7 for record in records)
    with (tiny_run / "training.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2", "3", "4", "5", "6"]
    picture = cv2.imread(str(tiny_run / "pictures" / "step-00000006.png"))
    assert picture.shape == (3 * 48 + 2 * 4, 4 * 48 + 3 * 4, 3)
    assert (tiny_run / "config.yaml").is_file()


def test_the_encoder_is_that_of_the_model(tiny_run):
    encoder = timm.create_model(f"local-dir:{tiny_run / 'encoder'}", pretrained=True).eval()
    model = mum_model.load_mum(tiny_run / "model")
    images = torch.randn(1, 3, 64, 48, generator=torch.Generator().manual_seed(0))
    assert torch.equal(encoder.forward_features(images), model.encoder.forward_features(images))


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_unbroken(tiny_run, root):
    slow_enough = command(root, "machine.loader_workers=1")
    child = subprocess.Popen([sys.executable, "-m", "mum_model.cli", "pretrain", *slow_enough], start_new_session=True)
    wait_for(root / "run" / "checkpoints" / "step-00000003")
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    output = run_mum("pretrain", *command(root))
    assert losses(root / "run") == losses(tiny_run)
    if len(list((root / "run" / "checkpoints").glob("step-*"))) == 1:
        assert "resuming at step" in output


def wait_for(path, seconds=120):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)


@pytest.mark.slow
def test_resuming_from_the_middle_gives_the_same_losses(tiny_run, root):
    """The same training, stopped for good after three steps, then continued."""
    run_mum("pretrain", *command(root))
    for late in (root / "run" / "checkpoints").glob("step-00000006"):
        late.rename(root / "gone")
    output = run_mum("pretrain", *command(root))
    assert "resuming at step 3" in output
    assert losses(root / "run") == losses(tiny_run)


@pytest.mark.slow
def test_another_training_in_the_same_folder_begins_anew(tiny_run, root):
    run_mum("pretrain", *command(root, "pretrain.steps=3"))
    output = run_mum("pretrain", *command(root, "pretrain.steps=4", "pretrain.learning_rate=1e-4"))
    assert "resuming" not in output
    assert [record.step for record in read_metrics(root / "run")] == [1, 2, 3, 4]


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "stage"), [(2, 0), (2, 1), (2, 2), (2, 3), (1, 3)])
def test_processes_and_zero_stages_train_alike(tiny_run, root, processes, stage):
    """The same global batch on two ranks, at every ZeRO stage, gives the losses of one process without ZeRO.

    The tolerance is that of float32 sums in another order, grown over six steps.
    """
    torchrun("pretrain", processes, command(root, "pretrain.views=[2,2]", f"pretrain.zero_stage={stage}"))
    run_mum("pretrain", *command(root, "pretrain.views=[2,2]", f"paths.run={root / 'plain'}"))
    assert losses(root / "run") == pytest.approx(losses(root / "plain"), rel=1e-4)
    ours, expected = (mum_model.load_mum(root / name / "model").state_dict() for name in ("run", "plain"))
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-5)


def torchrun(stage, processes, overrides):
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--rdzv-backend=c10d"]
    arguments = [*launcher, "--rdzv-endpoint=localhost:0", "-m", "mum_model.cli", stage, *overrides]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_with_step_and_batch(root):
    output = run_mum("pretrain", *command(root, "pretrain.learning_rate=1e30", "pretrain.warmup=0.0"), status=2)
    assert "the loss is nan at step" in output
    assert "room-0-" in output
    assert "Traceback" not in output
    assert not (root / "run" / "encoder").exists()


@pytest.mark.slow
def test_metrics_are_scraped_during_training(root):
    settings = command(root, "pretrain.steps=60", "pretrain.metrics_port=19391")
    child = subprocess.Popen([sys.executable, "-m", "mum_model.cli", "pretrain", *settings])
    wait_for(root / "run" / "metrics.jsonl")
    page = scrape(19391)
    child.kill()
    child.wait()
    samples = {family.name: family.samples[0].value for family in text_string_to_metric_families(page)}
    assert 0.1 < samples["mum_pretrain_loss"] < 2
    assert samples["mum_pretrain_step"] >= 1
    names = ("learning_rate", "gradient_norm", "images_per_second", "step_seconds", "data_wait_seconds", "memory_bytes")
    assert all(samples[f"mum_pretrain_{name}"] > 0 for name in names)


def scrape(port):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
        except OSError:
            page = ""
        if "mum_pretrain_step " in page and "mum_pretrain_step 0.0" not in page:
            return page
        time.sleep(0.05)
    raise AssertionError("the endpoint never showed a step")


def test_settings_that_cannot_be_are_named(root):
    output = run_mum("pretrain", *command(root, "pretrain.zero_stage=5"), status=2)
    assert "pretrain.zero_stage=5: expected 0, 1, 2 or 3" in output
    assert "Traceback" not in output


def test_no_dataset_says_how_to_make_one(tmp_path):
    output = run_mum("pretrain", *TINY, *paths(tmp_path), status=2)
    assert "mum prepare" in output


def test_reconstruct_draws_a_picture(tiny_run, tmp_path):
    images = []
    for i in range(2):
        images.append(str(tmp_path / f"{i}.png"))
        cv2.imwrite(images[-1], np.random.default_rng(i).integers(0, 255, (80, 100, 3), dtype=np.uint8))
    model, output = str(tiny_run / "model"), str(tmp_path / "out.png")
    printed = run_mum("reconstruct", *images, "--model", model, "--output", output, "--size", "48")
    assert "loss" in printed
    assert cv2.imread(output).shape == (3 * 48 + 2 * 4, 2 * 48 + 4, 3)
    assert "multiple of" in run_mum("reconstruct", *images, "--model", model, "--size", "50", status=2)
    assert "nothing.png" in run_mum("reconstruct", str(tmp_path / "nothing.png"), "--model", model, status=2)


def test_learning_rate_rises_then_falls_to_zero():
    rates = [learning_rate(step, peak=2.0, steps=100, warmup=0.1) for step in range(101)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == rates[9] == pytest.approx(2.0)
    assert rates[55] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.0)
    assert all(rate > 0 for rate in rates[:100])


def test_only_matrices_decay():
    model = mum_model.create_mum("tiny", encoder_depth=1, decoder_depth=2)
    decaying, still = parameter_groups(model.named_parameters(), 0.05)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert decaying["weight_decay"] == 0.05
    assert still["weight_decay"] == 0.0
    assert all(names[id(p)].endswith("weight") and p.ndim > 1 for p in decaying["params"])
    assert {"encoder.cls_token", "decoder.mask_token", "encoder.norm.weight", "decoder.head.bias"} <= {
        names[id(p)] for p in still["params"]
    }
    assert len(decaying["params"]) + len(still["params"]) == len(names)


def test_docs_of_the_run_folder_are_true(tiny_run):
    expected = {
        "encoder",
        "model",
        "metrics.jsonl",
        "metrics.json",
        "training.csv",
        "pictures",
        "checkpoints",
        "config.yaml",
    }
    assert {path.name for path in Path(tiny_run).iterdir()} == expected
