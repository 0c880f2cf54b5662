"""Sequences: which views of a scene are shown together."""

import hashlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from mum_model.data.captures import SequenceRule
from mum_model.data.covisibility import Covisibility


def build_sequences(
    pairs: Covisibility, splits: Sequence[str], rule: SequenceRule, scene: str
) -> Iterator[tuple[str, np.ndarray]]:
    """The sequences of a scene.

    Args:
        pairs: Its co-visible pairs.
        splits: Split of each frame; a sequence never crosses splits.
        rule: How they are formed.
        scene: Its name, which decides the draw of anchors.

    Yields:
        The split of a sequence and its positions in the scene, int32.
    """
    fitting = pairs.within(rule.overlap, rule.angle)
    of_split = np.asarray(splits)
    for split in dict.fromkeys(splits):
        members = np.flatnonzero(of_split == split).astype(np.int32)
        for sequence in KINDS[rule.kind](members, fitting, rule, scene):
            if len(sequence) >= rule.least:
                yield split, sequence


def _anchors(members: np.ndarray, pairs: Covisibility, rule: SequenceRule, scene: str) -> Iterator[np.ndarray]:
    anchors = members
    if rule.anchors is not None and rule.anchors < len(members):
        draw = np.random.default_rng(list(hashlib.sha256(scene.encode()).digest()))
        anchors = np.sort(draw.choice(members, rule.anchors, replace=False))
    for anchor in anchors:
        near = _best_first(pairs, int(anchor), members)
        yield np.concatenate([[anchor], near[: rule.frames - 1]]).astype(np.int32)


def _chains(members: np.ndarray, pairs: Covisibility, rule: SequenceRule, scene: str) -> Iterator[np.ndarray]:
    """Walk from view to view, each view once; the first one left begins the next chain."""
    left = dict.fromkeys(members.tolist())
    while left:
        chain = [next(iter(left))]
        del left[chain[0]]
        while len(chain) < rule.frames:
            onwards = next((view for view in _best_first(pairs, chain[-1], members).tolist() if view in left), None)
            if onwards is None:
                break
            del left[onwards]
            chain.append(onwards)
        yield np.array(chain, np.int32)


def _chunks(members: np.ndarray, pairs: Covisibility, rule: SequenceRule, scene: str) -> Iterator[np.ndarray]:
    cuts = np.arange(1, max(1, len(members) // rule.frames)) * rule.frames
    yield from np.split(members, cuts)


def _whole(members: np.ndarray, pairs: Covisibility, rule: SequenceRule, scene: str) -> Iterator[np.ndarray]:
    yield members[: rule.frames]


def _single(members: np.ndarray, pairs: Covisibility, rule: SequenceRule, scene: str) -> Iterator[np.ndarray]:
    yield from members[:, None]


def _best_first(pairs: Covisibility, view: int, members: np.ndarray) -> np.ndarray:
    views, overlap = pairs.of(view)
    inside = np.isin(views, members)
    views, overlap = views[inside], overlap[inside]
    return views[np.lexsort((views, -overlap))]


KINDS: dict[str, Callable[[np.ndarray, Covisibility, SequenceRule, str], Iterator[np.ndarray]]] = {
    "anchor": _anchors,
    "chain": _chains,
    "chunk": _chunks,
    "whole": _whole,
    "single": _single,
}
