"""KFP component around `components.rollout`."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def deploy(
    service: str,
    image: str,
    canary_percent: int,
    workspace: str,
    claim: str,
    registered: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    onnx: dsl.Input[dsl.Model],
) -> None:
    """Serve the promoted encoder: a share of the traffic first, all of it once it answers rightly, or none.

    Args:
        service: Name of the InferenceService, made where there is none; empty: the version becomes the served one on
            the workspace alone.
        image: Of the server.
        canary_percent: Share of the traffic before the smoke request has passed; in KServe's serverless mode only.
        workspace: Where the workspace volume is mounted.
        claim: PersistentVolumeClaim of that volume, from which KServe mounts the export.
        registered: The registered version.
        evaluation: The merged evaluation, which the next gate compares with.
        onnx: The exported encoder.
    """
    from pathlib import Path

    from components import rollout
    from components.promotion import record_served
    from components.workspace import folder_of

    if service:
        rollout.deploy(
            service,
            folder_of(onnx),
            claim=claim,
            workspace=Path(workspace),
            image=image,
            canary_percent=canary_percent,
        )
    record_served(folder_of(registered), folder_of(evaluation))
