"""The evaluation stage through its own door."""

import json
import re
import shutil

import cv2
import numpy as np
import pytest

from mum_model.config import compose
from mum_model.errors import UserError
from mum_model.evaluate import evaluate
from mum_model.evaluate.gate import NotPromotedError
from mum_model.prepare import prepare
from tests.conftest import TINY, paths, run_mum
from tests.evaluate.layouts import cut_file


@pytest.fixture(scope="module")
def settings(tiny_run, tiny_root):
    return [*TINY, *paths(tiny_root)]


@pytest.fixture(scope="module")
def evaluation(settings):
    return evaluate(compose(settings))


def test_every_encoder_has_its_numbers(evaluation):
    metrics = json.loads((evaluation / "metrics.json").read_text())
    assert metrics.keys() == {"mum", "random", "pixels", "ratio"}
    for name in ("mum", "random", "pixels"):
        numbers = metrics[name]
        assert 0 < numbers["dataset.matching.probe_epe"] < 450
        shares = [numbers[f"dataset.matching.knn_pck{within}"] for within in (8, 16, 32)]
        assert sorted(shares) == shares
        assert 0 <= numbers["dataset.pose.auc5"] <= numbers["dataset.pose.auc20"] <= 1
        for key in (key for key in numbers if not key.endswith(("_low", "_high"))):
            assert numbers[f"{key}_low"] <= numbers[key] <= numbers[f"{key}_high"]
        part = json.loads((evaluation / name / "dataset.json").read_text())
        assert {f"dataset.{key}": value for key, value in part["numbers"].items()} == numbers
    ratio = metrics["mum"]["dataset.matching.probe_epe"] / metrics["random"]["dataset.matching.probe_epe"]
    assert metrics["ratio"]["dataset.mum_over_random"] == pytest.approx(ratio)


def test_the_report_stands_alone(evaluation):
    page = (evaluation / "report.html").read_text()
    assert "random weights" in page
    assert "Where the first encoder fails most" in page
    assert page.count("data:image/png;base64,") == len(list((evaluation / "figures").glob("*.png")))
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "No test frame is among" in page
    table = (evaluation / "report.md").read_text()
    assert "| probe EPE, px ↓ |" in table


def test_evaluating_again_takes_the_kept_features_and_gives_the_same_numbers(evaluation, settings, tiny_root):
    first = (evaluation / "metrics.json").read_text()
    kept = {path: path.stat().st_mtime_ns for path in (tiny_root / "features").iterdir()}
    assert (evaluate(compose(settings)) / "metrics.json").read_text() == first
    assert {path: path.stat().st_mtime_ns for path in (tiny_root / "features").iterdir()} == kept


