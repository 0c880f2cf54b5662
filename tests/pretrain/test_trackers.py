"""The numbers of a run in TensorBoard and MLflow, read back through their own libraries."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import run_mum
from tests.pretrain.runs import command, losses


@pytest.mark.slow
def test_trackers_get_what_is_recorded(tiny_dataset, tmp_path, monkeypatch):
    store = {"MLFLOW_TRACKING_URI": f"file://{tmp_path / 'mlflow'}", "MLFLOW_ALLOW_FILE_STORE": "true"}
    run_mum("pretrain", *command(tmp_path, tiny_dataset, "pretrain.trackers=[tensorboard,mlflow]"), **store)
    expected = losses(tmp_path / "run")

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(expected)
    assert len(events.Scalars("validation_loss")) == 3

    for name, value in store.items():
        monkeypatch.setenv(name, value)
    import mlflow

    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("mum").experiment_id])
    assert [metric.value for metric in client.get_metric_history(run.info.run_id, "loss")] == pytest.approx(expected)
    assert run.info.status == "FINISHED"


def test_mlflow_without_a_server_is_named(tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    output = run_mum("pretrain", *command(tmp_path, tiny_dataset, "pretrain.trackers=[mlflow]"), status=2)
    assert "set MLFLOW_TRACKING_URI" in output
