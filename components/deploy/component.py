"""KFP component around `components.rollout`."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def deploy(
    onnx: dsl.Input[dsl.Model],
    service: str,
    claim: str,
    image: str,
    workspace: str,
    address: dsl.OutputPath(str),  # type: ignore[valid-type]
    canary_percent: int = 10,
) -> None:
    """Serve an export by KServe: a share of the traffic first, all of it once it answers rightly, or none.

    Args:
        onnx: The export folder, on the workspace volume.
        service: Name of the InferenceService; made where there is none.
        claim: PersistentVolumeClaim of the workspace volume.
        image: Of the server.
        workspace: Where the workspace volume is mounted.
        address: Address of the service within the cluster.
        canary_percent: Share of the traffic before the smoke request has passed; in KServe's serverless mode only.
    """
    from pathlib import Path

    from components.rollout import deploy
    from components.workspace import folder_of

    url = deploy(
        service,
        folder_of(onnx),
        claim=claim,
        workspace=Path(workspace),
        image=image,
        canary_percent=canary_percent,
    )
    Path(address).write_text(url)
