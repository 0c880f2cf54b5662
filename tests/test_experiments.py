"""The recipes: each composes, each can fill its packs, each says on its first lines what is known of it."""

import json
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from mum_model.config import CONFIG_DIR, compose
from mum_model.data.batches import ViewCounts
from mum_model.model import load_mum
from mum_model.model.mum import MUM_SIZES, MuMConfig
from tests.conftest import TINY, run_mum

EXPERIMENTS = CONFIG_DIR / "experiment"
RECIPES = sorted(str(path.relative_to(EXPERIMENTS).with_suffix("")) for path in EXPERIMENTS.rglob("*.yaml"))
SMALL_ONES = [*TINY, "machine=cpu", "pretrain.steps=2", "~pretrain.mix.megadepth", "pretrain.log_every=1"]
STUDIES = [name for name in RECIPES if name.startswith("ablation/")]


def runs_of(study):
    """The overrides of the runs of a sweep, as Hydra reads them from its file."""
    ((key, values),) = OmegaConf.load(EXPERIMENTS / f"{study}.yaml").hydra.sweeper.params.items()
    (override,) = OverridesParser.create().parse_overrides([f"{key}={values}"])
    return [[f"experiment={study}", f"{key}={value}"] for value in override.sweep_string_iterator()]


@pytest.mark.parametrize(
    "overrides",
    [[f"experiment={name}"] for name in RECIPES] + [run for study in STUDIES for run in runs_of(study)],
    ids=" ".join,
)
def test_a_recipe_can_be_trained(overrides):
    cfg = compose(overrides)
    MuMConfig(**cfg.model)
    assert cfg.pretrain.frames % cfg.pretrain.pack == 0
    assert (ViewCounts(cfg.pretrain.pack, tuple(cfg.pretrain.views)).shares > 0).all()
    assert cfg.pretrain.size % cfg.model.patch_size == 0
    assert OmegaConf.select(cfg, "data.short_side") >= cfg.pretrain.size


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_begins_with_the_default_and_its_runs_differ(study):
    default = compose(["experiment=ablation_vitb_megadepth"])
    configs = [compose(run) for run in runs_of(study)]
    assert (configs[0].model, configs[0].pretrain) == (default.model, default.pretrain)
    assert len({str((cfg.model, cfg.pretrain)) for cfg in configs}) == len(configs)
    folders = {cfg.paths.run for cfg in configs}
    assert len(folders) == len(configs)
    assert all(Path(folder).parent == Path("outputs") / study for folder in folders)


@pytest.mark.slow
def test_a_study_is_one_command(tiny_dataset, tmp_path):
    """The sweep of the file itself, at the size of a test."""
    here = [f"paths.dataset={tiny_dataset}", f"paths.run={tmp_path}/${{model.encoder_communication}}"]
    run_mum("pretrain", "-m", "experiment=ablation/encoder_communication", *SMALL_ONES, *here)
    models = [load_mum(tmp_path / name / "model") for name in ("False", "True")]
    assert [model.config.encoder_communication for model in models] == [False, True]
    losses = [json.loads((tmp_path / name / "metrics.json").read_text())["loss"] for name in ("False", "True")]
    assert losses[0] != losses[1]


def test_the_papers_recipe_is_that_of_the_paper():
    """Table of the paper, as given in its appendix: 6144 frames of 256 px, 2 to 24 views, 500K steps, peak 2.4e-3."""
    cfg = compose(["experiment=paper_64xA100"])
    assert MuMConfig(**cfg.model) == MUM_SIZES["large"]
    assert (cfg.pretrain.frames, cfg.pretrain.pack, list(cfg.pretrain.views)) == (64 * 96, 96, [2, 24])
    assert cfg.pretrain.learning_rate == pytest.approx(1e-4 * cfg.pretrain.frames / 256)
    assert cfg.pretrain.warmup * cfg.pretrain.steps == 25_000
    assert (cfg.pretrain.weight_decay, list(cfg.pretrain.betas)) == (0.05, [0.9, 0.95])


def test_overrides_may_stand_on_either_side_of_a_flag():
    before = run_mum("pretrain", "experiment=one_gpu_10min", "--cfg", "job")
    assert before == run_mum("pretrain", "--cfg", "job", "experiment=one_gpu_10min")
    assert "frames: 256" in before
