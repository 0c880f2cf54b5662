"""Trainings with geometry as the objective, through the command: they learn, resume, share, and say what is missing."""

import json
import re
import shutil

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.utils import parameters_to_vector

from mum_model.config import compose
from mum_model.data.batches import ViewSampler
from mum_model.data.scenes import SceneIndex
from mum_model.data.teacher import write_truth_as_teacher
from mum_model.errors import UserError
from mum_model.model import load_encoder
from mum_model.model.feedforward import load_feedforward
from mum_model.model.pixels import normalise_pixels
from mum_model.model.scenes import SceneLayout
from mum_model.prepare import prepare
from mum_model.pretrain.objectives.geometry import MultiView
from mum_model.pretrain.telemetry import read_metrics
from tests.conftest import TINY, paths, run_mum
from tests.data.test_prepare import images_folder
from tests.pretrain.runs import command, losses, torchrun

HEADS = {
    "multiview": ["objective.dim=32", "objective.heads=2", "objective.camera_depth=1", "objective.dense_dim=8"],
    "distil": ["objective.camera_depth=1", "objective.dense_dim=8"],
}


@pytest.fixture(scope="module")
def settings(tiny_run, tiny_dataset, tmp_path_factory):
    """Overrides of each objective, from the tiny run."""
    teacher = tmp_path_factory.mktemp("teacher")
    write_truth_as_teacher(SceneIndex.open(tiny_dataset), teacher)

    def of(objective):
        said = [f"objective.teacher={teacher}"] if objective == "distil" else []
        return [f"objective={objective}", f"pretrain.start_from={tiny_run}", *HEADS[objective], *said]

    return of


@pytest.fixture(scope="module")
def trained(settings, tiny_dataset, tmp_path_factory):
    """A run of six steps of each objective."""
    runs = {}
    for objective in HEADS:
        root = tmp_path_factory.mktemp(objective)
        run_mum("pretrain", *command(root, tiny_dataset, *settings(objective)))
        runs[objective] = root / "run"
    return runs


@pytest.mark.parametrize("objective", HEADS)
def test_what_a_run_leaves(trained, tiny_run, objective):
    run = trained[objective]
    assert {path.name for path in run.iterdir()} == {path.name for path in tiny_run.iterdir()}
    model = load_feedforward(run)
    images = torch.randint(0, 256, (3, 3, 48, 48), generator=torch.Generator().manual_seed(0)).byte()
    with torch.inference_mode():
        output = model(normalise_pixels(images), SceneLayout.of([3]))
    assert output.points.shape == (3, 48, 48, 3)
    assert all(part.isfinite().all() for part in output)
    picture = cv2.imread(str(run / "pictures" / "step-00000006.png"))
    assert picture.shape in [(3 * 48 + 2 * 4, views * 48 + (views - 1) * 4, 3) for views in (2, 3, 4)]
    assert json.loads((run / "metrics.json").read_text())["validation_loss"] is not None


def test_a_frozen_encoder_stays_what_it_was_bit_by_bit(trained, tiny_run):
    expected = load_encoder(tiny_run / "encoder").state_dict()
    for folder in (
        trained["multiview"] / "encoder",
        trained["multiview"] / "checkpoints" / "step-00000006" / "encoder",
    ):
        ours = load_encoder(folder).state_dict()
        assert all(torch.equal(ours[name], value) for name, value in expected.items())
    moved = load_encoder(trained["distil"] / "encoder").state_dict()
    assert not torch.equal(moved["blocks.1.mlp.fc1.weight"], expected["blocks.1.mlp.fc1.weight"])


@pytest.mark.parametrize("objective", [pytest.param("multiview", marks=pytest.mark.slow), "distil"])
def test_a_resumed_run_is_an_unbroken_one_bit_by_bit(trained, settings, tiny_dataset, tmp_path, objective):
    shutil.copytree(trained[objective], tmp_path / "run")
    for name in ("encoder", "model", "checkpoints/step-00000006"):
        shutil.rmtree(tmp_path / "run" / name)
    assert "resuming at step 3" in run_mum("pretrain", *command(tmp_path, tiny_dataset, *settings(objective)))
    assert losses(tmp_path / "run") == losses(trained[objective])
    for name in ("encoder", "model"):
        ours, expected = (run / name / "model.safetensors" for run in (tmp_path / "run", trained[objective]))
        assert ours.read_bytes() == expected.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "stage"), [("multiview", 0), ("multiview", 1), ("multiview", 3), ("distil", 1)])
