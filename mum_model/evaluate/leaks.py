"""The leak guard: no frame that is tested on may have been trained on."""

import logging
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from mum_model.data.scenes import SceneIndex
from mum_model.errors import UserError
from mum_model.evaluate.cache import written_once
from mum_model.evaluate.views import ImageSet, sha256_of

log = logging.getLogger(__name__)

HASH_SIDE = 16
SAMPLED_SIDE = 64
SAME_WITHIN = 40  # of 256 bits: the distances that this was chosen by are in docs/evaluation.md
FLAT_BELOW = 4.0  # grey levels: the hash of a blank image is noise


def perceptual_hash(image: np.ndarray) -> np.ndarray | None:
    """Signs of the lowest frequencies of an image: alike for the same picture at another size or quality.

    Args:
        image: RGB uint8 `[H, W, 3]`.

    Returns:
        Bits packed into uint8 `[32]`; None for an image too flat to be told from others.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    grey = cv2.resize(grey, (SAMPLED_SIDE, SAMPLED_SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    if grey.std() < FLAT_BELOW:
        return None
    low = cv2.dct(grey)[:HASH_SIDE, :HASH_SIDE].ravel()
    return np.packbits(low > np.median(low[1:]))


def refuse_leaks(tests: Sequence[ImageSet], pretraining: SceneIndex | None, cache: Path | None) -> list[str]:
    """Refuse a test scene that was trained on.

    Args:
        tests: Test images of each benchmark.
        pretraining: The dataset whose `train` split was trained on; None where there is none to look at.
        cache: Folder in which the hashes of the pretraining frames are kept; None keeps nothing.

    Returns:
        What a reader of the report should know of the check, a line each.

    Raises:
        UserError: A test scene has the name of a training scene, or a test frame looks like a training frame.
    """
    if pretraining is None:
        return ["No pretraining dataset was at hand: whether test scenes were trained on is not checked."]
    rows = pretraining.rows("train")
    if pretraining.card["split_by"] != "scene":
        return ["The dataset is split by blocks of frames: test frames are of scenes that were trained on."]
    names = set(pretraining.column("scene")[rows])
    for test in tests:
        shared = sorted({test.views.frames.scene(row) for row in test.rows} & names)
        if shared:
            raise UserError(
                f"{test.name}: {len(shared)} test scenes are in the pretraining dataset {pretraining.directory}: "
                f"{', '.join(shared[:5])}. Judge on other scenes, or prepare and pretrain without these"
            )
    trained = _hashes(pretraining, rows, cache)
    for test in tests:
        _refuse_lookalikes(test, trained, pretraining, rows)
    return [f"No test frame is among the {len(rows)} frames of pretraining, by name of scene and by perceptual hash."]


def _hashes(index: SceneIndex, rows: np.ndarray, cache: Path | None) -> np.ndarray:
    """Hashes of these rows, uint8 `[N, 32]`; flat images are all zeros, which is no image's hash."""
    path = cache and cache / f"{sha256_of(['hashes', index.card['content_sha256'], 'train'])}.npy"
    if path and path.is_file():
        return np.load(path)
    blank = np.zeros(HASH_SIDE**2 // 8, np.uint8)
    found = [perceptual_hash(index.image(int(row))) for row in rows]
    hashes = np.stack([blank if one is None else one for one in found])
    if path:
        with written_once(path) as partial:
            np.save(partial, hashes)
    return hashes


def _refuse_lookalikes(test: ImageSet, trained: np.ndarray, pretraining: SceneIndex, rows: np.ndarray) -> None:
    known = trained.any(axis=1)
    for row in test.rows:
        own = perceptual_hash(test.views.frames.image(row))
        if own is None or not known.any():
            continue
        distance = np.bitwise_count(trained[known] ^ own).sum(axis=1)
        nearest = int(distance.argmin())
        if distance[nearest] <= SAME_WITHIN:
            twin = int(rows[np.flatnonzero(known)[nearest]])
            named = f"{pretraining.column('scene')[twin]}/{pretraining.column('frame')[twin]}"
            raise UserError(
                f"{test.name}: test frame {test.views.frames.label(row)} looks like {named} of the pretraining dataset "
                f"{pretraining.directory} ({distance[nearest]} of 256 bits differ). Judge on other scenes, or prepare "
                "and pretrain without this one"
            )
