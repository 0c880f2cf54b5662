"""KFP component that reports how a run ended, whatever happened."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def finish(run_id: str, workspace: str, status: dsl.PipelineTaskFinalStatus) -> None:
    """Report the end of the run in the log and in `<workspace>/runs/<run_id>/end.json`.

    Args:
        run_id: The run.
        workspace: Where the workspace volume is mounted.
        status: How it ended, from KFP.
    """
    from pathlib import Path

    from mum_model.files import write_json

    end = {"state": status.state, "error_code": status.error_code, "error": status.error_message}
    folder = Path(workspace, "runs", run_id)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "end.json", end)
    print(f"run {run_id}: {status.state}{f', {status.error_message}' if status.error_message else ''}")
