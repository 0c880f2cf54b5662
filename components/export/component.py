"""KFP component around `mum_model.export`."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def export(
    overrides: list,
    dataset: dsl.Input[dsl.Dataset],
    run: dsl.Input[dsl.Model],
    onnx: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Export the trained encoder to ONNX and compare every variant with PyTorch.

    Args:
        overrides: Hydra overrides of the configuration, for instance `["export.input=uint8"]`.
        dataset: The dataset folder that `prepare` wrote; variants in fewer bits are made and judged with it.
        run: The run folder that `pretrain` wrote.
        onnx: The export folder: `encoder.onnx`, its variants, `export.json` (agreement, matching error, contract).
        metrics: Every number of `export.json`.
    """
    import json

    from components.metrics import log_numbers
    from mum_model.config import compose
    from mum_model.export import export

    cfg = compose(overrides)
    cfg.paths.dataset = dataset.path
    cfg.paths.run = run.path
    cfg.paths.export = onnx.path
    facts = json.loads((export(cfg) / "export.json").read_text())
    onnx.framework = "onnx"
    log_numbers(metrics, facts)
