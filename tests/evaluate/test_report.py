"""Evaluations made apart, put side by side: the report that judging all at once would have written."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from mum_model.config import compose
from mum_model.errors import UserError
from mum_model.evaluate import evaluate, report
from mum_model.evaluate.cache import written_once
from mum_model.evaluate.gate import NotPromotedError
from tests.conftest import TINY, paths, run_mum

ENCODERS, BENCHMARKS = ("run", "random", "pixels/16"), ("dataset", "again")
QUICK = [
    "evaluate.figures=1",
    "evaluate.benchmarks.dataset.tasks=[pairs,depth,pose_head]",
    "evaluate.pose_head={model:{dim:16,depth:1,heads:2},batch:4,"
    "optimisation:{iterations:2,learning_rates:[1e-3],weight_decay:0.05,clip:1.0}}",
    "evaluate.linear={iterations:10,batch:4,learning_rates:[1e-2]}",
    "+evaluate.benchmarks.again={layout:prepared,root:null,fit:stretch,tasks:[pairs]}",
]


@pytest.fixture(scope="module")
def settings(tiny_run, tiny_root):
    return [*TINY, *paths(tiny_root), *QUICK]


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluations")


@pytest.fixture(scope="module")
def joint(settings, room):
    """All encoders on all benchmarks at once."""
    return evaluate(compose([*settings, f"paths.evaluation={room / 'joint'}", f"encoder=[{','.join(ENCODERS)}]"]))


@pytest.fixture(scope="module")
def apart(settings, room):
    """Each encoder on each benchmark by itself, as the steps of a pipeline do it."""
    folders = [room / f"{encoder.replace('/', '-')}-{name}" for encoder in ENCODERS for name in BENCHMARKS]
    restricted = [(f"encoder={encoder}", f"evaluate.only={name}") for encoder in ENCODERS for name in BENCHMARKS]
    for folder, (encoder, only) in zip(folders, restricted, strict=True):
        evaluate(compose([*settings, f"paths.evaluation={folder}", encoder, only]))
    return folders


def side_by_side(folders, target, *overrides):
    listed = ",".join(map(str, folders))
    return report(compose([f"paths.evaluations=[{listed}]", f"paths.report={target}", *overrides]))


@pytest.fixture(scope="module")
def merged(apart, room):
    return side_by_side(apart, room / "merged")


def without_times(page):
    """The page without what a clock decides."""
    return re.sub(r"<td>\d+\.\d</td>", "<td></td>", page)


@pytest.mark.slow
def test_what_was_judged_apart_is_what_is_judged_at_once(joint, merged):
    """Numbers, intervals, ratios, tables with what cannot be told from the best, and every picture, byte by byte."""
    for name in ("metrics.json", "candidate.json", "gate.json", "report.md"):
        assert (merged / name).read_text() == (joint / name).read_text()
    pictures = {path.name: path.read_bytes() for path in (joint / "figures").iterdir()}
    assert {path.name: path.read_bytes() for path in (merged / "figures").iterdir()} == pictures
    assert any("depth-failures" in name for name in pictures)
    page = (joint / "report.html").read_text()
    assert without_times((merged / "report.html").read_text()) == without_times(page)
    assert 'class="tied"' in page, "seeds and scenes were resampled in pairs"


def test_the_report_of_one_evaluation_can_be_written_again(joint, tmp_path):
    again = side_by_side([joint], tmp_path / "again")
    assert (again / "metrics.json").read_text() == (joint / "metrics.json").read_text()


def test_parts_are_arrays_and_json_alone(apart):
    listed = json.loads((apart[0] / "parts.json").read_text())
    assert listed == ["mum/dataset"]
    card = json.loads((apart[0] / "mum" / "dataset.json").read_text())
    assert len(card["encoder"]["identity"]) == 2
    assert card["benchmark"]["basis"]["evaluate.size"] == 48
    with np.load(apart[0] / "mum" / "dataset.npz", allow_pickle=False) as arrays:
        assert arrays["values/matching.probe_epe"].shape == (2, 12)
        assert all(arrays[name].dtype != object for name in arrays.files)


def test_the_first_folder_says_who_the_candidate_is_and_gaps_stay_empty(apart, tmp_path):
    """Pixels were judged on one benchmark only."""
    folder = side_by_side([apart[5], apart[0], apart[1]], tmp_path / "out")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert list(metrics) == ["pixels-16", "mum", "ratio"]
    assert list(metrics["ratio"]) == ["again.pixels-16_over_mum"]
    assert json.loads((folder / "candidate.json").read_text())["name"] == "pixels-16"
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(list((folder / "figures").glob("*.png")))


def test_what_two_folders_judged_alike_is_taken_once(joint, apart, tmp_path):
    folder = side_by_side([joint, *apart], tmp_path / "out")
    assert (folder / "metrics.json").read_text() == (joint / "metrics.json").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("evaluate.size=64", r"again differs: .*evaluate.size 64 against 48"),
        ("evaluate.probe.iterations=5", r"again differs: evaluate.probe.iterations 5 against 20"),
        ("evaluate.pairs.test=8", r"again differs: content \w{12} against \w{12}, evaluate.pairs.test 8 against 12"),
        ("seed=4", r"again differs: content .*, seed 4 against 0"),
        ("evaluate.benchmarks.again.fit=crop", r"evaluate.benchmarks.again.fit crop against stretch"),
        ("encoder={mum: pixels/16}", r"'mum' is one encoder in .*run-again.* and another in .*other"),
    ],
)
def test_what_was_judged_otherwise_is_refused_with_its_difference(settings, apart, tmp_path, change, message):
    other = tmp_path / "other"
    quick = ["encoder=pixels/8", "evaluate.only=[again]"]
    evaluate(compose([*settings, *quick, f"paths.evaluation={other}", change]))
    with pytest.raises(UserError, match=message):
        side_by_side([apart[1], other], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_data_under_the_same_name_are_refused(settings, apart, tmp_path):
    run_mum("prepare", *settings, f"paths.dataset={tmp_path / 'rooms'}", "data.rendered.views=5")
    root = f"evaluate.benchmarks.again.root={tmp_path / 'rooms'}"
    alone = ["encoder=pixels/8", "evaluate.only=again", f"paths.dataset={tmp_path / 'none'}", root]
    evaluate(compose([*settings, *alone, f"paths.evaluation={tmp_path / 'other'}"]))
    with pytest.raises(UserError, match=r"again differs: content \w{12} against \w{12}\. Evaluate one"):
        side_by_side([apart[1], tmp_path / "other"], tmp_path / "out")


def test_what_is_no_evaluation_is_named(apart, tmp_path):
    with pytest.raises(UserError, match=r"/nowhere has no parts.json; expected folders that `mum evaluate` wrote"):
        side_by_side([apart[0], "/nowhere"], tmp_path / "out")
    shutil.copytree(apart[0], tmp_path / "cut")
    table = tmp_path / "cut" / "mum" / "dataset.npz"
    table.write_bytes(table.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"dataset.json: it or the .npz beside it is missing or damaged"):
        side_by_side([tmp_path / "cut"], tmp_path / "out")
    with pytest.raises(UserError, match=r"is one of paths.evaluations and would be replaced"):
        side_by_side([apart[0]], apart[0])


def test_the_gate_of_the_report_knows_what_is_served(apart, tmp_path):
    """A candidate is promoted, its record kept; the next one must beat it, by the same command and its exit status."""
    rule = "gate=['again.matching.knn_epe < served']"
    folder = side_by_side([apart[1]], tmp_path / "first", rule)
    assert "nothing is served yet" in (folder / "report.html").read_text()
    kept = shutil.copy(folder / "candidate.json", tmp_path / "served.json")
    with pytest.raises(NotPromotedError, match=r"mum is not promoted; .*served: .*broken"):
        side_by_side([apart[1]], tmp_path / "second", rule, f"paths.served={kept}")
    decision = json.loads((tmp_path / "second" / "gate.json").read_text())
    assert (decision["promoted"], decision["candidate"]) == (False, "mum")
    assert "broken" in (tmp_path / "second" / "report.html").read_text()
    arguments = [f"paths.evaluations={apart[1]}", f"paths.report={tmp_path / 'third'}", f"paths.served={kept}", rule]
    assert "mum is not promoted" in run_mum("report", *arguments, status=3)
    assert (tmp_path / "third" / "metrics.json").read_text() == (folder / "metrics.json").read_text()


def test_the_first_whole_file_stays_and_nothing_else_is_left(tmp_path):
    """Two writers at once, and one that fails in the middle."""
    path = tmp_path / "kept" / "table.npy"
    with written_once(path) as late:
        late.write_text("half of the la")
        with written_once(path) as early:
            early.write_text("early")
        assert path.read_text() == "early"
        late.write_text("late")
    with pytest.raises(IsADirectoryError), written_once(tmp_path / "kept" / "other.npy") as partial:
        partial.parent.write_text("a writer that fails")
    assert [(one.name, one.read_text()) for one in path.parent.iterdir()] == [("table.npy", "early")]


@pytest.mark.slow
def test_two_processes_share_the_kept_features(settings, apart, tmp_path):
    """Both are after the same tables at once; neither takes the other's half-written one."""
    arguments = [*settings, "encoder=run", "evaluate.only=dataset", f"paths.features={tmp_path / 'features'}"]
    command = [sys.executable, "-m", "mum_model.cli", "evaluate", *arguments]
    outs = [tmp_path / "a", tmp_path / "b"]
    running = [subprocess.Popen([*command, f"paths.evaluation={out}"], stderr=subprocess.DEVNULL) for out in outs]
    assert [process.wait(timeout=600) for process in running] == [0, 0]
    expected = (apart[0] / "metrics.json").read_text()
    assert [(out / "metrics.json").read_text() for out in outs] == [expected, expected]
    assert not [path.name for path in (tmp_path / "features").iterdir() if path.name.startswith(".")]
