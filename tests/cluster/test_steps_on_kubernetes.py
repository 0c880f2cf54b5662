"""The stages as Jobs on a node: they meet on the workspace volume, survive kills, and say what is missing."""

import json
import re

import pytest

from mum_model.pretrain.telemetry import read_metrics
from tests.cluster.kube import until
from tests.cluster.steps import CLAIM, finished, job, log, stage
from tests.containers import UID, own, run

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

STEPS = 600
LONG = [f"pretrain.steps={STEPS}", "pretrain.checkpoint_every=50", "machine.threads=1"]


def losses(folder):
    return [(record.step, record.loss) for record in read_metrics(folder)]


def test_stages_meet_on_the_workspace(chain):
    outputs = chain.folder / "outputs"
    assert len(losses(outputs / "run")) == 6
    assert (outputs / "evaluation" / "report.html").is_file()
    assert json.loads((chain.folder / "export" / "export.json").read_text())
    assert {path.stat().st_uid for path in outputs.rglob("*")} == {UID}


def test_killed_training_ends_as_an_unbroken_one(chain, namespace):
    dataset = namespace.folder / "dataset"
    run(["cp", "--archive", str(chain.folder / "outputs" / "dataset"), str(dataset)])
    overrides = ["paths.dataset=/workspace/dataset", *LONG]
    namespace.apply(stage("broken", "pretrain", "paths.run=/workspace/broken", *overrides, retries=4))

    def pod_after(steps, others=()):
        """The pod at work, once so many steps are recorded."""
        file = namespace.folder / "broken" / "metrics.jsonl"
        done = file.read_text().count("\n") if file.exists() else 0
        pods = [one for one in namespace.pods("job-name=broken") if one["status"]["phase"] == "Running"]
        return next((one for one in pods if done > steps and one["metadata"]["name"] not in others), None)

    first = until(lambda: pod_after(70))
    namespace.kill(first)
    second = until(lambda: pod_after(150, {first["metadata"]["name"]}))
    namespace.kubectl("delete", f"pod/{second['metadata']['name']}", "--wait=false")
    assert finished(namespace, "broken") == "Complete", log(namespace, "broken")
    assert "resuming at step" in log(namespace, "broken"), "it began where the one before had left off"

    namespace.apply(stage("unbroken", "pretrain", "paths.run=/workspace/unbroken", *overrides))
    assert finished(namespace, "unbroken") == "Complete", log(namespace, "unbroken")
    broken, unbroken = namespace.folder / "broken", namespace.folder / "unbroken"
    assert len(losses(unbroken)) == STEPS
    assert losses(broken) == losses(unbroken)
    model = "encoder/model.safetensors"
    assert (broken / model).read_bytes() == (unbroken / model).read_bytes()


def test_step_may_only_do_what_it_needs(chain):
    pod = chain.pods("job-name=pretrain")[-1]
    (container,) = pod["spec"]["containers"]
    assert not [mount for mount in container["volumeMounts"] if "serviceaccount" in mount["mountPath"]]
    assert pod["status"]["containerStatuses"][0]["restartCount"] == 0


def test_missing_secret_is_named(namespace):
    needy = job("needy", "mum", "--help")
    (container,) = needy["spec"]["template"]["spec"]["containers"]
    container["envFrom"] = [{"secretRef": {"name": "mum-dvc"}}]
    namespace.apply(needy)
    until(lambda: 'secret "mum-dvc" not found' in namespace.events())


def test_image_that_cannot_be_had_is_named(namespace):
    stranger = job("stranger", "mum", "--help")
    (container,) = stranger["spec"]["template"]["spec"]["containers"]
    container |= {"image": "localhost/mum-train:9.9.9", "imagePullPolicy": "IfNotPresent"}
    namespace.apply(stranger)
    until(lambda: "localhost/mum-train:9.9.9" in namespace.events() and "Failed" in namespace.events())


@pytest.fixture
def small_disk(tmp_path):
    """A volume of a few megabytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)])
    yield own(folder)
    run(["umount", "--lazy", str(folder)])


def test_full_disk_is_named(chain, new_namespace, small_disk):
    full = new_namespace(small_disk)
    full.apply(CLAIM)
    full.apply(stage("prepare", "prepare", "data.rendered.scenes=64"))
    assert finished(full, "prepare") == "Failed"
    said = log(full, "prepare")
    assert re.search(r"/\S+\.tar: cannot be written, No space left on device", said), said[-500:]
    assert "Traceback" not in said
    assert not (small_disk / "outputs" / "dataset" / "dataset.json").exists(), "nothing to be taken for a dataset"
