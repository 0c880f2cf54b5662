"""The recipes: each composes, each can fill its packs, each says on its first lines what is known of it."""

import pytest
from omegaconf import OmegaConf

from mum_model.config import CONFIG_DIR, compose
from mum_model.data.batches import ViewCounts
from mum_model.model.mum import MUM_SIZES, MuMConfig
from tests.conftest import run_mum

RECIPES = sorted(path.stem for path in (CONFIG_DIR / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_can_be_trained(name):
    cfg = compose([f"experiment={name}"])
    MuMConfig(**cfg.model)
    assert cfg.pretrain.frames % cfg.pretrain.pack == 0
    assert (ViewCounts(cfg.pretrain.pack, tuple(cfg.pretrain.views)).shares > 0).all()
    assert cfg.pretrain.size % cfg.model.patch_size == 0
    assert OmegaConf.select(cfg, "data.short_side") >= cfg.pretrain.size


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
