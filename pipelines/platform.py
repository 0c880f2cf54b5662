"""What the pipeline has to know of the cluster that it is compiled for; what changes from run to run is a parameter."""

from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from components import IMAGE, SERVE_IMAGE
from mum_model.errors import UserError


@dataclass
class Toleration:
    """A taint of the GPU nodes that our pods accept; fields as in the Kubernetes API."""

    key: str = "nvidia.com/gpu"
    operator: str = "Exists"
    value: str | None = None
    effect: str = "NoSchedule"


@dataclass
class Gpu:
    """How a step gets a GPU.

    Attributes:
        type: Name of the resource that the nodes offer.
        node_selector: Labels of the nodes to use.
        tolerations: Taints of those nodes.
        evaluation: GPUs of each step that evaluates or exports; 0 runs them on the CPU.
    """

    type: str = "nvidia.com/gpu"
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: list[Toleration] = field(default_factory=lambda: [Toleration()])
    evaluation: int = 1


@dataclass
class Resources:
    """Requests and limits of a pod, as Kubernetes writes quantities."""

    cpu: str
    memory: str


@dataclass
class Retries:
    """How often a step is tried again; the wait doubles each time, up to an hour."""

    count: int = 2
    wait: str = "60s"


@dataclass
class Platform:
    """The cluster.

    Attributes:
        image: Image of every step, built from docker/train.Dockerfile.
        serve_image: Image of the server, built from docker/serve.Dockerfile.
        pull_policy: When the nodes fetch it: Always, IfNotPresent or Never.
        workspace: Where the workspace volume is mounted.
        claim: Name of its PersistentVolumeClaim; ReadWriteMany where the steps run on several nodes.
        remote: DVC remote of the datasets, for instance `s3://bucket/datasets`; empty: nothing is pushed.
        repository: Git repository whose `dvc.yaml` has the dataset as an output; a dataset revision is then one of
            this repository. Empty: a dataset revision is the hash that `dataset_version` gave.
        dvc_secret: Secret with the keys AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and perhaps AWS_ENDPOINT_URL of the
            remote. May be missing, as where the nodes have an identity of their own.
        git_secret: Secret with a file `credentials` as git's credential store has it. May be missing.
        gpu: How a step gets a GPU; null where there is none.
        training: Requests and limits of each training pod.
        step: Requests and limits of every other step.
        runtime: ClusterTrainingRuntime of the training jobs.
        queue: LocalQueue of Kueue that they wait in; empty where there is no Kueue.
        service: InferenceService that gets the promoted encoder; empty: it is promoted on the workspace alone.
        canary_percent: Share of the traffic that a new version gets first.
        registry: URL of the model registry; empty: the record is written to the workspace alone.
        parallelism: Evaluation steps that run at once.
        retries: Of steps that end with an error. A training that lost a node starts again at once, and as often as it
            takes (components/trainjob.py).
        timeout: Seconds after which a step other than the training is ended.
        training_timeout: The same of the training.
    """

    image: str = IMAGE
    serve_image: str = SERVE_IMAGE
    pull_policy: str = "IfNotPresent"
    workspace: str = "/workspace"
    claim: str = "mum-workspace"
    remote: str = ""
    repository: str = ""
    dvc_secret: str = "mum-dvc"
    git_secret: str = "mum-git"
    gpu: Gpu | None = field(default_factory=Gpu)
    training: Resources = field(default_factory=lambda: Resources(cpu="16", memory="128Gi"))
    step: Resources = field(default_factory=lambda: Resources(cpu="4", memory="16Gi"))
    runtime: str = "mum-torch-distributed"
    queue: str = ""
    service: str = "mum-encoder"
    canary_percent: int = 10
    registry: str = ""
    parallelism: int = 4
    retries: Retries = field(default_factory=Retries)
    timeout: int = 24 * 3600
    training_timeout: int = 14 * 24 * 3600


def load_platform(file: Path | None = None, settings: tuple[str, ...] = ()) -> Platform:
    """Read what is known of a cluster.

    Args:
        file: YAML with the fields of `Platform` that differ from their defaults.
        settings: `KEY=VALUE`, which win over the file, for instance `gpu.evaluation=0`.

    Returns:
        The platform.

    Raises:
        UserError: The file cannot be read, or a key or value is not one of `Platform`.
    """
    try:
        merged = OmegaConf.merge(
            OmegaConf.structured(Platform),
            *([OmegaConf.load(file)] if file else []),
            OmegaConf.from_dotlist([*settings]),
        )
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except (OmegaConfBaseException, OSError, ValueError) as error:
        raise UserError(f"{file or 'platform'}: {error}; the keys are described in pipelines/platform.py") from error


def defaults() -> str:
    """Every key of a platform with its default.

    Returns:
        YAML.
    """
    return OmegaConf.to_yaml(OmegaConf.structured(Platform))
