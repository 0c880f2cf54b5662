"""One Kubernetes for all of these tests, with both images on its node; a namespace for each test."""

import itertools

import pytest

from tests.cluster.kube import Namespace
from tests.cluster.steps import CLAIM, finished, log, stage
from tests.containers import SERVE, STATE, TRAIN, build, cannot_run, own, podman, script

NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def cluster():
    if reason := cannot_run("podman", "buildah", "kubectl", "containerd", "etcd"):
        pytest.skip(reason)
    script("up.sh")
    try:
        script("apply-crds.sh")
        for image in (TRAIN, SERVE):
            _load(build(image))
        yield
    finally:
        script("down.sh")


def _load(image):
    """Copy an image to the node, unless this very one was copied before: the node keeps them."""
    loaded = STATE / "containerd" / f"{image.rpartition('/')[2]}.loaded"
    digest = podman("image", "inspect", "--format={{.Id}}", image)
    if not loaded.exists() or loaded.read_text() != digest:
        script("load-image.sh", image)
        loaded.write_text(digest)


@pytest.fixture(scope="session")
def new_namespace(cluster, tmp_path_factory):
    """Makes a namespace with a workspace of its own, or with the folder of another's."""

    def make(folder=None):
        namespace = Namespace(f"mum-test-{next(NUMBERS)}", folder or own(tmp_path_factory.mktemp("workspace")))
        namespace.kubectl("create", "namespace", namespace.name)
        namespace.apply(*namespace.workspace())
        return namespace

    return make


@pytest.fixture
def namespace(new_namespace):
    made = new_namespace()
    made.apply(CLAIM)
    yield made
    made.kubectl("delete", "jobs,deployments,pods", "--all", "--grace-period=1", "--wait=false")


@pytest.fixture(scope="session")
def chain(new_namespace):
    """A namespace in which all four stages ran as Jobs, one after the other, on one workspace."""
    made = new_namespace()
    made.apply(CLAIM)
    for name in ("prepare", "pretrain", "evaluate", "export"):
        made.apply(stage(name, name))
        assert finished(made, name) == "Complete", log(made, name)
    return made
