"""Shards: what is read is what was written, from however many files."""

import resource

import cv2
import numpy as np

from mum_model.data.shards import ShardWriter, decode_image, encode_image, read_extent
from tests.data.made import plain


def test_jpeg_decodes_to_the_pixels_that_opencv_gives():
    ending, content = encode_image(plain().astype(np.uint8), jpeg_quality=90)
    assert ending == ".jpg"
    expected = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_array_equal(decode_image(content), expected)


def test_more_shards_than_a_process_may_open(tmp_path):
    """A dataset has a shard a scene: far more than the limit on open files."""
    extents = []
    for i in range(400):
        writer = ShardWriter(tmp_path / f"{i}.tar")
        extents.append(writer.add("frame.txt", f"scene {i}".encode()))
        writer.close()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (350, hard))
    try:
        for i in [*range(400), *range(400)]:
            assert read_extent(tmp_path / f"{i}.tar", extents[i]) == f"scene {i}".encode()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