def test_processes_and_zero_stages_train_alike(settings, tiny_run, tiny_dataset, tmp_path, objective, stage):
    """Two ranks with a frozen encoder give the losses of one; the tolerance is that of sums in another order.

    The rate is low, since Adam makes whole steps of gradients that are nothing but rounding, and gradients are compared
    where the weights are the same, in the first step: later ones enlarge what little the weights differ by.
    """
    accumulated = tmp_path.parent / f"accumulated-{objective}"
    packs = [*settings(objective), "pretrain.pack=4", "pretrain.learning_rate=1e-4"]
    if not accumulated.exists():
        run_mum("pretrain", *command(accumulated, tiny_dataset, *packs))
    torchrun("pretrain", 2, command(tmp_path, tiny_dataset, *packs, f"pretrain.zero_stage={stage}"))
    runs = tmp_path / "run", accumulated / "run"
    assert losses(runs[0]) == pytest.approx(losses(runs[1]), rel=1e-3)
    norms = [read_metrics(run)[0].gradient_norm for run in runs]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    ours, expected = (parameters_to_vector(load_file(run / "model" / "model.safetensors").values()) for run in runs)
    assert torch.dist(ours, expected) < 1e-3 * expected.norm()
    if objective == "multiview":
        frozen = (root / "encoder" / "model.safetensors" for root in (tmp_path / "run", tiny_run))
        assert len({path.read_bytes() for path in frozen}) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "share"), [("multiview", 0.2), ("distil", 0.1)])
def test_two_views_of_a_room_are_learned_by_heart(tiny_run, tmp_path, objective, share):
    """The loss falls to a share of what it was; it fell to 0.06 and 0.03 when this was written."""
    run_mum("prepare", *TINY, *paths(tmp_path), "data.rendered.scenes=1")
    overrides = [f"objective={objective}", f"pretrain.start_from={tiny_run}", "objective.dense_dim=16"]
    if objective == "distil":
        write_truth_as_teacher(SceneIndex.open(tmp_path / "dataset"), tmp_path / "teacher")
        overrides.append(f"objective.teacher={tmp_path / 'teacher'}")
    else:
        overrides.append("objective.dim=64")
    overrides += ["pretrain.steps=150", "pretrain.checkpoint_every=150", "pretrain.crop_scale=1"]
    run_mum("pretrain", *TINY, *paths(tmp_path), *overrides)
    told = losses(tmp_path / "run")
    assert np.mean(told[-5:]) < share * told[0]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("pretrain.start_from=null", "a frozen encoder needs weights"),
        ("pretrain.flip=0.5", "pretrain.flip=0.5: objective=multiview needs 0"),
        ("model.encoder_communication=true", "not for the ablations model.encoder_communication"),
        ("objective.heads=3", "each head must be a multiple of 4 wide"),
    ],
)
def test_settings_that_cannot_be_are_named(settings, setting, message):
    with pytest.raises(UserError, match=message):
        MultiView(compose([*TINY, *settings("multiview"), setting])).create_model()


def test_a_missing_teacher_is_named_before_anything_is_computed(settings, tiny_dataset, tmp_path):
    nowhere = [*settings("distil"), "objective.teacher=nowhere"]
    output = run_mum("pretrain", *command(tmp_path, tiny_dataset, *nowhere), status=2)
    assert re.search(r"nowhere/rendered/room-0-0000\d.safetensors: the teacher's outputs for this scene", output)
    assert "Traceback" not in output
    assert not (tmp_path / "run").exists()


def test_photos_alone_teach_no_geometry(settings, tmp_path):
    index = SceneIndex.open(prepare(compose([*TINY, *paths(tmp_path), f"data.source={images_folder(tmp_path, 10)}"])))
    sequences = index.sequences("train")
    draw = {"frames": 4, "views": (2, 2), "single_view_share": 0, "mix": {}, "seed": 0}
    sampler = ViewSampler(sequences, index.sources(sequences), **draw)
    with pytest.raises(UserError, match="none of its frames has a pose or depth"):
        MultiView(compose([*TINY, *settings("multiview")])).packs(index, sampler, packs=1, rank=0, world_size=1)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1])
def test_a_gradient_is_cut_to_the_longest_that_is_allowed(tiny_run, tiny_dataset, tmp_path, stage):
    """AdamW divides by the size of the gradient, unless that is far below its epsilon: then the weights stay."""
    still = ["pretrain.clip_norm=1e-14", "pretrain.weight_decay=0", "pretrain.steps=2", f"pretrain.zero_stage={stage}"]
    run_mum("pretrain", *command(tmp_path, tiny_dataset, *still, f"pretrain.start_from={tiny_run}"))
    ours, before = (load_file(run / "model" / "model.safetensors") for run in (tmp_path / "run", tiny_run))
    assert all((ours[name] - value).abs().max() < 1e-6 for name, value in before.items())
