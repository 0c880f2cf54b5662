"""KFP component around `mum_model.evaluate`."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    overrides: list,
    dataset: dsl.Input[dsl.Dataset],
    run: dsl.Input[dsl.Model],
    evaluation: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
) -> None:
    """Judge the trained encoder on frames that it was not trained on, beside others.

    Args:
        overrides: Hydra overrides of the configuration, for instance `["evaluate.seeds=1"]`.
        dataset: The dataset folder that `prepare` wrote.
        run: The run folder that `pretrain` wrote.
        evaluation: The evaluation folder: results of each encoder and task, figures and the report.
        metrics: Every number of the evaluation, named `encoder.task_metric`.
        report: The report as one page, for the KFP interface.
    """
    import json
    import shutil

    from components.metrics import log_numbers
    from mum_model.config import compose
    from mum_model.evaluate import evaluate

    cfg = compose(overrides)
    cfg.paths.dataset = dataset.path
    cfg.paths.run = run.path
    cfg.paths.evaluation = evaluation.path
    cfg.paths.features = None
    folder = evaluate(cfg)
    shutil.copyfile(folder / "report.html", report.path)
    log_numbers(metrics, json.loads((folder / "metrics.json").read_text()))
