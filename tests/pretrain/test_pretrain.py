"""Training through the command: what is written, several processes and ZeRO stages, what a person can get wrong."""

import csv
import json
import re
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
from mum_model.files import alone_in
from mum_model.pretrain.schedule import learning_rate, parameter_groups
from mum_model.pretrain.telemetry import read_metrics
from tests.conftest import TINY, paths, run_mum
from tests.pretrain.runs import command, losses, torchrun, wait_for

DASHBOARD = Path(__file__).parents[2] / "k8s" / "dashboards" / "pretrain.json"


def test_what_a_run_leaves(tiny_run):
    last = json.loads((tiny_run / "metrics.json").read_text())
    records = read_metrics(tiny_run)
    assert [record.step for record in records] == [1, 2, 3, 4, 5, 6]
    assert last["loss"] == records[-1].loss
    assert [record.validation_loss for record in records[:3]] == [None] * 3
    assert 0.1 < records[3].validation_loss < 2
    assert all(np.isfinite(record.loss) and record.skipped == 0 for record in records)
    assert all(record.gradient_norm > 0 and record.memory_bytes > 10**7 for record in records)
    with (tiny_run / "training.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2", "3", "4", "5", "6"]
    picture = cv2.imread(str(tiny_run / "pictures" / "step-00000006.png"))
    assert picture.shape in [(3 * 48 + 2 * 4, views * 48 + (views - 1) * 4, 3) for views in (2, 3, 4)]
    assert (tiny_run / "config.yaml").is_file()


def test_the_encoder_is_that_of_the_model(tiny_run):
    encoder = timm.create_model(f"local-dir:{tiny_run / 'encoder'}", pretrained=True).eval()
    model = mum_model.load_mum(tiny_run / "model")
    images = torch.randn(1, 3, 64, 48, generator=torch.Generator().manual_seed(0))
    assert torch.equal(encoder.forward_features(images), model.encoder.forward_features(images))


@pytest.mark.slow
def test_another_training_in_the_same_folder_begins_anew(tiny_dataset, tmp_path):
    root = tmp_path
    run_mum("pretrain", *command(root, tiny_dataset, "pretrain.steps=3"))
    output = run_mum("pretrain", *command(root, tiny_dataset, "pretrain.steps=4", "pretrain.learning_rate=1e-4"))
    assert "resuming" not in output
    assert [record.step for record in read_metrics(root / "run")] == [1, 2, 3, 4]


def test_two_trainings_never_share_a_folder(tiny_dataset, tmp_path):
    command = [*TINY, f"paths.dataset={tiny_dataset}", f"paths.run={tmp_path / 'run'}"]
    with alone_in(tmp_path / "run"):
        said = run_mum("pretrain", *command, status=2)
    assert f"{tmp_path / 'run'}: another process is writing here" in said
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.fixture(scope="module")
def accumulated(tiny_dataset, tmp_path_factory):
    """One process, no ZeRO, two packs a step one after the other."""
    root = tmp_path_factory.mktemp("accumulated")
    run_mum("pretrain", *command(root, tiny_dataset, "pretrain.pack=4"))
    return root / "run"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "stage", "settings"),
    [
        (2, 0, []),
        (2, 1, []),
        (2, 2, []),
        (2, 3, []),
        (1, 3, []),
        (2, 2, ["pretrain.offload_optimiser=true"]),
        (2, 3, ["pretrain.offload_optimiser=true"]),
    ],
)
def test_processes_and_zero_stages_train_alike(accumulated, tiny_dataset, tmp_path, processes, stage, settings):
    """The packs of a step shared by two ranks, at every ZeRO stage, give the losses of one process without ZeRO.

    The tolerance is that of float32 sums in another order, grown over six steps.
    """
    zero = ["pretrain.pack=4", f"pretrain.zero_stage={stage}", *settings]
    torchrun("pretrain", processes, command(tmp_path, tiny_dataset, *zero))
    assert losses(tmp_path / "run") == pytest.approx(losses(accumulated), rel=1e-4)
    norms = [[record.gradient_norm for record in read_metrics(run)] for run in (tmp_path / "run", accumulated)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    ours, expected = (mum_model.load_mum(run / "model").state_dict() for run in (tmp_path / "run", accumulated))
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [["pretrain.recompute=1"], ["machine.loader_workers=1"]])
def test_how_a_step_is_computed_does_not_change_it(tiny_run, tiny_dataset, tmp_path, settings):
    run_mum("pretrain", *command(tmp_path, tiny_dataset, *settings))
    assert losses(tmp_path / "run") == pytest.approx(losses(tiny_run), rel=1e-6)


