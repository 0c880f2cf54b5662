"""Versions of datasets: what is pushed comes back whole, nothing goes twice, and whatever fails is named."""

import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest
import requests
import yaml
from kfp import dsl
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

from components import versions
from components.dataset_version import dataset_version
from components.versions import pull, push
from mum_model.config import compose
from mum_model.errors import UserError
from mum_model.prepare import prepare
from tests.conftest import TINY
from tests.first_party import ROOT

REMOTE = "s3://lab/datasets"
NOWHERE = "http://127.0.0.1:1"


@pytest.fixture(scope="module")
def server():
    """A server that speaks S3's API with a bucket `lab`, and a key that may use it."""
    moto = ThreadedMotoServer(port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        environment.setenv("AWS_ACCESS_KEY_ID", "a-key-of-the-test")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-of-the-test")
        boto3.client("s3").create_bucket(Bucket="lab")
        yield f"http://{host}:{port}"
    moto.stop()


@pytest.fixture
def s3(server):
    """A client of the empty bucket; connections of earlier tests are forgotten, as in a process of its own."""
    S3FileSystem.clear_instance_cache()
    bucket = boto3.resource("s3").Bucket("lab")
    bucket.objects.delete()
    return bucket


def objects(bucket):
    return {found.key: found.last_modified for found in bucket.objects.all()}


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_comes_back_whole(s3, tiny_dataset, tmp_path):
    pushed = push(tiny_dataset, REMOTE)
    pulled = pull(pushed["revision"], "", REMOTE, tmp_path / "back")
    assert content(tmp_path / "back") == content(tiny_dataset)
    assert pulled == pushed == {"revision": pushed["revision"], "remote": REMOTE}
    assert {path.name for path in tmp_path.iterdir()} == {"back"}


def test_same_dataset_is_not_sent_again(s3, tiny_dataset):
    first = push(tiny_dataset, REMOTE)
    sent = objects(s3)
    assert push(tiny_dataset, REMOTE) == first
    assert objects(s3) == sent
    assert len(sent) == len({*content(tiny_dataset).values()}) + 1, "a file each, and the list of them"


def test_another_scene_sends_its_shard_alone(s3, tiny_dataset, tmp_path):
    push(tiny_dataset, REMOTE)
    sent = objects(s3)
    shutil.copytree(tiny_dataset, tmp_path / "dataset")
    larger = prepare(compose([*TINY, "data.rendered.scenes=9", f"paths.dataset={tmp_path / 'dataset'}"]))
    push(larger, REMOTE)
    tars = [s3.Object(key).get()["Body"].read() for key in objects(s3).keys() - sent.keys()]
    shards = {path.read_bytes() for path in (larger / "shards").iterdir()}
    assert len(shards) == 9
    assert len(shards & {*tars}) == 1


def test_without_a_remote_nothing_is_sent(s3, tiny_dataset):
    before = content(tiny_dataset)
    revision = push(tiny_dataset, "")["revision"]
    assert content(tiny_dataset) == before
    assert objects(s3) == {}
    assert push(tiny_dataset, REMOTE)["revision"] == revision


def test_killed_pull_goes_on(tiny_dataset, tmp_path):
    revision = push(tiny_dataset, str(tmp_path / "remote"))["revision"]
    target = tmp_path / "datasets" / "1"
    with serving(partial(Halting, directory=str(tmp_path / "remote"))) as http:
        address = f"http://127.0.0.1:{http.server_port}"
        with started(f"pull({revision!r}, '', {address!r}, Path({str(target)!r}))") as process:
            assert Halting.halted.wait(60)
            deadline = time.monotonic() + 60
            while len(brought := arrived(target.with_name(".1.partial"))) < ANSWERED - 1:  # one was for the list
                assert time.monotonic() < deadline
                time.sleep(0.05)
            process.kill()
        assert not target.exists()
        Halting.go_on.set()
        Halting.asked.clear()
        pull(revision, "", address, target)
    assert content(target) == content(tiny_dataset)
    assert len(Halting.asked) == len(content(tiny_dataset)) - len(brought) + 1, "the list, and what was not there"


ANSWERED = 8


def arrived(folder):
    """Files that are whole."""
    return [path for path in content(folder) if not path.name.endswith(".tmp")] if folder.exists() else []


class Halting(SimpleHTTPRequestHandler):
    """A DVC remote over HTTP that answers some requests and then keeps all waiting."""

    asked: list[str] = []  # noqa: RUF012, one server
    halted, go_on = threading.Event(), threading.Event()

    def do_GET(self):
        self.asked.append(self.path)
        if len(self.asked) > ANSWERED:
            self.halted.set()
            self.go_on.wait(60)
        super().do_GET()

    def log_message(self, *arguments):
        pass


def test_what_an_attempt_left_is_checked(s3, tiny_dataset, tmp_path):
    revision = push(tiny_dataset, REMOTE)["revision"]
    left = tmp_path / ".back.partial"
    shutil.copytree(tiny_dataset, left)
    (left / "index.arrow").write_bytes(b"cut")
    (left / "shards" / "of-another-revision.tar").touch()
    pull(revision, "", REMOTE, tmp_path / "back")
    assert content(tmp_path / "back") == content(tiny_dataset)


# Git repositories with a dataset.


@pytest.fixture(scope="module")
def repository(tiny_dataset, tmp_path_factory):
    """A project whose dataset DVC tracks and has pushed, at tag `v1`; later revisions have none."""
    root = tmp_path_factory.mktemp("repository")
    project = root / "lab.git"
    (project / ".dvc").mkdir(parents=True)
    (project / ".dvc" / "config").write_text(
        f"[core]\nremote = store\nanalytics = false\n['remote \"store\"']\nurl = {root / 'remote'}\n"
    )
    stage = {"cmd": f"cp -r {tiny_dataset} outputs/dataset", "outs": ["outputs/dataset"]}
    (project / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"prepare": stage}}))
    (project / "outputs").mkdir()
    run(project, "git", "init", "--quiet", "--initial-branch=main")
    run(project, "git", "config", "uploadpack.allowFilter", "true")
    run(project, sys.executable, "-m", "dvc", "repro", "--quiet")
    run(project, sys.executable, "-m", "dvc", "push", "--quiet")
    save(project, "Dataset", tag="v1")
    (project / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    save(project, "None yet", tag="empty")
    (project / "dvc.lock").unlink()
    save(project, "Not run", tag="unlocked")
    return project


def run(folder, *command):
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


def save(project, message, tag):
    who = ["-c", "user.name=test", "-c", "user.email=test@test"]
    run(project, "git", "add", "--all")
    run(project, "git", *who, "commit", "--quiet", "--message", message)
    run(project, "git", "tag", tag)


def revision_in(project):
    text = subprocess.run(
        ["git", "show", "v1:dvc.lock"], cwd=project, check=True, capture_output=True, text=True
    ).stdout
    return yaml.safe_load(text)["stages"]["prepare"]["outs"][0]["md5"]


def test_same_revision_and_layout_as_dvc(repository, tiny_dataset, tmp_path):
    assert push(tiny_dataset, str(tmp_path / "ours"))["revision"] == revision_in(repository)
    assert content(tmp_path / "ours") == content(repository.with_name("remote"))


@pytest.mark.parametrize("abbreviated", [False, True])
def test_git_revision(repository, tiny_dataset, tmp_path, abbreviated):
    commit = subprocess.run(["git", "rev-parse", "v1"], cwd=repository, capture_output=True, text=True).stdout.strip()
    pulled = pull(commit[:10] if abbreviated else "v1", str(repository), "", tmp_path / "back")
    assert content(tmp_path / "back") == content(tiny_dataset)
    assert pulled == {
        "revision": revision_in(repository),
        "repository": str(repository),
        "commit": commit,
        "remote": str(repository.with_name("remote")),
    }


def test_git_server_with_a_password(repository, tiny_dataset, tmp_path, monkeypatch):
    with serving(partial(GitServer, repository.parent)) as http:
        host = f"127.0.0.1:{http.server_port}"
        address = f"http://{host}/lab.git"
        with pytest.raises(UserError, match=f"{address}: cannot be read; .*mum-git.*could not read Username"):
            pull("v1", address, "", tmp_path / "back")
        credentials = tmp_path / "credentials"
        monkeypatch.setattr(versions, "GIT_CREDENTIALS", credentials)
        for password, problem in (("of-another", "Authentication failed"), ("geheim", None)):
            credentials.write_text(f"http://ada:{password}@{host}\n")
            credentials.chmod(0o400)
            if problem:
                with pytest.raises(UserError, match=problem) as failure:
                    pull("v1", address, "", tmp_path / "back")
                assert password not in str(failure.value)
            else:
                pulled = pull("v1", address, "", tmp_path / "back")
                assert password not in json.dumps(pulled)
            assert credentials.read_text() == f"http://ada:{password}@{host}\n", "the secret stays as it is"
            credentials.unlink()
    assert content(tmp_path / "back") == content(tiny_dataset)


class GitServer(BaseHTTPRequestHandler):
    """Git's own HTTP server behind a password."""

    def __init__(self, root, *arguments):
        self.root = root
        super().__init__(*arguments)

    def do_GET(self):
        if self.headers["Authorization"] != "Basic " + base64.b64encode(b"ada:geheim").decode():
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="lab"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        path, _, query = self.path.partition("?")
        environment = {
            **os.environ,
            "GIT_PROJECT_ROOT": str(self.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_PROTOCOL": self.headers["Git-Protocol"] or "",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers["Content-Type"] or "",
            "HTTP_CONTENT_ENCODING": self.headers["Content-Encoding"] or "",
        }
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        done = subprocess.run(["git", "http-backend"], input=body, env=environment, capture_output=True, check=True)
        head, _, answer = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().splitlines())
        self.send_response(int(headers.pop("Status", "200").split()[0]))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer)

    do_POST = do_GET  # noqa: N815, the name that http.server looks for

    def log_message(self, *arguments):
        pass


