"""The leak guard and the kept features."""

import shutil

import cv2
import numpy as np
import pytest
import torch

from mum_model.config import compose
from mum_model.data.scenes import SceneIndex
from mum_model.errors import UserError
from mum_model.evaluate import evaluate
from mum_model.evaluate.benchmarks.prepared import PreparedFrames
from mum_model.evaluate.encoders.base import Tokens
from mum_model.evaluate.encoders.pixels import PixelEncoder
from mum_model.evaluate.features import FeatureStore
from mum_model.evaluate.leaks import SAME_WITHIN, perceptual_hash
from mum_model.evaluate.views import ImageSet, Views
from mum_model.prepare import prepare
from tests.conftest import TINY, paths


def distance(a, b):
    return int(np.bitwise_count(perceptual_hash(a) ^ perceptual_hash(b)).sum())


def test_hashes_know_a_picture_again_and_tell_others_apart(tiny_dataset):
    index = SceneIndex.open(tiny_dataset)
    images = [index.image(row) for row in range(0, len(index), 6)]  # a view of each room
    for image in images:
        small = cv2.resize(image, (40, 40), interpolation=cv2.INTER_AREA)
        again = cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 80])[1], cv2.IMREAD_COLOR)
        assert distance(image, small) <= SAME_WITHIN
        assert distance(image, again) <= SAME_WITHIN
    others = [distance(a, b) for i, a in enumerate(images) for b in images[:i]]
    assert min(others) > 1.5 * SAME_WITHIN
    assert perceptual_hash(np.full((64, 64, 3), 90, np.uint8)) is None


@pytest.fixture(scope="module")
def photographed(tiny_dataset, tmp_path_factory):
    """Benchmark of photos: four scenes, one of them with a training frame under another name and quality."""
    folder = tmp_path_factory.mktemp("photos")
    index = SceneIndex.open(tiny_dataset)
    stolen = index.image(int(index.rows("train")[3]))
    rng = np.random.default_rng(0)
    for scene in range(4):
        (folder / f"scene{scene}").mkdir()
        for i in range(6):
            image = cv2.GaussianBlur(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8), (0, 0), 3) * 2
            cv2.imwrite(str(folder / f"scene{scene}" / f"{i}.jpg"), image)
    return folder, stolen


def judged_on(folder, benchmark, tiny_root):
    prepare(compose([*TINY, f"data.source={folder}", f"paths.dataset={benchmark}", "data.splits={val:0.25,test:0.5}"]))
    settings = [*TINY, *paths(tiny_root), f"paths.evaluation={benchmark}-out", "encoder=run"]
    return evaluate(compose([*settings, f"evaluate.benchmarks.dataset.root={benchmark}"]))


def test_a_frame_of_pretraining_under_another_name_is_refused(photographed, tiny_root, tiny_run, tmp_path):
    folder, stolen = photographed
    judged_on(folder, tmp_path / "before", tiny_root)  # other pictures are no leak
    for scene in folder.iterdir():
        cv2.imwrite(str(scene / "3.jpg"), cv2.resize(stolen, (80, 80))[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
    with pytest.raises(UserError, match=r"dataset: test frame scene\d/3.* looks like room-\S+ of the pretraining"):
        judged_on(folder, tmp_path / "after", tiny_root)


def test_a_scene_of_pretraining_is_refused_by_name(tiny_dataset, tiny_root, tiny_run, tmp_path):
    shutil.copytree(tiny_dataset, tmp_path / "same")
    overrides = [*TINY, *paths(tiny_root), f"paths.evaluation={tmp_path / 'out'}"]
    overrides += [f"paths.dataset={tmp_path / 'trained'}", "data.splits.seed=7"]
    prepare(compose(overrides))  # the same rooms, otherwise split: some that are tested on are now trained on
    benchmark = f"evaluate.benchmarks.dataset.root={tmp_path / 'same'}"
    with pytest.raises(UserError, match=r"test scenes are in the pretraining dataset .*trained: room-0-0"):
        evaluate(compose([*overrides, benchmark, "encoder=run"]))
    assert not (tmp_path / "out").exists()


class Broken(PixelEncoder):
    def tokens(self, images, layer):
        patches = super().tokens(images, layer).patches
        patches[patches.shape[0] // 2, 0, 0] = float("nan")
        return Tokens(patches, patches.mean(1))


def images_of(dataset, size=48):
    return ImageSet(Views(PreparedFrames("rooms", SceneIndex.open(dataset)), size, "crop"), range(10))


def test_features_that_are_not_finite_name_encoder_and_image(tiny_dataset, tmp_path):
    with pytest.raises(UserError, match=r"encoder 'b': its features of room-\S+/0005 are not finite"):
        FeatureStore(tmp_path, -1).get(Broken("b", 8), images_of(tiny_dataset), "patches")
    assert not list(tmp_path.glob("*.npy"))


def test_features_are_kept_by_content(tiny_dataset, tmp_path):
    images = images_of(tiny_dataset)
    store = FeatureStore(tmp_path, -1)
    first = store.get(PixelEncoder("a", 8), images, "patches")
    expected = PixelEncoder("a", 8).tokens(images.read(range(10)), -1).patches
    torch.testing.assert_close(first[torch.arange(10)].cpu(), expected, rtol=1e-3, atol=1e-3)
    assert len(list(tmp_path.glob("*.npy"))) == 1
    store.forget()
    store.get(PixelEncoder("another name", 8), images_of(tiny_dataset), "patches")
    assert len(list(tmp_path.glob("*.npy"))) == 1, "the name decides nothing"
    for other in (PixelEncoder("a", 16), PixelEncoder("a", 8)):
        store.get(other, images_of(tiny_dataset, size=64), "patches")
    FeatureStore(tmp_path, 0).get(PixelEncoder("a", 8), images, "patches")
    store.get(PixelEncoder("a", 8), images, "summary")
    assert len(list(tmp_path.glob("*.npy"))) == 5
