"""Versions of datasets by DVC, on a machine without a repository: pull one onto a volume, or push one from it.

Files go straight between the dataset folder and the remote; there is no cache between them that would hold them twice.
A remote is laid out as `dvc push` lays it out, so `dvc` and this module read each other's versions.
"""

import errno
import hashlib
import json
import logging
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import yaml
from aiohttp import ClientError
from botocore.exceptions import BotoCoreError, NoCredentialsError
from dvc.config import Config
from dvc.exceptions import DvcException
from dvc.fs import get_cloud_fs, localfs
from dvc_data.hashfile.build import build
from dvc_data.hashfile.db import HashFileDB, get_odb
from dvc_data.hashfile.tree import Tree
from dvc_objects.fs.utils import as_atomic

from mum_model.errors import UserError
from mum_model.files import written_whole
from mum_model.prepare import content_sha256

logger = logging.getLogger(__name__)

DATASET = "outputs/dataset"
"""The output of `dvc.yaml` that is the dataset."""

GIT_CREDENTIALS = Path("/etc/mum/git/credentials")
"""User names and tokens of git servers, in the format of git-credential-store; the secret `mum-git`."""

CHUNK = 2**20
"""Bytes of a file that are hashed at once."""

CONNECT_SECONDS = 10
"""How long an S3 server may take to be there, five times over; a NetworkPolicy drops what it forbids without a word."""

HASH_OF_A_FOLDER = re.compile(r"[0-9a-f]{32}\.dir")


def push(folder: Path, remote: str) -> dict[str, str]:
    """Version a dataset folder: its revision, and its files in the remote.

    Files that the remote has already are not sent again. The list of the files goes last, so a revision that is in the
    remote is there with everything.

    Args:
        folder: The dataset folder that `prepare` wrote.
        remote: Folder or URL of the DVC remote; empty computes the revision and sends nothing.

    Returns:
        `revision`, by which `pull` finds the dataset again, and `remote`.

    Raises:
        UserError: The remote cannot be reached, has no such bucket, refuses the credentials, or is full.
    """
    _refuse_credentials(remote=remote)
    with _said_plainly(remote or str(folder)):
        # Without a remote the store is but a name: a dry run writes nothing.
        store = _open_remote(_config_of(remote or str(folder)))
        staged, _, listing = build(store, str(folder.absolute()), localfs, "md5", dry_run=not remote)
        assert isinstance(listing, Tree)  # of a folder
        if remote:
            _send(staged, store, {entry.value for _, _, entry in listing})
            store.add(listing.path, listing.fs, listing.oid)
    logger.info("%s is revision %s, %s", folder, listing.oid, f"in {remote}" if remote else "kept in no remote")
    return {"revision": listing.oid, "remote": remote}


def pull(revision: str, repository: str, remote: str, folder: Path) -> dict[str, str]:
    """Bring a version of a dataset onto the volume, whole and checked, or not at all.

    A second attempt goes on with the files that the first one had brought.

    Args:
        revision: The hash of a dataset, as `push` returned it, or a tag, branch or commit of `repository`.
        repository: Address of a git repository with our `dvc.lock`; a hash needs none.
        remote: Folder or URL of the DVC remote; empty takes the default remote of that git revision.
        folder: The dataset folder to write.

    Returns:
        `revision` (the hash, whatever was given), `remote`, and with a repository its address and `commit`.

    Raises:
        UserError: Repository or remote cannot be reached or refuse the credentials, the revision is unknown, a file is
            missing or does not have the content that it should, or the volume is full.
    """
    _refuse_credentials(repository=repository, remote=remote)
    facts, config = _found(revision, repository, remote)
    revision, remote = facts["revision"], config["remote"][config["core"]["remote"]]["url"]
    with _said_plainly(remote, folder):
        store = _open_remote(config)
        listed = _listed(store, revision, remote)
        with written_whole(folder, resume=True) as partial:
            _remove_unlisted(partial, listed)
            _require_content(partial, _fetched(store, listed, partial, remote))
    logger.info("%s is revision %s of %s, %d files", folder, revision, remote, len(listed))
    return {**facts, "remote": remote}


def require_revision(revision: str, repository: str, remote: str) -> None:
    """Look up a version of a dataset, without bringing it.

    Args:
        revision: As for `pull`.
        repository: As for `pull`.
        remote: As for `pull`.

    Raises:
        UserError: Repository or remote cannot be reached or refuse the credentials, or the revision is not there.
    """
    _refuse_credentials(repository=repository, remote=remote)
    facts, config = _found(revision, repository, remote)
    remote = config["remote"][config["core"]["remote"]]["url"]
    with _said_plainly(remote):
        _listed(_open_remote(config), facts["revision"], remote)