@contextmanager
def serving(handler):
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield http
        http.shutdown()


# What goes wrong, and what is said then.

HASH = "0" * 32 + ".dir"


@pytest.mark.parametrize(
    ("revision", "repository_", "remote", "said"),
    [
        ("v2", "REPOSITORY", "", "REPOSITORY: no revision 'v2'; expected a tag"),
        ("empty", "REPOSITORY", "", "REPOSITORY at empty: its dvc.lock has no output outputs/dataset"),
        ("unlocked", "REPOSITORY", "", "REPOSITORY at unlocked: no dvc.lock"),
        ("v1", "/no/repository", "", "/no/repository: cannot be read"),
        ("v1", "http://ada:geheim@host/lab.git", "", "repository: a password .* mum-git"),
        ("v1", "", REMOTE, "revision='v1', .* expected the hash of a dataset"),
        ("", "", "", "revision='', .* expected the hash of a dataset"),
        (HASH, "", "", f"revision='{HASH}', remote='', .* expected the hash of a dataset"),
        (HASH, "", REMOTE, f"{REMOTE}: no dataset {HASH} is there"),
        (HASH, "", "s3://nobody/x", "s3://nobody/x: .*The specified bucket does not exist"),
        (HASH, "", "/no/folder", f"/no/folder: no dataset {HASH} is there"),
        (HASH, "", "ftp.lab://x", "ftp.lab://x: .*Unsupported URL"),
    ],
)
def test_what_cannot_be_pulled_is_named(s3, repository, tmp_path, revision, repository_, remote, said):
    with pytest.raises(UserError, match=said.replace("REPOSITORY", str(repository))) as failure:
        pull(revision, repository_.replace("REPOSITORY", str(repository)), remote, tmp_path / "back")
    assert "\n" not in str(failure.value)
    assert "geheim" not in str(failure.value)
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("fault", ["missing", "damaged"])
@pytest.mark.parametrize("what", ["list", "shard"])
def test_damaged_remote_is_named_and_nothing_is_taken_for_a_dataset(s3, tiny_dataset, tmp_path, what, fault):
    revision = push(tiny_dataset, REMOTE)["revision"]
    listed = json.loads(object_of(s3, revision).get()["Body"].read())
    shard = next(entry for entry in listed if entry["relpath"].endswith(".tar"))
    damaged = object_of(s3, revision if what == "list" else shard["md5"])
    damaged.delete() if fault == "missing" else damaged.put(Body=b"something else")
    name = revision if what == "list" else shard["relpath"]
    with pytest.raises(UserError, match=f"{REMOTE}: .*{name}") as failure:
        pull(revision, "", REMOTE, tmp_path / "back")
    assert ("damaged" in str(failure.value)) == (fault == "damaged")
    assert not (tmp_path / "back").exists()


