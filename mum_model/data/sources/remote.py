"""Captures behind a URL, fetched beside the dataset."""

import hashlib
import os
from datetime import datetime
from pathlib import Path
from typing import Any

from mum_model.data.remote import reach, unreadable
from mum_model.data.sources.common import file_inside
from mum_model.errors import UserError


def fetched(url: str, work: Path) -> Path:
    """The folder, or file, behind a URL as a local path; what was fetched before and has not changed stays.

    Args:
        url: Of a folder or of one file.
        work: Folder to fetch to.

    Returns:
        The local path, named like the last part of the URL.

    Raises:
        UserError: The URL cannot be read, holds nothing, or a name in it leads out of its folder.
    """
    storage, root = reach(url)
    try:
        found = storage.find(root, detail=True)
    except Exception as error:  # each storage has its own errors, and none may pass as a traceback
        raise unreadable(url, error) from error
    if not found:
        raise UserError(f"data.source={url}: nothing there; expected a capture, a dataset or an archive")
    target = work / hashlib.sha256(url.encode()).hexdigest()[:12] / root.rpartition("/")[2]
    wanted: set[Path] = set()
    for name, about in sorted(found.items()):
        inner = name.removeprefix(root).lstrip("/")
        try:
            local = file_inside(target, inner) if inner else target
            _fetch(storage, name, about, local)
            wanted.add(local)
        except ValueError as error:
            raise UserError(f"data.source={url}: {error}") from error
        except Exception as error:
            raise unreadable(storage.unstrip_protocol(name), error) from error
    for path in target.rglob("*"):
        if path.is_file() and path not in wanted:  # gone there, so gone here
            path.unlink()
    return target


def _fetch(storage: Any, name: str, about: dict[str, Any], target: Path) -> None:
    modified = about.get("LastModified") or about.get("mtime") or about.get("created") or 0.0
    stamp = modified.timestamp() if isinstance(modified, datetime) else float(modified)
    if target.is_file() and (target.stat().st_size, target.stat().st_mtime) == (about["size"], stamp):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    storage.get_file(name, str(partial))
    os.utime(partial, (stamp, stamp))
    partial.replace(target)
