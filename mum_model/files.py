"""Writing so that nothing half-written is ever mistaken for a result."""

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mum_model.errors import UserError


@contextmanager
def written_whole(target: Path, *, resume: bool = False) -> Iterator[Path]:
    """Fill a folder under a temporary name; it takes its real name only when everything in it was written.

    Args:
        target: The folder to write; one that is there already is replaced at the end.
        resume: Keep what an interrupted writing left, for the next one to go on with.

    Yields:
        A folder beside the target to write into, empty unless there is something to go on with.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    if not resume:
        shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(exist_ok=resume)
    try:
        yield partial
    except BaseException:
        if not resume:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    if target.exists():
        shutil.rmtree(target)
    partial.rename(target)


@contextmanager
def alone_in(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Keep other processes, on any machine that shares the file system, from writing into the same folder.

    Args:
        folder: A hidden file beside it holds the lock, which ends with the process, however that ends.
        wait: Until another process that is writing there has ended, instead of giving up.

    Raises:
        UserError: Another process is writing there.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise UserError(
                f"{folder}: another process is writing here; let it end, or choose another folder"
            ) from error
        yield


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all.

    Args:
        path: The file; its folder is made where missing.
        text: Its new content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all.

    Args:
        path: The file; its folder is made where missing.
        value: Anything that JSON can hold; not-a-number is refused, since other readers refuse it.

    Raises:
        ValueError: A number is not finite.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal.

    Args:
        path: The file.

    Returns:
        64 characters.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
