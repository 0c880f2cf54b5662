"""The digest of a dataset's content: what training and evaluation can see of it, the same on every machine."""

import hashlib
from pathlib import Path

from mum_model.data.arrow import read_table
from mum_model.data.scenes import SPLITS


def content_sha256(folder: Path) -> str:
    """Digest of the scenes by name, shard and splits of their frames, and of the sequences.

    Args:
        folder: A dataset folder with its tables; that the shards are those of `scenes.arrow` is not looked at.

    Returns:
        SHA-256 in hexadecimal, which the card names as the dataset's.
    """
    splits = read_table(folder / "index.arrow")["split"]
    content, start = hashlib.sha256(), 0
    for scene in read_table(folder / "scenes.arrow").to_pylist():
        of_frames = splits.slice(start, scene["frames"]).to_pylist()
        start += scene["frames"]
        content.update(f"{scene['source']}/{scene['scene']}\0{scene['sha256']}\0{','.join(of_frames)}\n".encode())
    for split in SPLITS:
        content.update((folder / f"sequences-{split}.arrow").read_bytes())
    return content.hexdigest()
