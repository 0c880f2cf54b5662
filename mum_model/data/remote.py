"""Places behind a URL: `s3://`, `gs://`, or whatever else fsspec knows. One way of reaching them, and of failing to.

Credentials and endpoints come from where the storage's own tools take them: for S3 `AWS_*` variables and `~/.aws`, for
Google Cloud Storage `GOOGLE_APPLICATION_CREDENTIALS` or the machine's own account.
"""

import os
from typing import Any

import fsspec

from mum_model.errors import UserError

NOT_ALLOWED = (401, 403)


def is_url(place: str | os.PathLike[str]) -> bool:
    """Whether a place is a URL and not a path."""
    return "://" in str(place)


def reach(url: str) -> tuple[Any, str]:
    """The storage behind a URL, and the URL's name in it. Cheap: fsspec keeps storages, for each process its own.

    Args:
        url: Of a file or folder.

    Returns:
        fsspec's file system, and the path in it.

    Raises:
        UserError: Nothing is known that reads such a URL.
    """
    try:
        storage, path = fsspec.url_to_fs(url)
    except Exception as error:  # each storage has its own errors, and none may pass as a traceback
        raise unreadable(url, error) from error
    return storage, path.rstrip("/")


def unreadable(url: str, error: BaseException) -> UserError:
    """What to tell a person when a URL cannot be read.

    Args:
        url: What was to be read.
        error: What came of it.

    Returns:
        An error that names the URL, the reason and what to do.
    """
    reason = " ".join(str(error).split())[:200]
    return UserError(f"{url}: cannot be read ({type(error).__name__}: {reason}); {_advice(error)}")


def _advice(error: BaseException) -> str:
    if isinstance(error, ImportError):
        return "install what reads it: s3fs for s3://, gcsfs for gs:// (pip install 'mum-pipeline[gcs]')"
    if isinstance(error, PermissionError) or getattr(error, "code", None) in NOT_ALLOWED:
        return "check the credentials, and that they may read this place"
    if isinstance(error, FileNotFoundError):
        return "check the URL; if it is right, what is there is not whole: upload it again"
    if isinstance(error, ValueError):
        return "check the URL; it should begin with s3://, gs:// or another storage that fsspec knows"
    return "check the network and the endpoint, then run again"
