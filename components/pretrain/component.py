"""KFP component around `mum_model.pretrain`."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def pretrain(
    overrides: list,
    dataset: dsl.Input[dsl.Dataset],
    run: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Train the encoder on the dataset by multi-view masked image modelling.

    Args:
        overrides: Hydra overrides of the configuration, for instance `["model=small", "pretrain.steps=5000"]`.
        dataset: The dataset folder that `prepare` wrote.
        run: The run folder: `encoder/` (for plain timm), `model/`, checkpoints, `metrics.jsonl` and pictures.
        metrics: Numbers at the end of the training.
    """
    import json

    from components.metrics import log_numbers
    from mum_model.config import compose
    from mum_model.pretrain import pretrain

    cfg = compose(overrides)
    cfg.paths.dataset = dataset.path
    cfg.paths.run = run.path
    final = json.loads((pretrain(cfg) / "metrics.json").read_text())
    run.framework = "pytorch"
    run.metadata["dataset_sha256"] = dataset.metadata["content_sha256"]
    log_numbers(metrics, final)
