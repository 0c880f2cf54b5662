"""KFP component that lists what the evaluation fans out over."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def plan(overrides: list) -> list:
    """List the parts of the evaluation: each encoder on each benchmark.

    Args:
        overrides: Hydra overrides of the configuration, for instance `["encoder=[run,pixels]"]`.

    Returns:
        Parts, each with an `encoder`, as the configuration names it, and the name of a `benchmark`.
    """
    from omegaconf import OmegaConf

    from mum_model.config import compose

    cfg = compose(overrides)
    parts = [{"encoder": encoder, "benchmark": name} for encoder in cfg.encoder for name in cfg.evaluate.benchmarks]
    return OmegaConf.to_object(OmegaConf.create(parts))  # type: ignore[return-value]  # a list, as it was
