"""KFP component around `mum_model.evaluate`."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    overrides: list,
    part: dict,
    workspace: str,
    dataset: dsl.Input[dsl.Dataset],
    run: dsl.Input[dsl.Model],
    evaluation: dsl.Output[dsl.Artifact],
) -> None:
    """Judge one encoder on one benchmark, on frames that it was not trained on.

    Args:
        overrides: Hydra overrides of the configuration, for instance `["evaluate.seeds=1"]`.
        part: The `encoder` and the `benchmark`, as `plan` lists them.
        workspace: Where the workspace volume is mounted.
        dataset: The dataset's card.
        run: The trained run.
        evaluation: Its numbers. The evaluation folder is on the workspace, for `report` to read.
    """
    from components.workspace import describe, folder_of, own_folder
    from mum_model.config import compose
    from mum_model.evaluate import evaluate

    cfg = compose([*overrides, "gate=[]"])
    cfg.encoder, cfg.evaluate.only = [part["encoder"]], [part["benchmark"]]
    cfg.paths.dataset, cfg.paths.run = str(folder_of(dataset)), str(folder_of(run))
    cfg.paths.features = f"{workspace}/features"
    cfg.paths.evaluation = str(own_folder(evaluation, folder_of(run).parent / "evaluations"))
    describe(evaluation, evaluate(cfg), "metrics.json", part=part)