def object_of(bucket, oid):
    return bucket.Object(f"datasets/files/md5/{oid[:2]}/{oid[2:]}")


def test_dataset_that_was_broken_before_it_was_pushed(s3, tiny_dataset, tmp_path):
    shutil.copytree(tiny_dataset, tmp_path / "dataset")
    shard = min((tmp_path / "dataset" / "shards").iterdir())
    for breaks, said in (
        (lambda: shard.write_bytes(b"cut"), f"shard {shard.name} differs"),
        (shard.unlink, f"shard {shard.name} is missing"),
    ):
        breaks()
        revision = push(tmp_path / "dataset", REMOTE)["revision"]
        with pytest.raises(UserError, match=said):
            pull(revision, "", REMOTE, tmp_path / "back")
    shutil.copyfile(tiny_dataset / "shards" / shard.name, shard)
    card = tmp_path / "dataset" / "dataset.json"
    card.write_text(card.read_text().replace('"content_sha256": "', '"content_sha256": "0'))
    with pytest.raises(UserError, match="tells of another content than its tables"):
        pull(push(tmp_path / "dataset", REMOTE)["revision"], "", REMOTE, tmp_path / "back")


@pytest.fixture
def guarded(server, monkeypatch):
    """The server asks for a signature from now on; returns a key pair that is good."""
    iam = boto3.client("iam")
    iam.create_user(UserName="ada")
    everything = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
    iam.put_user_policy(UserName="ada", PolicyName="all", PolicyDocument=json.dumps(everything))
    key = iam.create_access_key(UserName="ada")["AccessKey"]
    requests.post(f"{server}/moto-api/reset-auth", data="0", timeout=10)
    yield {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
    requests.post(f"{server}/moto-api/reset-auth", data="inf", timeout=10)
    iam.delete_access_key(UserName="ada", AccessKeyId=key["AccessKeyId"])
    iam.delete_user_policy(UserName="ada", PolicyName="all")
    iam.delete_user(UserName="ada")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"AWS_ACCESS_KEY_ID": "of-nobody-at-all"}, "access refused .*mum-dvc"),
        ({"AWS_SECRET_ACCESS_KEY": "not-the-secret"}, "access refused .*mum-dvc"),
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "access refused .*mum-dvc"),
        pytest.param({"AWS_ENDPOINT_URL": NOWHERE}, f"cannot be reached .*{NOWHERE}.*mum-dvc", marks=pytest.mark.slow),
    ],
    ids=["key", "secret", "none", "unreachable"],
)
def test_who_is_refused_learns_of_it(s3, guarded, tiny_dataset, tmp_path, monkeypatch, wrong, said):
    for name, value in {**guarded, "HOME": str(tmp_path), **wrong}.items():
        monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    for attempt in (partial(push, tiny_dataset, REMOTE), partial(pull, HASH, "", REMOTE, tmp_path / "back")):
        S3FileSystem.clear_instance_cache()
        with pytest.raises(UserError, match=f"{REMOTE}: {said}") as failure:
            attempt()
        assert "\n" not in str(failure.value)
        assert guarded["AWS_SECRET_ACCESS_KEY"] not in str(failure.value)
        assert "not-the-secret" not in str(failure.value)


