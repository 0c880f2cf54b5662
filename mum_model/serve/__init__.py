"""Runs an exported encoder without PyTorch: a server (`serve`), a command (`embed`), a class (`OnnxEncoder`)."""

from omegaconf import DictConfig


def serve(cfg: DictConfig) -> None:
    """Serve the exported encoder over the Open Inference Protocol v2, REST and gRPC, until SIGTERM or SIGINT.

    Args:
        cfg: Reads the folder `paths.export`, `serve`, and `machine.threads` (null takes all cores that the process
            may use).

    Raises:
        UserError: The folder is missing or damaged, or a port is taken.
    """
    from mum_model.serve.server import run  # kserve takes seconds to import; the rest of this package needs none of it

    run(cfg)
