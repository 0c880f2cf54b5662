"""The evaluation stage through its own door."""

import json
import re

import cv2
import numpy as np
import pytest

from mum_model.config import compose
from mum_model.errors import UserError
from mum_model.evaluate import evaluate
from mum_model.prepare import prepare
from tests.conftest import TINY, paths


@pytest.fixture(scope="module")
def evaluation(tiny_run, tiny_root):
    return evaluate(compose([*TINY, *paths(tiny_root)]))


def test_every_encoder_has_its_numbers(evaluation):
    metrics = json.loads((evaluation / "metrics.json").read_text())
    assert metrics.keys() == {"mum", "random", "pixels", "ratio"}
    for name in ("mum", "random", "pixels"):
        assert 0 < metrics[name]["matching_probe_epe"] < 450
        assert 0 <= metrics[name]["matching_knn_recall"] <= 1
        assert 0 <= metrics[name]["pose_auc5"] <= metrics[name]["pose_auc20"] <= 1
        matching = json.loads((evaluation / name / "matching.json").read_text())
        assert matching["probe_epe"] == metrics[name]["matching_probe_epe"]
    ratio = metrics["mum"]["matching_probe_epe"] / metrics["random"]["matching_probe_epe"]
    assert metrics["ratio"]["mum_over_random"] == pytest.approx(ratio)


def test_the_report_stands_alone(evaluation):
    page = (evaluation / "report.html").read_text()
    assert "random weights" in page
    assert page.count("data:image/png;base64,") == 2
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert len(list((evaluation / "figures").glob("*.png"))) == 2


def test_evaluating_again_gives_the_same_numbers(evaluation, tiny_root):
    first = (evaluation / "metrics.json").read_text()
    assert (evaluate(compose([*TINY, *paths(tiny_root)])) / "metrics.json").read_text() == first


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


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluate.size=50", "multiple of the encoder's patch size 8"),
        ("evaluate.overlap=[0.999,1.0]", "widen evaluate.overlap"),
        ("paths.run=/nowhere", r"/nowhere/encoder"),
        ("paths.dataset=/nowhere", "mum prepare"),
    ],
)
def test_what_cannot_be_judged_is_named(tiny_run, tiny_root, override, message):
    with pytest.raises(UserError, match=message):
        evaluate(compose([*TINY, *paths(tiny_root), override]))