@pytest.mark.slow
def test_bf16_trains_nearly_alike_and_keeps_float32_weights(tiny_run, tiny_dataset, tmp_path):
    run_mum("pretrain", *command(tmp_path, tiny_dataset, "pretrain.precision=bf16"))
    assert losses(tmp_path / "run") == pytest.approx(losses(tiny_run), rel=2e-2)
    assert losses(tmp_path / "run") != losses(tiny_run)
    weights = mum_model.load_mum(tmp_path / "run" / "model").decoder.head.weight
    assert weights.dtype == torch.float32
    assert not torch.equal(weights, weights.bfloat16().float())


@pytest.mark.slow
def test_metrics_are_scraped_during_training(tiny_dataset, tmp_path):
    every = ["pretrain.steps=60", "pretrain.metrics_port=19391", "pretrain.evaluate_every=1000"]
    settings = command(tmp_path, tiny_dataset, *every)
    child = subprocess.Popen([sys.executable, "-m", "mum_model.cli", "pretrain", *settings])
    wait_for(tmp_path / "run" / "metrics.jsonl")
    page = scrape(19391)
    child.kill()
    child.wait()
    families = list(text_string_to_metric_families(page))
    samples = {family.name: family.samples[0].value for family in families if family.samples}
    assert 0.1 < samples["mum_pretrain_loss"] < 2
    assert samples["mum_pretrain_step"] >= 1
    assert samples["mum_pretrain_slowest_rank"] == samples["mum_pretrain_skipped"] == 0
    names = ("learning_rate", "gradient_norm", "images_per_second", "step_seconds", "data_wait_seconds", "memory_bytes")
    assert all(samples[f"mum_pretrain_{name}"] > 0 for name in names)
    asked = set(re.findall(r"mum_pretrain_[a-z_]+", DASHBOARD.read_text()))
    shown = {family.name for family in families}
    assert asked == shown, "the dashboard shows every number of the endpoint, and no other"


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


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("pretrain.zero_stage=5", "pretrain.zero_stage=5: expected 0, 1, 2 or 3"),
        ("pretrain.offload_optimiser=true", "needs pretrain.zero_stage of 1, 2 or 3"),
        ("pretrain.pack=3", "pretrain.frames=8: must be a multiple of pretrain.pack=3"),
        ("pretrain.recompute=2", "pretrain.recompute=2: expected a share"),
        ("pretrain.trackers=[notebook]", "expected any of tensorboard, mlflow"),
        ("+pretrain.mix.films=2", "the dataset's sources are ['rendered']"),
    ],
)
def test_settings_that_cannot_be_are_named(tiny_dataset, tmp_path, setting, message):
    output = run_mum("pretrain", *command(tmp_path, tiny_dataset, setting), status=2)
    assert message in output
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


@pytest.mark.slow
def test_a_sweep_trains_one_run_after_the_other(tiny_dataset, tmp_path):
    settings = command(tmp_path, tiny_dataset, "pretrain.steps=2", "seed=0,1", f"paths.run={tmp_path}/seed-${{seed}}")
    run_mum("pretrain", "-m", *settings)
    assert losses(tmp_path / "seed-0") != losses(tmp_path / "seed-1")
    assert all((tmp_path / f"seed-{seed}" / "encoder" / "model.safetensors").is_file() for seed in (0, 1))


def test_a_reference_view_is_trained_with_and_painted_whole(tiny_dataset, tmp_path):
    run = tmp_path / "run"
    run_mum("pretrain", *command(tmp_path, tiny_dataset, "pretrain.steps=3", "model.reference_view=true"))
    assert mum_model.load_mum(run / "model").config.reference_view
    assert 0.1 < json.loads((run / "metrics.json").read_text())["loss"] < 2
    picture = cv2.imread(str(run / "pictures" / "step-00000003.png")).astype(int)
    view, seen = picture[:48, :48], picture[52:100, :48]
    other, little = picture[:48, 52:100], picture[52:100, 52:100]
    assert np.abs(view - seen).max() <= 1
    assert np.abs(other - little).max() > 20
