"""KFP component around `mum_model.evaluate.report`."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def report(
    overrides: list,
    run: dsl.Input[dsl.Model],
    evaluations: dsl.Input[list[dsl.Artifact]],
    evaluation: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    page: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
) -> None:
    """Put the parts of the evaluation together: one table, one page, one set of numbers.

    Args:
        overrides: Hydra overrides of the configuration.
        run: The trained run.
        evaluations: What each `evaluate` step found.
        evaluation: Every number. The report folder is on the workspace: results of each encoder, figures, the page.
        metrics: Every number of the evaluation, named `encoder.task_metric`.
        page: The report as one page, for the KFP interface.
        summary: The report's table, for the KFP interface.
    """
    import shutil

    from components.metrics import log_numbers
    from components.workspace import describe, folder_of, own_folder, read_json
    from mum_model.config import compose
    from mum_model.evaluate import report

    cfg = compose([*overrides, "gate=[]"])
    cfg.paths.evaluations = [str(folder_of(part)) for part in evaluations]
    cfg.paths.report = str(own_folder(evaluation, folder_of(run).parent / "reports"))
    folder = report(cfg)
    describe(evaluation, folder, "metrics.json")
    log_numbers(metrics, read_json(folder / "metrics.json"))
    shutil.copyfile(folder / "report.html", page.path)
    shutil.copyfile(folder / "report.md", summary.path)
