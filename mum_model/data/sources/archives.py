"""Zip and tar archives of captures, unpacked beside the dataset with what an archive could do to a machine ruled out.

Only files are unpacked, under names inside the archive's own folder; no links, no devices; and never more bytes than
photos and depth maps of an archive of that size could hold, whatever its headers claim.
"""

import hashlib
import os
import stat
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path
from typing import IO

from mum_model.data.captures import RefusedError
from mum_model.data.sources.common import file_inside
from mum_model.files import written_whole

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")

ROOM = 2**30
LARGEST_RATIO = 50
"""Unpacked bytes may reach `ROOM` and so many times the archive: text and empty depth pack well, bombs better."""

MAX_FILES = 10_000_000
BLOCK = 2**20


@dataclass(frozen=True)
class _Member:
    name: str
    modified: float
    content: IO[bytes]


def is_archive(path: Path) -> bool:
    """Whether a path is a file named like an archive."""
    return path.is_file() and path.name.lower().endswith(SUFFIXES)


def unpacked(archive: Path, work: Path) -> Path:
    """The folder of an archive's files, unpacked unless that was done before.

    Args:
        archive: The file.
        work: Folder to unpack under.

    Returns:
        A folder named like the archive.

    Raises:
        RefusedError: It is no archive, cut, encrypted, a bomb, or holds what no archive of captures needs.
    """
    state = archive.stat()
    token = hashlib.sha256(f"{archive.name}/{state.st_size}/{state.st_mtime_ns}".encode()).hexdigest()[:12]
    suffix = next(suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if archive.name.lower().endswith(suffix))
    target = work / token / archive.name[: -len(suffix)]
    if not target.is_dir():
        with _explained(archive), written_whole(target) as folder:
            _unpack(archive, folder, ROOM + LARGEST_RATIO * state.st_size)
    return target


@contextmanager
def _explained(archive: Path) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, LZMAError, EOFError, NotImplementedError) as error:
        raise RefusedError(archive, f"cut or damaged archive ({error}); copy or download it again") from error
    except RuntimeError as error:  # zipfile's word for encryption
        raise RefusedError(archive, f"cannot be unpacked ({error}); expected an archive without a password") from error


def _unpack(archive: Path, folder: Path, room: int) -> None:
    is_zip = archive.name.lower().endswith(".zip")
    for number, member in enumerate(_zip_members(archive) if is_zip else _tar_members(archive)):
        if number >= MAX_FILES:
            raise RefusedError(archive, f"more than {MAX_FILES:,} files in it")
        try:
            target = file_inside(folder, member.name)
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as out:
                room -= _copy(member.content, out, room)
        except ValueError as error:
            raise RefusedError(archive, f"member {error}") from error
        except (FileExistsError, NotADirectoryError) as error:
            raise RefusedError(archive, f"member '{member.name}' is in it twice") from error
        if room < 0:
            raise RefusedError(
                archive, f"unpacks to more than {LARGEST_RATIO} times its size and {ROOM // 2**30} GiB: an archive bomb"
            )
        os.utime(target, (member.modified, member.modified))


def _copy(source: IO[bytes], target: IO[bytes], room: int) -> int:
    """Copy until the end or until there is no room; returns how much."""
    copied = 0
    while copied <= room and (block := source.read(BLOCK)):
        target.write(block)
        copied += len(block)
    return copied


def _zip_members(archive: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise RefusedError(archive, f"member '{info.filename}' is a link or device; expected files alone")
            if not info.is_dir():
                with opened.open(info) as content:
                    yield _Member(info.filename, time.mktime((*info.date_time, 0, 0, -1)), content)


def _tar_members(archive: Path) -> Iterator[_Member]:
    with tarfile.open(archive) as opened:
        for info in opened:
            if not (info.isfile() or info.isdir()):
                raise RefusedError(archive, f"member '{info.name}' is a link or device; expected files alone")
            content = opened.extractfile(info)
            if content is not None:
                yield _Member(info.name, info.mtime, content)