@pytest.mark.slow
def test_remote_behind_a_firewall(s3, tmp_path, monkeypatch):
    """Nobody answers, nobody refuses: a queue of connections that is full."""
    monkeypatch.setattr(versions, "CONNECT_SECONDS", 1)
    with socket.socket() as silent, ExitStack() as waiting:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        for _ in range(4):
            caller = waiting.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(silent.getsockname())
        address = "http://{}:{}".format(*silent.getsockname())
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        with pytest.raises(UserError, match=f"{REMOTE}: cannot be reached .*timeout.*{address}.*mum-dvc"):
            pull(HASH, "", REMOTE, tmp_path / "back")


def test_bucket_that_is_missing_is_not_made(s3, tiny_dataset):
    with pytest.raises(UserError, match="s3://nobody/x: The specified bucket does not exist"):
        push(tiny_dataset, "s3://nobody/x")
    assert [bucket["Name"] for bucket in boto3.client("s3").list_buckets()["Buckets"]] == ["lab"]


# As a step runs.


@contextmanager
def started(call, **settings):
    """A Python process of its own that calls one of our functions."""
    program = f"from pathlib import Path\nfrom components.versions import pull, push\nprint({call})"
    command = [*settings.pop("inside", []), sys.executable, "-c", program]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **settings.pop("env", {})}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env=environment, **pipes, **settings) as process:
        yield process