def _refuse_credentials(**addresses: str) -> None:
    """Addresses are shown and kept with the run, so they must hold no secret."""
    for name, address in addresses.items():
        if urlsplit(address).password:
            raise UserError(
                f"{name}: a password or token has no place in an address, which everybody sees; put it into the secret "
                "mum-git (git) or mum-dvc (the remote)"
            )


# The remote.


def _config_of(remote: str) -> dict[str, Any]:
    """DVC's configuration for one remote."""
    patience = {"connect_timeout": CONNECT_SECONDS} if remote.startswith("s3://") else {}
    return {"core": {"remote": "store"}, "remote": {"store": {"url": remote, **patience}}}


def _open_remote(config: Mapping[str, Any]) -> HashFileDB:
    kind, settings, path = get_cloud_fs(config, name=config["core"]["remote"])
    filesystem = kind(**settings)
    return get_odb(filesystem, filesystem.join(path, "files", "md5"), hash_name="md5")


def _send(staged: HashFileDB, store: HashFileDB, wanted: set[str]) -> None:
    missing = sorted(wanted - set(store.oids_exist(wanted)))
    logger.info("%d of %d files are to be sent to %s", len(missing), len(wanted), store.path)
    if missing:
        # `staged` holds no bytes: it knows which file of the dataset has which hash.
        paths = [staged.get(oid).path for oid in missing]
        store.add(paths, localfs, missing, check_exists=False, batch_size=store.fs.jobs)


def _listed(store: HashFileDB, revision: str, remote: str) -> dict[str, str]:
    """The files of a revision: hash by path."""
    try:
        content = store.fs.cat_file(store.oid_to_path(revision))
    except FileNotFoundError as error:
        raise UserError(f"{remote}: no dataset {revision} is there ({error}); was it pushed to this remote?") from error
    if f"{_md5(content).hexdigest()}.dir" != revision:
        raise UserError(f"{remote}: the list of files of {revision} is damaged; push the dataset again from its source")
    listed = {entry["relpath"]: entry["md5"] for entry in json.loads(content)}
    for path in map(PurePosixPath, listed):
        if path.is_absolute() or ".." in path.parts:
            raise UserError(f"{remote}: {revision} lists {path}, which lies outside of the dataset")
    return listed


def _remove_unlisted(folder: Path, listed: Mapping[str, str]) -> None:
    """What an earlier attempt left and this revision does not have; downloads that were cut off among them."""
    for path in folder.rglob("*"):
        if path.is_file() and path.relative_to(folder).as_posix() not in listed:
            path.unlink()


def _fetched(store: HashFileDB, listed: Mapping[str, str], folder: Path, remote: str) -> dict[str, str]:
    """Bring the files that are not there; SHA-256 of each by path."""

    def fetch(name: str) -> str:
        path, expected = folder / name, listed[name]
        if path.is_file():
            found, sha256 = _digests(path)
            if found == expected:
                return sha256
        try:
            with as_atomic(localfs, str(path), create_parents=True) as partial:
                store.fs.get_file(store.oid_to_path(expected), partial)
        except FileNotFoundError as error:
            raise UserError(f"{remote}: {name} (object {expected}) of this revision is missing there") from error
        found, sha256 = _digests(path)
        if found != expected:
            raise UserError(f"{remote}: {name} (object {expected}) of this revision is damaged there")
        return sha256

    with ThreadPoolExecutor(store.fs.jobs) as threads:
        return dict(zip(listed, threads.map(fetch, listed), strict=True))


def _digests(path: Path) -> tuple[str, str]:
    """MD5, by which DVC knows a file, and SHA-256, by which the dataset does."""
    md5, sha256 = _md5(), hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            md5.update(chunk)
            sha256.update(chunk)
    return md5.hexdigest(), sha256.hexdigest()


def _md5(content: bytes = b"") -> "hashlib._Hash":
    return hashlib.md5(content, usedforsecurity=False)


@contextmanager
def _said_plainly(remote: str, folder: Path | None = None) -> Iterator[None]:
    """Whatever a remote or a volume refuses, in one line that names it."""
    try:
        yield
    except (PermissionError, NoCredentialsError) as error:
        if getattr(error, "filename", None):
            raise UserError(f"{error.filename}: {error.strerror}; make it readable and writable") from error
        raise UserError(
            f"{remote}: access refused ({error}); expected working AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the "
            "environment: check the secret mum-dvc, and that its owner may read and write there"
        ) from error
    except (BotoCoreError, ClientError) as error:
        raise UserError(
            f"{remote}: cannot be reached ({error}); check AWS_ENDPOINT_URL of the secret mum-dvc and the network"
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"{folder or remote}: no space left; make room on the volume and try again: what is there already is "
                "not brought again"
            ) from error
        raise UserError(f"{remote}: {error}") from error
    except (DvcException, ImportError) as error:
        raise UserError(f"{remote}: {error}") from error


