"""KFP component around `components.rollout`."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def deploy(
    service: str,
    canary_percent: int,
    workspace: str,
    claim: str,
    registered: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    onnx: dsl.Input[dsl.Model],
) -> None:
    """Serve the promoted encoder: to a share of the requests first, to all when it answers well, else as before.

    Args:
        service: The InferenceService; empty: the version becomes the served one on the workspace alone.
        canary_percent: Share of the traffic that it gets first.
        workspace: Where the workspace volume is mounted.
        claim: PersistentVolumeClaim of that volume, from which KServe loads the encoder.
        registered: The registered version.
        evaluation: The merged evaluation, which the next gate compares with.
        onnx: The exported encoder.
    """
    from pathlib import Path

    from components.promotion import record_served
    from components.rollout import roll_out
    from components.workspace import folder_of

    if service:
        roll_out(service, folder_of(onnx), workspace=Path(workspace), claim=claim, canary_percent=canary_percent)
    record_served(folder_of(registered), folder_of(evaluation))
