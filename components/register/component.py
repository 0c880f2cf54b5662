"""KFP component around `components.registry`."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def register(
    experiment: str,
    run_id: str,
    registry: str,
    workspace: str,
    claim: str,
    image: str,
    dataset: dsl.Input[dsl.Dataset],
    run: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    onnx: dsl.Input[dsl.Model],
    registered: dsl.Output[dsl.Model],
) -> None:
    """Write down what a model comes from and what it is worth, on the workspace volume and in the model registry.

    Args:
        experiment: Name of the model.
        run_id: The pipeline run; name of the version.
        registry: URL of the model registry's REST API; empty: the record on the workspace is all.
        workspace: Where the workspace volume is mounted.
        claim: PersistentVolumeClaim of that volume.
        image: The image that the steps ran in, best by its digest.
        dataset: The dataset's card, with its revision.
        run: The trained run.
        evaluation: The merged evaluation.
        onnx: The exported encoder.
        registered: The record. Its folder is `<workspace>/models/<experiment>/<run_id>`; `uri` is that of the ONNX.
    """
    from pathlib import Path

    from components import registry as models
    from components.workspace import describe, folder_of

    folder = folder_of(onnx)
    record = models.lineage(
        experiment=experiment,
        run_id=run_id,
        uri=f"pvc://{claim}/{folder.relative_to(workspace)}",
        image=image,
        data=dataset.metadata,
        run=folder_of(run),
        evaluation=folder_of(evaluation),
        onnx=folder,
    )
    kept = models.keep(record, Path(workspace))
    if registry:
        models.register(record, registry)
    registered.framework = "onnx"
    describe(registered, kept, "model.json", version=run_id, uri=record["uri"])