# The revision.


def _found(revision: str, repository: str, remote: str) -> tuple[dict[str, str], Mapping[str, Any]]:
    """The dataset that a revision means, and the remote to get it from, as DVC is configured."""
    is_hash = HASH_OF_A_FOLDER.fullmatch(revision)
    if is_hash and remote:
        return {"revision": revision}, _config_of(remote)
    if is_hash or not repository:
        raise UserError(
            f"revision={revision!r}, remote={remote!r}, repository={repository!r}: expected the hash of a dataset (32 "
            "digits and .dir) and the remote that holds it, or a tag, branch or commit and its repository"
        )
    return _look_up(revision, repository, remote)


def _look_up(revision: str, repository: str, remote: str) -> tuple[dict[str, str], Mapping[str, Any]]:
    """What a git revision says of the dataset, and the remote to get it from, as DVC is configured."""
    place = f"{repository} at {revision}"
    with TemporaryDirectory() as clone:
        # Without file contents, where the server can leave them out; those that are read come one by one.
        _git(
            f"{repository}: cannot be read; expected a git repository and, where it is not public, credentials for its "
            "server in the secret mum-git",
            clone,
            *("clone", "--quiet", "--bare", "--filter=blob:none", "--", repository, "."),
        )
        unknown = f"{repository}: no revision {revision!r}; expected a tag, a branch or a commit of it"
        commit = _git(unknown, clone, "rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}").strip()
        without_lock = f"{place}: no dvc.lock; commit the one that `dvc repro prepare` writes"
        lock = yaml.safe_load(_git(without_lock, clone, "show", f"{commit}:dvc.lock"))
        outputs = [out for stage in lock["stages"].values() for out in stage.get("outs", ())]
        hashes = [out["md5"] for out in outputs if out["path"] == DATASET]
        if not hashes:
            raise UserError(f"{place}: its dvc.lock has no output {DATASET}; commit it after `dvc repro prepare`")
        config = _config_of(remote) if remote else _committed_config(place, clone, commit)
    return {"revision": hashes[0], "repository": repository, "commit": commit}, config


def _committed_config(place: str, clone: str, commit: str) -> Mapping[str, Any]:
    """DVC's configuration as it is in the repository."""
    problem = f"{place}: no default remote; commit one by `dvc remote add --default`, or name one by `remote`"
    settings = Path(clone) / "dvc"
    settings.mkdir()
    (settings / "config").write_text(_git(problem, clone, "show", f"{commit}:.dvc/config"))
    config = Config(str(settings))
    if not config["core"].get("remote"):
        raise UserError(problem)
    return config


def _git(problem: str, clone: str, *arguments: str) -> str:
    """What git prints; it asks nobody for a password."""
    # A helper of git's that answers and neither stores nor forgets: the file belongs to the secret.
    helper = f'!f() {{ test "$1" = get && git credential-store --file={GIT_CREDENTIALS} get; }}; f'
    credentials = ["-c", f"credential.helper={helper}"] if GIT_CREDENTIALS.is_file() else []
    command = ["git", "-C", clone, *credentials, *arguments]
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        reason = next((line for line in done.stderr.splitlines() if line.startswith("fatal: ")), done.stderr.strip())
        raise UserError(f"{problem} ({reason.removeprefix('fatal: ')})")
    return done.stdout


# The content.


def _require_content(folder: Path, sha256_of: Mapping[str, str]) -> None:
    """The card's digest is that of the shards that came."""
    card = folder / "dataset.json"
    if not card.is_file():
        raise UserError(f"{folder}: what was pulled is no dataset, it has no dataset.json; is it the right revision?")
    scenes = pa.ipc.open_file(pa.memory_map(str(folder / "scenes.arrow"))).read_all()
    for shard, sha256 in zip(scenes["shard"].to_pylist(), scenes["sha256"].to_pylist(), strict=True):
        found = sha256_of.get(f"shards/{shard}")
        if found != sha256:
            raise UserError(
                f"{folder}: shard {shard} {'differs from' if found else 'is missing, which is in'} "
                "scenes.arrow: this revision was pushed from a broken dataset; prepare and push it anew"
            )
    if content_sha256(folder) != json.loads(card.read_text())["content_sha256"]:
        raise UserError(
            f"{folder}: dataset.json tells of another content than its tables have: this revision was pushed from a "
            "broken dataset; prepare and push it anew"
        )
