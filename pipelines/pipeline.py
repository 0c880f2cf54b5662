"""The DAG: prepare, dataset_version, pretrain, evaluate in parts, report, gate, register, deploy; and export.

Data stays on the workspace volume; what travels between the steps are small artifacts that say where it lies.
"""

from pathlib import Path

from kfp import compiler, dsl, kubernetes
from kfp.dsl.base_component import BaseComponent

from components.dataset_version import dataset_version
from components.deploy import deploy
from components.evaluate import evaluate
from components.export import export
from components.finish import finish
from components.gate import gate
from components.plan import plan
from components.prepare import prepare
from components.pretrain import pretrain
from components.register import register
from components.report import report
from pipelines.platform import Gpu, Platform, Resources

PIPELINE_YAML = Path(__file__).with_name("pipeline.yaml")
DVC_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL")


def build(platform: Platform) -> BaseComponent:
    """The pipeline for a cluster.

    Args:
        platform: What has to be known of it.

    Returns:
        The pipeline, to be compiled or to be run on this machine.
    """
    workspace = platform.workspace

    @dsl.pipeline(name="mum", description="Multi-view captures in; an encoder, a report on it and its ONNX out.")
    def mum(
        overrides: list = [],  # noqa: B006, KFP's own way to say that a parameter is optional
        dataset_revision: str = "",
        nodes: int = 0,
        gpus: int = 0,
        experiment: str = "mum",
        continue_run: str = "",
    ) -> None:
        """Prepare or fetch a dataset, pretrain an encoder on it, judge it, export it; promote it if it is better.

        Args:
            overrides: Hydra overrides of the configuration, the same for every stage, for instance
                `["model=small", "pretrain.steps=5000"]`.
            dataset_revision: The version of a dataset to train on; empty prepares `data.source`.
            nodes: Nodes to train on, by a TrainJob; 0 trains inside the step, as on one machine.
            gpus: GPUs of each node.
            experiment: What is promoted replaces what this experiment serves.
            continue_run: An earlier run whose training goes on; empty starts a new one.
        """
        run_id = dsl.PIPELINE_JOB_ID_PLACEHOLDER
        ended = _light(finish(run_id=run_id, workspace=workspace), platform)
        with dsl.ExitHandler(ended, name="run"):
            prepared = _step(
                prepare(overrides=overrides, dataset_revision=dataset_revision, workspace=workspace), platform
            )
            versioned = _step(
                dataset_version(
                    revision=dataset_revision,
                    repository=platform.repository,
                    remote=platform.remote,
                    workspace=workspace,
                    prepared=prepared.outputs["dataset"],
                ),
                platform,
            )
            _with_credentials(versioned, platform)
            if platform.repository:
                # A branch or tag of the same name may mean another dataset tomorrow.
                versioned.set_caching_options(enable_caching=False)
            dataset = versioned.outputs["versioned"]
            trained = _training(
                pretrain(
                    overrides=overrides,
                    nodes=nodes,
                    gpus=gpus,
                    run_id=run_id,
                    continue_run=continue_run,
                    workspace=workspace,
                    cluster=_cluster(platform),
                    dataset=dataset,
                ),
                platform,
            )
            run = trained.outputs["run"]
            exported = _computing(export(overrides=overrides, dataset=dataset, run=run), platform)
            parts = _light(plan(overrides=overrides), platform)
            with dsl.ParallelFor(parts.output, name="evaluation", parallelism=platform.parallelism) as part:
                judged = _computing(
                    evaluate(
                        overrides=overrides,
                        part=part,
                        workspace=workspace,
                        dataset=dataset,
                        run=run,
                    ),
                    platform,
                )
            reported = _step(
                report(overrides=overrides, run=run, evaluations=dsl.Collected(judged.outputs["evaluation"])), platform
            )
            evaluation = reported.outputs["evaluation"]
            decided = _light(
                gate(overrides=overrides, experiment=experiment, workspace=workspace, evaluation=evaluation), platform
            )
            # What is served now is no input of the gate: only a fresh look at it is worth anything.
            decided.set_caching_options(enable_caching=False)
            with dsl.If(decided.outputs["Output"] == True, name="promote"):  # noqa: E712, compared on the server
                registered = _light(
                    register(
                        experiment=experiment,
                        run_id=run_id,
                        registry=platform.registry,
                        workspace=workspace,
                        claim=platform.claim,
                        image=platform.image,
                        dataset=dataset,
                        run=run,
                        evaluation=evaluation,
                        onnx=exported.outputs["onnx"],
                    ),
                    platform,
                )
                deployed = _light(
                    deploy(
                        service=platform.service,
                        image=platform.serve_image,
                        canary_percent=platform.canary_percent,
                        workspace=workspace,
                        claim=platform.claim,
                        registered=registered.outputs["registered"],
                        evaluation=evaluation,
                        onnx=exported.outputs["onnx"],
                    ),
                    platform,
                )
                for task in (registered, deployed):
                    task.set_caching_options(enable_caching=False)

    return mum


