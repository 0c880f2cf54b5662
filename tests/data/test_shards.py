"""Shards: what is read is what was written, from however many files."""

import resource

from mum_model.data.shards import ShardWriter, read_extent


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
