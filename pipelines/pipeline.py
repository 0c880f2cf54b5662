"""The DAG: prepare -> pretrain -> evaluate and export, which read the dataset too."""

from pathlib import Path
from typing import NamedTuple

from kfp import compiler, dsl, kubernetes

from components.evaluate import evaluate
from components.export import export
from components.prepare import prepare
from components.pretrain import pretrain

PIPELINE_YAML = Path(__file__).with_name("pipeline.yaml")


class Outputs(NamedTuple):
    """What the pipeline leaves behind.

    Attributes:
        dataset: The dataset folder.
        run: The run folder of the training.
        evaluation: The evaluation folder.
        report: The report as one page.
        onnx: The export folder.
    """

    dataset: dsl.Dataset
    run: dsl.Model
    evaluation: dsl.Artifact
    report: dsl.HTML
    onnx: dsl.Model


@dsl.pipeline(name="mum", description="Multi-view captures in; an encoder, a report on it and its ONNX out.")
def mum_pipeline(overrides: list = []) -> Outputs:  # noqa: B006, KFP's own way to say that a parameter is optional
    """Prepare a dataset, pretrain an encoder on it, judge the encoder and export it.

    Args:
        overrides: Hydra overrides of the configuration, the same for every stage, for instance
            `["model=small", "pretrain.steps=5000"]`.

    Returns:
        The artifacts.
    """
    prepared = prepare(overrides=overrides)
    trained = pretrain(overrides=overrides, dataset=prepared.outputs["dataset"])
    # Training is what one runs a pipeline for; a cache hit would hide that a machine or a seed was meant to be tried.
    trained.set_caching_options(enable_caching=False)
    # A container has 64 MiB of /dev/shm, over which the data loader's processes hand their batches.
    kubernetes.empty_dir_mount(trained, volume_name="shm", mount_path="/dev/shm", medium="Memory")
    run = trained.outputs["run"]
    evaluated = evaluate(overrides=overrides, dataset=prepared.outputs["dataset"], run=run)
    exported = export(overrides=overrides, dataset=prepared.outputs["dataset"], run=run)
    return Outputs(
        dataset=prepared.outputs["dataset"],
        run=run,
        evaluation=evaluated.outputs["evaluation"],
        report=evaluated.outputs["report"],
        onnx=exported.outputs["onnx"],
    )


def compile_pipeline(path: Path = PIPELINE_YAML) -> Path:
    """Compile the pipeline to what a Kubeflow Pipelines server takes.

    Args:
        path: The YAML to write.

    Returns:
        The path.
    """
    compiler.Compiler().compile(mum_pipeline, str(path))
    return path