def test_without_depth_and_pose_nothing_is_claimed(tiny_run, tmp_path):
    """Photos alone have no true matches: the report says nothing of them instead of something wrong."""
    (tmp_path / "photos").mkdir()
    for i in range(12):
        image = np.random.default_rng(i).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / "photos" / f"{i:02d}.jpg"), image)
    settings = [*TINY, *paths(tmp_path), "data.splits.test=0.3", f"data.source={tmp_path / 'photos'}"]
    prepare(compose(settings))
    folder = evaluate(compose([*settings, f"paths.run={tiny_run}"]))
    assert json.loads((folder / "metrics.json").read_text()) == {"mum": {}, "random": {}, "pixels": {}}
    page = (folder / "report.html").read_text()
    assert "no depth, no pose, no label" in page
    assert "test frames are of scenes that were trained on" in page


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluate.size=50", "multiple of the patch size 8 of encoder 'mum'"),
        ("evaluate.overlap=[0.999,1.0]", "widen evaluate.overlap"),
        ("paths.run=/nowhere", r"/nowhere/encoder"),
        ("paths.dataset=/nowhere", "mum prepare"),
        ("encoder=run@7", "its layers are 0 to 1"),
        ("encoder=/nowhere/step-*", r"nothing is /nowhere/step-\*"),
        ("evaluate.benchmarks.dataset.layout=kitti", "expected one of prepared"),
        ("encoder=[run,/nowhere/encoder.onnx]", "'/nowhere/encoder.onnx' is no encoder"),
        ("encoder=[run,{mum: pixels}]", "two are named 'mum'"),
        ("encoder=[timm/vit_smal_patch16_224]", "did you mean vit_small_patch16_224"),
        ("gate=['the best']", "is no rule"),
        ("gate=['dataset.matching.epe < 3']", "is no BENCHMARK.NUMBER"),
        ("gate=['dataset.pose.auc5 > teacher']", "the other encoders are random, pixels"),
        ("paths.served=/nowhere/candidate.json", "paths.served: /nowhere/candidate.json is missing"),
        ("evaluate.only=[halls]", "evaluate.only: no benchmark is named halls; there are dataset"),
    ],
)
def test_what_cannot_be_judged_is_named_and_nothing_is_computed(settings, tmp_path, override, message):
    cfg = compose([*settings, f"paths.evaluation={tmp_path / 'out'}", f"paths.features={tmp_path / 'kept'}", override])
    with pytest.raises(UserError, match=message):
        evaluate(cfg)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("kept/*.npy")), "features were computed before the mistake was found"


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("shards/*.tar", r"\.tar: missing or cut, \d+ bytes of at least \d+; copy the dataset again"),
        ("index.arrow", r"index\.arrow: cut, or no table of a dataset"),
    ],
)
def test_a_dataset_that_was_copied_in_part_is_named_before_anything_is_computed(
    settings, tiny_dataset, tmp_path, pattern, message
):
    shutil.copytree(tiny_dataset, tmp_path / "dataset")
    cut_file(sorted((tmp_path / "dataset").glob(pattern))[-1])
    cfg = compose([*settings, *(f"paths.{name}={tmp_path / name}" for name in ("dataset", "evaluation", "features"))])
    with pytest.raises(UserError, match=message):
        evaluate(cfg)
    assert not (tmp_path / "features").exists()


def test_the_gate_decides_and_keeps_the_evaluation(settings, tmp_path):
    quick = ["encoder=[run,random]", "evaluate.seeds=1", "evaluate.figures=1"]
    output = [*settings, f"paths.evaluation={tmp_path / 'out'}", *quick]
    generous = "gate=['dataset.matching.probe_epe <= 100 * random','dataset.pose.auc5 >= 0.0']"
    evaluate(compose([*output, generous]))
    assert json.loads((tmp_path / "out" / "gate.json").read_text())["promoted"]
    with pytest.raises(NotPromotedError, match=r"mum is not promoted.*random.*broken"):
        evaluate(compose([*output, "gate=['dataset.matching.probe_epe < 0.01 * random']"]))
    assert not json.loads((tmp_path / "out" / "gate.json").read_text())["promoted"]
    assert "broken" in (tmp_path / "out" / "report.html").read_text()


def test_the_gate_is_the_exit_status_of_the_command(settings, tmp_path):
    rule = "gate=['dataset.matching.knn_epe < 0.5']"
    output = run_mum(
        "evaluate",
        *settings,
        f"paths.evaluation={tmp_path / 'out'}",
        "encoder=pixels",
        "evaluate.seeds=1",
        rule,
        status=3,
    )
    assert "pixels is not promoted" in output


def test_layers_and_checkpoints_are_series_with_curves(settings, tmp_path, tiny_run):
    """The layer study and the dynamics of a training, each one evaluation."""
    quick = [*settings, f"paths.evaluation={tmp_path / 'out'}", "evaluate.seeds=1", "evaluate.figures=1"]
    folder = evaluate(compose([*quick, f"encoder=[run@*,{tiny_run}/checkpoints/step-*,pixels]"]))
    metrics = json.loads((folder / "metrics.json").read_text())
    steps = [f"step-{step:08d}" for step in (3, 6)]
    assert list(metrics) == ["mum-layer0", "mum-layer1", *steps, "pixels", "ratio"]
    key = "dataset.matching.knn_epe"
    assert metrics["mum-layer1"][key] == metrics[steps[1]][key] != metrics[steps[0]][key]
    assert {path.name for path in folder.glob("figures/dataset-*.png")} >= {"dataset-layer.png", "dataset-step.png"}