def test_full_volume(s3, tiny_dataset, tmp_path):
    """In a name space of its own, on a volume that holds less than the dataset."""
    revision = push(tiny_dataset, REMOTE)["revision"]
    small = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    volume = tmp_path / "volume"
    volume.mkdir()
    if subprocess.run([*small, f"mount -t tmpfs -o size=256k none {volume}"], check=False).returncode:
        pytest.skip("no name spaces for users on this machine")
    small.append(f'mount -t tmpfs -o size=256k none {volume} && exec "$@"')
    with started(f"pull({revision!r}, '', {REMOTE!r}, Path('{volume}/back'))", inside=[*small, "sh"]) as process:
        said = process.communicate()[0]
    assert f"UserError: {volume}/back: no space left; make room on the volume" in said


def test_without_root_home_and_repository(s3, tiny_dataset, tmp_path):
    """As in a container: a user that nobody knows, nothing at HOME, and the root folder is where it starts."""
    revision = push(tiny_dataset, REMOTE)["revision"]
    somebody = ["unshare", "--user", "--map-user=12345", "--map-group=12345"]
    if subprocess.run([*somebody, "true"], check=False).returncode:
        pytest.skip("no name spaces for users on this machine")
    call = f"pull({revision!r}, '', {REMOTE!r}, Path('{tmp_path}/a/back')), push(Path('{tmp_path}/a/back'), {REMOTE!r})"
    with started(call, inside=somebody, cwd="/", env={"HOME": "/nonexistent"}) as process:
        said = process.communicate()[0]
    assert process.returncode == 0, said
    assert said.count(revision) == 2
    assert content(tmp_path) == {Path("a", "back") / path: data for path, data in content(tiny_dataset).items()}


# The component.


def artifact(kind, path, **metadata):
    return kind(name=path.name, uri=str(path), metadata=metadata)


def test_component_pushes_and_pulls(s3, tiny_dataset, tmp_path):
    card = json.loads((tiny_dataset / "dataset.json").read_text())
    prepared = artifact(dsl.Dataset, tmp_path / "prepared", folder=str(tiny_dataset))
    common = {"repository": "", "remote": REMOTE, "workspace": str(tmp_path / "workspace")}
    here, there = (artifact(dsl.Dataset, tmp_path / name) for name in ("here", "there"))
    metrics = artifact(dsl.Metrics, tmp_path / "metrics")
    dataset_version.python_func(revision="", versioned=here, metrics=metrics, prepared=prepared, **common)
    assert here.metadata["folder"] == str(tiny_dataset), "not copied"
    nothing = artifact(dsl.Dataset, tmp_path / "nothing")
    revision = here.metadata["revision"]
    dataset_version.python_func(revision=revision, versioned=there, metrics=metrics, prepared=nothing, **common)
    folder = Path(there.metadata.pop("folder"))
    assert folder.parent == tmp_path / "workspace" / "datasets"
    assert content(folder) == content(tiny_dataset)
    assert there.metadata.items() <= here.metadata.items()
    assert there.metadata["content_sha256"] == card["content_sha256"]
    assert json.loads(Path(there.path).read_text()) == card
    assert metrics.metadata["splits.train"] == card["splits"]["train"]
