"""KFP component around `mum_model.pretrain`."""

from kfp import dsl

from components import IMAGE

# A TrainJob's pods get what Kubernetes was told of this step; the step's own pod, which then only watches them, gets
# the volumes alone.
HANDED_ON = [
    dsl.TaskConfigField.RESOURCES,
    dsl.TaskConfigField.KUBERNETES_TOLERATIONS,
    dsl.TaskConfigField.KUBERNETES_NODE_SELECTOR,
    dsl.TaskConfigField.KUBERNETES_AFFINITY,
    dsl.TaskConfigPassthrough(field=dsl.TaskConfigField.ENV, apply_to_task=True),
    dsl.TaskConfigPassthrough(field=dsl.TaskConfigField.KUBERNETES_VOLUMES, apply_to_task=True),
]


@dsl.component(base_image=IMAGE, install_kfp_package=False, task_config_passthroughs=HANDED_ON)
def pretrain(
    overrides: list,
    nodes: int,
    gpus: int,
    run_id: str,
    continue_run: str,
    workspace: str,
    cluster: dict,
    dataset: dsl.Input[dsl.Dataset],
    run: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    task_config: dsl.TaskConfig = None,  # KFP gives it: an empty one on this machine
) -> None:
    """Train the encoder on the dataset by multi-view masked image modelling.

    A run that is there already goes on where it stopped: after a retry, or when an earlier one is named.

    Args:
        overrides: Hydra overrides of the configuration, for instance `["model=small", "pretrain.steps=5000"]`.
        nodes: Nodes of the TrainJob that trains; 0 trains in this step itself.
        gpus: GPUs of each node.
        run_id: This run; its folder is `<workspace>/runs/<run_id>/pretrain`.
        continue_run: An earlier run to go on with, in its folder; empty starts a new one.
        workspace: Where the workspace volume is mounted.
        cluster: How the TrainJob is made: `image`, `runtime`, `queue`, `gpu_type`.
        dataset: The dataset's card.
        run: Numbers at the end of the training. The run folder is on the workspace: `encoder/` (for plain timm),
            `model/`, checkpoints, `metrics.jsonl` and pictures.
        metrics: Numbers at the end of the training.
        task_config: What KFP was told of the pod: resources, node selector, tolerations, volumes, environment.
    """
    from pathlib import Path

    from components import trainjob
    from components.metrics import log_numbers
    from components.workspace import describe, folder_of, read_json
    from mum_model.config import compose
    from mum_model.pretrain import pretrain

    folder = Path(workspace, "runs", continue_run or run_id, "pretrain")
    settings = [*overrides, f"paths.dataset={folder_of(dataset)}", f"paths.run={folder}"]
    if nodes:
        trainjob.train(settings, name=f"mum-{run_id}", nodes=nodes, gpus=gpus, task_config=task_config, **cluster)
    else:
        pretrain(compose(settings))
    run.framework = "pytorch"
    describe(run, folder, "metrics.json", dataset_sha256=dataset.metadata["content_sha256"])
    log_numbers(metrics, read_json(folder / "metrics.json"))
