"""KFP component around the gate of `mum_model.evaluate`."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def gate(
    overrides: list,
    experiment: str,
    workspace: str,
    evaluation: dsl.Input[dsl.Artifact],
    reasons: dsl.Output[dsl.Markdown],
) -> bool:
    """Decide whether the trained encoder takes the place of the one that is served.

    Args:
        overrides: Hydra overrides of the configuration; `gate` lists the rules, for instance
            `["gate=['dataset.matching.probe_epe <= 1.01 * served']"]`.
        experiment: Whose served encoder it is compared with.
        workspace: Where the workspace volume is mounted.
        evaluation: The merged evaluation.
        reasons: The decision and a reason for each rule, for the KFP interface.

    Returns:
        Whether it is promoted.
    """
    from pathlib import Path

    from components.promotion import served_record
    from components.workspace import folder_of
    from mum_model.config import compose
    from mum_model.evaluate import decide_gate
    from mum_model.files import write_text

    decision = decide_gate(folder_of(evaluation), compose(overrides).gate, served_record(workspace, experiment))
    verdict = "promoted" if decision.promoted else "not promoted"
    lines = [f"**{decision.candidate} is {verdict}**", *(f"- {reason}" for reason in decision.reasons or ["no rules"])]
    write_text(Path(reasons.path), "\n".join(lines) + "\n")
    return decision.promoted
