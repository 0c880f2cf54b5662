"""Training on a cluster: over real HTTP to an API that tests play, with a real process for each pod."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from kfp import dsl
from kubernetes.config import kube_config

from components import attempt, cluster, trainjob
from components.pretrain import pretrain
from mum_model.errors import UserError
from mum_model.files import write_json
from pipelines.pipeline import _cluster
from pipelines.platform import Platform
from tests.components.kubernetes_stub import KubernetesStub
from tests.components.trainer_stub import TrainerStub, waiting, without_node
from tests.conftest import TINY

TASK = dsl.TaskConfig(
    resources={"limits": {"cpu": "4", "memory": "16Gi"}, "requests": {"cpu": "2", "memory": "16Gi"}},
    env=[
        {"name": "NCCL_DEBUG", "value": "WARN"},
        {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "tracker", "key": "token"}}},
    ],
    volumes=[
        {"name": "workspace", "persistentVolumeClaim": {"claimName": "mum-workspace"}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
    ],
    volume_mounts=[{"name": "workspace", "mountPath": "/workspace"}, {"name": "shm", "mountPath": "/dev/shm"}],
    node_selector={"pool": "h100"},
    tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists"}],
    affinity={
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}]
            }
        }
    },
)


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """The API, and a kubeconfig that names it."""
    stub = KubernetesStub()
    config = stub.kubeconfig(tmp_path)
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(config))
    monkeypatch.setattr(attempt, "POLL_SECONDS", 0.05)
    yield stub
    stub.close()


@pytest.fixture
def trainer(stub, tmp_path):
    """Makes pods of what a test says."""
    made = []

    def make(command):
        made.append(TrainerStub(stub, tmp_path, command))
        return made[0]

    yield make
    for each in made:
        each.close()


def shell(*scripts):
    """Commands of the pods: a script for each attempt, the last one for all further ones."""
    return lambda job, attempt, rank: ["sh", "-c", scripts[min(attempt, len(scripts)) - 1], "sh", str(rank)]


def run(nodes=1, gpus=0, queue=None, overrides=(), task=TASK):
    trainjob.train(
        overrides, name="mum-abc", nodes=nodes, gpus=gpus, image="mum-train:0.1.0", queue=queue, task_config=task
    )


def jobs(stub):
    return [path for path in stub.objects if "/trainjobs/" in path]


def test_the_step_trains_on_nodes_and_describes_what_they_left(stub, trainer, tmp_path):
    """The component with what the pipeline gives it: the run folder is where the job was told to write."""
    trainer(shell("true"))
    (tmp_path / "data").mkdir()
    dataset = dsl.Dataset(metadata={"folder": str(tmp_path / "data"), "content_sha256": "f00d"})
    write_json(tmp_path / "runs" / "earlier" / "pretrain" / "metrics.json", {"loss": 0.5})
    trained = dsl.Model(uri=str(tmp_path / "run"))
    pretrain.python_func(
        overrides=["model=tiny"],
        nodes=2,
        gpus=4,
        run_id="r-1",
        continue_run="earlier",
        workspace=str(tmp_path),
        cluster=_cluster(Platform()),
        dataset=dataset,
        run=trained,
        metrics=dsl.Metrics(uri=str(tmp_path / "metrics")),
        task_config=TASK,
    )
    (job,) = stub.sent("POST", "trainjobs")
    assert job["metadata"]["name"] == "mum-r-1"
    assert job["spec"]["trainer"]["command"][-3:] == [
        "model=tiny",
        f"paths.dataset={tmp_path / 'data'}",
        f"paths.run={tmp_path / 'runs' / 'earlier' / 'pretrain'}",
    ]
    assert job["spec"]["trainer"]["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == "4"
    assert trained.metadata["folder"] == str(tmp_path / "runs" / "earlier" / "pretrain")
    assert trained.metadata["dataset_sha256"] == "f00d"


def test_what_is_sent(stub, trainer, monkeypatch):
    monkeypatch.setenv("KFP_POD_NAME", "step-1")
    monkeypatch.setenv("KFP_POD_UID", "1-2-3")
    trainer(shell("true"))
    run(nodes=2, gpus=4, overrides=["model=tiny", "pretrain.steps=7"])
    (job,) = stub.sent("POST", "trainjobs")
    spec = job["spec"]
    assert job["metadata"]["ownerReferences"] == [{"apiVersion": "v1", "kind": "Pod", "name": "step-1", "uid": "1-2-3"}]
    assert spec["runtimeRef"]["name"] == "mum-torch-distributed"
    command = [
        "python",
        "-m",
        "mum_model.pretrain.launch",
        "pretrain",
        "pretrain.metrics_port=9400",
        "model=tiny",
        "pretrain.steps=7",
    ]
    assert spec["trainer"]["command"] == command
    assert (spec["trainer"]["numNodes"], spec["trainer"]["numProcPerNode"]) == (2, 4)
    assert spec["trainer"]["resourcesPerNode"] == {
        "limits": {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": "4"},
        "requests": {"cpu": "2", "memory": "16Gi", "nvidia.com/gpu": "4"},
    }
    assert spec["trainer"]["env"][1:] == TASK.env
    (nodes,) = spec["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = nodes["template"]["spec"]["template"]
    assert pod["metadata"]["labels"] == {"app.kubernetes.io/name": "mum", "app.kubernetes.io/component": "pretrain"}
    assert pod["spec"] == {
        "volumes": TASK.volumes,
        "containers": [{"name": "node", "volumeMounts": TASK.volume_mounts}],
        "nodeSelector": TASK.node_selector,
        "tolerations": TASK.tolerations,
        "affinity": TASK.affinity,
    }
    assert "suspend" not in spec
    assert "kueue.x-k8s.io/queue-name" not in job["metadata"]["labels"]


@pytest.mark.parametrize("queue", [None, "mum"])
@pytest.mark.parametrize("task", [TASK, dsl.TaskConfig()], ids=["task", "nothing"])
def test_schema(stub, trainer, queue, task):
    if "MUM_TEST_CLUSTER" not in os.environ:
        pytest.skip("MUM_TEST_CLUSTER is not set: no schemas of Kubeflow's kinds to test against")
    schema = json.loads((Path(os.environ["MUM_TEST_CLUSTER"]) / "crds/jsonschema/TrainJob.json").read_text())
    stub.put("/apis/kueue.x-k8s.io/v1beta2", "localqueues", {"kind": "LocalQueue", "metadata": {"name": "mum"}})
    kueue(stub, trainer(shell("true")))
    run(nodes=2, gpus=1, queue=queue, task=task)
    Draft202012Validator(schema).validate(stub.sent("POST", "trainjobs")[0])


def kueue(stub, played):
    """Lets every suspended TrainJob in, a little later."""

    def on_change(method, thing):
        trainer_does(method, thing)
        if method == "POST" and thing["spec"].get("suspend"):

            def admit():
                thing["spec"]["suspend"] = False
                played.start(thing)

            threading.Timer(0.3, admit).start()

    trainer_does, stub.on_change = stub.on_change, on_change


def test_success_hands_the_log_on_and_leaves_nothing(stub, trainer, capsys):
    played = trainer(shell("echo rank $1 begins; sleep 0.3; echo rank $1 ends"))
    run(nodes=2)
    assert capsys.readouterr().out == "rank 0 begins\nrank 0 ends\n"
    assert played.attempts == 1
    assert not jobs(stub)
    assert not played.pods()


def test_failure_names_the_pod_that_failed_first(stub, trainer):
    # Rank 0 is told to leave when rank 1 has failed, and leaves as a preempted training does.
    script = "[ $1 = 1 ] && { echo 'mum: no dataset'; exit 2; }; trap 'sleep 1.5; exit 75' TERM; sleep 30 & wait"
    played = trainer(shell(script))
    with pytest.raises(UserError, match=r"pod mum-abc-node-0-1-1: Error, exit status 2.*\nmum: no dataset"):
        run(nodes=2)
    assert played.attempts == 1
    assert not jobs(stub)


def test_preempted_twice_then_done(stub, trainer, capsys):
    played = trainer(shell("echo one; exit 75", "echo two; exit 75", "echo three"))
    run(nodes=2)
    assert played.attempts == 3
    assert capsys.readouterr().out.split() == ["one", "two", "three"]
    assert len(stub.sent("POST", "trainjobs")) == 3
    assert not jobs(stub)


def test_evicted_pod_is_a_preemption_whatever_its_status(stub, trainer):
    played = trainer(shell("trap 'exit 1' TERM; echo on; sleep 30 & wait", "true"))
    threading.Thread(
        target=lambda: (wait_for(lambda: len(played.pods()) == 2), played.disrupt(played.pods()[1]))
    ).start()
    run(nodes=2)
    assert played.attempts == 2


def test_pod_on_a_lost_node_is_a_preemption(stub, trainer, monkeypatch):
    monkeypatch.setattr(attempt, "SETTLE_SECONDS", 1.0)
    # Its peers fail, it is told to go and nobody hears of it again: until its node is given up.
    played = trainer(shell("[ $1 = 0 ] && { sleep 0.5; exit 1; }; trap '' TERM; sleep 5", "true"))
    run(nodes=2)
    assert played.attempts == 2


def test_deleted_pod_is_a_preemption(stub, trainer):
    played = trainer(shell("sleep 2", "true"))

    def delete():
        wait_for(lambda: [path for _, path, _ in stub.requests].count("/api/v1/namespaces/mum/pods") > 1)
        stub.remove(played.pods()[0])

    threading.Thread(target=delete).start()
    run()
    assert played.attempts == 2


def test_preempted_for_ever(stub, trainer, monkeypatch):
    monkeypatch.setattr(trainjob, "RESTARTS", 3)
    played = trainer(shell("exit 75"))
    with pytest.raises(UserError, match=r"preempted 3 times"):
        run()
    assert played.attempts == 3


def test_leftover_of_an_earlier_attempt_is_deleted_first(stub, trainer):
    played = trainer(shell("sleep 60", "true"))
    leftover = {
        "kind": "TrainJob",
        "metadata": {"name": "mum-abc"},
        "spec": {"trainer": {"numNodes": 1, "numProcPerNode": 1, "image": "old", "env": []}},
    }
    played.start(stub.put("/apis/trainer.kubeflow.org/v1alpha1", "trainjobs", leftover))
    run()
    verbs = [method for method, path, _ in stub.requests if "trainjobs" in path and method in ("DELETE", "POST")]
    assert verbs == ["DELETE", "POST", "DELETE"]
    assert played.attempts == 2
    assert not played.running


def test_foreground_deletion(stub, trainer):
    trainer(shell("true"))
    run()
    assert all(body["propagationPolicy"] == "Foreground" for body in stub.sent("DELETE", "trainjobs"))


def test_queue(stub, trainer, monkeypatch):
    monkeypatch.setattr(attempt, "START_SECONDS", 0.1)  # waiting in a queue is not waiting for a node
    stub.put("/apis/kueue.x-k8s.io/v1beta2", "localqueues", {"kind": "LocalQueue", "metadata": {"name": "mum"}})
    played = trainer(shell("true"))
    kueue(stub, played)
    run(queue="mum")
    (job,) = stub.sent("POST", "trainjobs")
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "mum"
    assert job["spec"]["suspend"] is True
    assert played.attempts == 1


def test_kueue_takes_it_back_and_lets_it_in_again(stub, trainer):
    stub.put("/apis/kueue.x-k8s.io/v1beta2", "localqueues", {"kind": "LocalQueue", "metadata": {"name": "mum"}})
    played = trainer(shell("trap 'exit 75' TERM; sleep 30 & wait", "true"))
    kueue(stub, played)

    def take_back():
        wait_for(lambda: played.attempts == 1)
        (job,) = (stub.objects[path] for path in jobs(stub))
        job["spec"]["suspend"] = True
        time.sleep(0.3)
        pods = played.pods()
        for pod in pods:
            played._terminate(pod)
        wait_for(lambda: not played.running)
        for pod in pods:
            stub.remove(pod)
        job.pop("status", None)
        job["spec"]["suspend"] = False
        played.start(job)

    threading.Thread(target=take_back).start()
    run(queue="mum")
    assert len(stub.sent("POST", "trainjobs")) == 1, "the same TrainJob goes on"
    assert played.attempts == 2


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (None, 'localqueues "mum" not found.*install Kueue'),
        ({"conditions": [{"type": "Active", "status": "False", "message": "no quota"}]}, "lets nothing in: no quota"),
    ],
)
def test_queue_that_cannot_be_used(stub, trainer, status, says):
    trainer(shell("true"))
    if status:
        queue = {"kind": "LocalQueue", "metadata": {"name": "mum"}, "status": status}
        stub.put("/apis/kueue.x-k8s.io/v1beta2", "localqueues", queue)
    with pytest.raises(UserError, match=says):
        run(queue="mum")
    assert not stub.sent("POST", "trainjobs")


def test_forbidden(stub, trainer):
    trainer(shell("true"))
    message = 'trainjobs is forbidden: User "system:serviceaccount:mum:x" cannot create resource "trainjobs"'
    stub.refusals[("POST", "trainjobs")] = (403, message)
    with pytest.raises(UserError, match=r"not allowed: trainjobs is forbidden.*Role mum-pipeline"):
        run()


def test_runtime_missing(stub, trainer):
    trainer(shell("true"))
    message = (
        'admission webhook "validator.trainjob.trainer.kubeflow.org" denied the request: spec.RuntimeRef: Invalid '
        "value: ClusterTrainingRuntime not found: specified clusterTrainingRuntime must be created before the TrainJob"
    )
    stub.refusals[("POST", "trainjobs")] = (403, message)
    with pytest.raises(UserError, match=r"Expected the ClusterTrainingRuntime mum-torch-distributed: apply k8s/"):
        run()


def test_trainer_missing(stub):
    stub.refusals[("DELETE", "trainjobs")] = stub.refusals[("POST", "trainjobs")] = (404, "page not found")
    with pytest.raises(UserError, match=r"Is Kubeflow Trainer .* installed"):
        run()


def test_unreachable_api(stub, monkeypatch):
    stub.close()
    monkeypatch.setattr(cluster, "PATIENCE_SECONDS", 0.0)
    with pytest.raises(UserError, match=r"has not answered"):
        run()


def test_api_that_is_away_for_a_moment(stub, trainer, monkeypatch):
    monkeypatch.setattr(cluster, "RETRY_SECONDS", 0.1)
    played = trainer(shell("sleep 0.5"))
    stub.refusals[("GET", "trainjobs")] = (503, "etcd is electing")
    threading.Timer(0.4, stub.refusals.clear).start()
    run()
    assert played.attempts == 1


def test_image_that_cannot_be_pulled(stub, trainer, monkeypatch):
    monkeypatch.setattr(attempt, "STUCK_SECONDS", 0.2)
    trainer(lambda *_: waiting("ImagePullBackOff", 'Back-off pulling image "mum-train:0.1.0"'))
    with pytest.raises(UserError, match=r"the image cannot be pulled \(ImagePullBackOff.*image mum-train:0.1.0"):
        run()
    assert not jobs(stub)


def test_no_node_has_room(stub, trainer, monkeypatch):
    monkeypatch.setattr(attempt, "START_SECONDS", 0.2)
    trainer(lambda *_: without_node("0/3 nodes are available: 3 Insufficient nvidia.com/gpu."))
    stub.put(
        "/api/v1",
        "events",
        {
            "kind": "Event",
            "metadata": {"name": "e"},
            "type": "Warning",
            "reason": "NotTriggerScaleUp",
            "message": "no group of nodes fits",
            "involvedObject": {"kind": "Pod", "name": "mum-abc-node-0-0-1"},
        },
    )
    with pytest.raises(UserError, match=r"3 Insufficient nvidia.com/gpu(.|\n)*no group of nodes fits"):
        run()
    assert not jobs(stub)


def test_pods_that_do_not_go_away(stub, monkeypatch):
    monkeypatch.setattr(attempt, "GONE_SECONDS", 0.2)
    stub.on_change = lambda *_: None
    leftover = {"kind": "TrainJob", "metadata": {"name": "mum-abc"}, "spec": {}}
    stub.put("/apis/trainer.kubeflow.org/v1alpha1", "trainjobs", leftover)
    with pytest.raises(UserError, match=r"still there after .*kubectl delete node"):
        run()


def test_progress(stub, trainer, monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(attempt, "PROGRESS_SECONDS", 0.1)
    record = {"step": 30, "loss": 0.5, "images_per_second": 800.0, "step_seconds": 2.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    trainer(shell("sleep 0.5"))
    with caplog.at_level("INFO"):
        run(overrides=[f"paths.run={tmp_path}", "pretrain.steps=90"])
    assert "step 30 of 90, loss 0.5000, 800 images/s, 2 min to go" in caplog.messages


STEP = """
import sys
from kfp import dsl
from components import trainjob
trainjob.train([], name="mum-abc", nodes=2, gpus=0, image="x", task_config=dsl.TaskConfig())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_step_takes_the_training_with_it(stub, trainer, tmp_path, number):
    played = trainer(shell("trap 'exit 75' TERM; echo on; sleep 60 & wait"))
    environment = {**os.environ, "KUBECONFIG": str(tmp_path / "kubeconfig")}
    with subprocess.Popen([sys.executable, "-c", STEP], env=environment, stdout=subprocess.PIPE, text=True) as step:
        assert step.stdout.readline() == "on\n"
        step.send_signal(number)
        assert step.wait(timeout=60) == 128 + number
    assert not played.running
    assert not jobs(stub)
    assert played.attempts == 1, "told to stop, it does not start again"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_real_training_on_two_nodes_preempted_and_resumed(stub, trainer, tiny_dataset, tmp_path, capsys, monkeypatch):
    """The TrainJob's own command in two processes that Trainer's variables make one job; one node is drained."""
    monkeypatch.setenv("MASTER_PORT_OF_TEST", str(free_port()))
    played = trainer(lambda job, attempt, rank: [sys.executable, *job["spec"]["trainer"]["command"][1:]])
    run_folder = tmp_path / "run"
    overrides = [
        *TINY,
        f"paths.dataset={tiny_dataset}",
        f"paths.run={run_folder}",
        "pretrain.pack=4",
        "pretrain.steps=60",
        "pretrain.checkpoint_every=1000",
        f"pretrain.metrics_port={free_port()}",
    ]

    def drain():
        wait_for(lambda: (run_folder / "metrics.jsonl").exists() and (run_folder / "metrics.jsonl").read_text(), 300)
        played.disrupt(played.pods()[1])

    threading.Thread(target=drain).start()
    run(nodes=2, overrides=overrides)
    assert played.attempts == 2
    assert "resuming at step" in capsys.readouterr().out
    steps = [json.loads(line)["step"] for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 61))
    assert (run_folder / "encoder" / "model.safetensors").exists()


@pytest.mark.slow
def test_launch_ends_with_the_status_of_the_process_that_failed_first():
    done = subprocess.run(
        [sys.executable, "-m", "mum_model.pretrain.launch", "pretrain", "paths.dataset=/nowhere"],
        env={**os.environ, "PET_NNODES": "1", "PET_NPROC_PER_NODE": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == UserError.status, done.stderr
    assert "mum: " in done.stderr
    assert "/nowhere" in done.stderr
