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
        dataset: The dataset's card; variants in fewer bits are made and judged with its frames.
        run: The trained run.
        onnx: `export.json`: agreement, matching error, contract. The export folder is on the workspace: `encoder.onnx`
            and its variants.
        metrics: Every number of `export.json`.
    """
    from components.metrics import log_numbers
    from components.workspace import describe, folder_of, own_folder, read_json
    from mum_model.config import compose
    from mum_model.export import export

    cfg = compose(overrides)
    cfg.paths.dataset = str(folder_of(dataset))
    cfg.paths.run = str(folder_of(run))
    cfg.paths.export = str(own_folder(onnx, folder_of(run).parent / "exports"))
    folder = export(cfg)
    onnx.framework = "onnx"
    describe(onnx, folder, "export.json")
    log_numbers(metrics, read_json(folder / "export.json"))