def compile_pipeline(path: Path = PIPELINE_YAML, platform: Platform | None = None) -> Path:
    """Compile the pipeline to what a Kubeflow Pipelines server takes.

    Args:
        path: The YAML to write.
        platform: The cluster; None takes the defaults.

    Returns:
        The path.
    """
    compiler.Compiler().compile(build(platform or Platform()), str(path))
    return path


def _light(task: dsl.PipelineTask, platform: Platform) -> dsl.PipelineTask:
    """A step that computes next to nothing."""
    return _step(task, platform, Resources(cpu="500m", memory="2Gi"))


def _computing(task: dsl.PipelineTask, platform: Platform) -> dsl.PipelineTask:
    """A step that runs the network."""
    if platform.gpu is not None and platform.gpu.evaluation:
        task.set_accelerator_type(platform.gpu.type).set_accelerator_limit(platform.gpu.evaluation)
        _on_gpu_nodes(task, platform.gpu)
    return _step(task, platform)


def _training(task: dsl.PipelineTask, platform: Platform) -> dsl.PipelineTask:
    if platform.gpu is not None:
        _on_gpu_nodes(task, platform.gpu)
    _step(task, platform, platform.training)
    kubernetes.set_timeout(task, platform.training_timeout)
    # A container has 64 MiB of /dev/shm, over which the data loader's processes hand their batches.
    kubernetes.empty_dir_mount(task, volume_name="shm", mount_path="/dev/shm", medium="Memory")
    # Training is what one runs a pipeline for; a cache hit would hide that a machine or a seed was meant to be tried.
    return task.set_caching_options(enable_caching=False)


def _step(task: dsl.PipelineTask, platform: Platform, resources: Resources | None = None) -> dsl.PipelineTask:
    """What Kubernetes is told of every step."""
    resources = resources or platform.step
    task.set_container_image(platform.image)
    task.set_cpu_request(resources.cpu).set_cpu_limit(resources.cpu)
    task.set_memory_request(resources.memory).set_memory_limit(resources.memory)
    if platform.retries.count:
        task.set_retry(platform.retries.count, platform.retries.wait, 2.0, "3600s")
    kubernetes.set_image_pull_policy(task, platform.pull_policy)
    kubernetes.mount_pvc(task, pvc_name=platform.claim, mount_path=platform.workspace)
    kubernetes.add_pod_label(task, "app.kubernetes.io/name", "mum")
    kubernetes.add_pod_label(task, "app.kubernetes.io/component", "pipeline")
    kubernetes.set_security_context(task, run_as_user=1000, run_as_group=1000, run_as_non_root=True)
    return kubernetes.set_timeout(task, platform.timeout)


def _on_gpu_nodes(task: dsl.PipelineTask, gpu: Gpu) -> None:
    for key, value in gpu.node_selector.items():
        kubernetes.add_node_selector(task, key, value)
    for toleration in gpu.tolerations:
        kubernetes.add_toleration(
            task, toleration.key, toleration.operator, value=toleration.value, effect=toleration.effect
        )


def _with_credentials(task: dsl.PipelineTask, platform: Platform) -> None:
    kubernetes.use_secret_as_env(task, platform.dvc_secret, {key: key for key in DVC_KEYS}, optional=True)
    kubernetes.use_secret_as_volume(task, platform.git_secret, mount_path="/etc/mum/git", optional=True)


def _cluster(platform: Platform) -> dict:
    """What the training step makes a TrainJob with."""
    gpu_type = "" if platform.gpu is None else platform.gpu.type
    return {"image": platform.image, "runtime": platform.runtime, "queue": platform.queue, "gpu_type": gpu_type}
