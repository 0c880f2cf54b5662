"""A Kubeflow Pipelines server: runs and schedules of the pipeline, and how they stand."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import kfp_server_api
import urllib3
import yaml
from kfp import client

from mum_model.errors import UserError


@dataclass(frozen=True)
class Order:
    """What is asked of a server.

    Attributes:
        file: The compiled pipeline.
        experiment: The experiment that it is listed under; made where missing.
        name: Name of the run or schedule; None lets KFP make one.
        parameters: Of the pipeline.
        cached: False runs every step, also those whose result is known.
    """

    file: Path
    experiment: str
    name: str | None
    parameters: dict[str, Any]
    cached: bool


class Server:
    """A Kubeflow Pipelines server.

    Args:
        endpoint: Its URL.
        namespace: Namespace of the runs.
        token: Bearer token; None where the server asks for none.

    Raises:
        UserError: It does not answer as such a server does. Every method raises this too.
    """

    def __init__(self, endpoint: str, namespace: str, token: str | None) -> None:
        self._endpoint = endpoint.rstrip("/")
        self._namespace = namespace
        with self._asking():
            self._client = client.Client(host=endpoint, namespace=namespace, existing_token=token)
            self._shared = bool(self._client.get_kfp_healthz().multi_user)

    def run(self, order: Order) -> str:
        """Start a run.

        Args:
            order: What to run.

        Returns:
            Its identifier.
        """
        with self._asking(), _package(order) as file:
            return self._client.create_run_from_pipeline_package(
                file,
                arguments=order.parameters,
                run_name=order.name,
                experiment_name=order.experiment,
                namespace=self._own_namespace,
            ).run_id

    def schedule(self, order: Order, cron: str) -> str:
        """Run again and again. A run waits for the one before it, and missed ones are not made up for.

        Args:
            order: What to run.
            cron: When, in six fields: second, minute, hour, day of the month, month, day of the week.

        Returns:
            Identifier of the schedule.
        """
        with self._asking(), _package(order) as file:
            experiment = self._client.create_experiment(order.experiment, namespace=self._own_namespace)
            return self._client.create_recurring_run(
                experiment.experiment_id,
                order.name or f"{order.experiment} {cron}",
                cron_expression=cron,
                max_concurrency=1,
                no_catchup=True,
                params=order.parameters,
                pipeline_package_path=file,
            ).recurring_run_id

    def latest(self, count: int) -> list[kfp_server_api.V2beta1Run]:
        """The newest runs.

        Args:
            count: How many at most.

        Returns:
            Them, newest first.
        """
        with self._asking():
            found = self._client.list_runs(page_size=count, sort_by="created_at desc", namespace=self._own_namespace)
        return found.runs or []

    def get(self, run_id: str) -> kfp_server_api.V2beta1Run:
        """One run.

        Args:
            run_id: Its identifier.

        Returns:
            It, with the state of each task.
        """
        with self._asking():
            return self._client.get_run(run_id)

    def page(self, run_id: str) -> str:
        """Where people look at a run.

        Args:
            run_id: Its identifier.

        Returns:
            A URL.
        """
        return f"{self._endpoint}/#/runs/details/{run_id}"

    @property
    def _own_namespace(self) -> str | None:
        """A server for one team refuses a run that names a namespace."""
        return self._namespace if self._shared else None

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except kfp_server_api.ApiException as error:
            raise UserError(
                f"{self._endpoint}: {error.status} {error.reason}, {_said(error)}{_advice(error)}"
            ) from error
        except urllib3.exceptions.HTTPError as error:
            raise UserError(
                f"{self._endpoint}: {error}. Expected a Kubeflow Pipelines API there; look at --endpoint, and whether "
                "it can be reached, for instance by `kubectl port-forward -n kubeflow svc/ml-pipeline 8888`"
            ) from error


@contextmanager
def _package(order: Order) -> Iterator[str]:
    """The file to send. KFP's own switch of the cache reaches no task inside of a group, and ours all are."""
    if order.cached:
        yield str(order.file)
        return
    documents = list(yaml.safe_load_all(order.file.read_text()))
    for dag in (one["dag"] for one in documents[0]["components"].values() if "dag" in one):
        for task in dag["tasks"].values():
            task["cachingOptions"] = {}
    with TemporaryDirectory() as folder:
        file = Path(folder, order.file.name)
        file.write_text(yaml.safe_dump_all(documents))
        yield str(file)


def _said(error: kfp_server_api.ApiException) -> str:
    body = error.body.decode(errors="replace") if isinstance(error.body, bytes) else str(error.body or "")
    return " ".join(body.split())[:500]


def _advice(error: kfp_server_api.ApiException) -> str:
    if error.status in (401, 403):
        return ". Set KF_PIPELINES_TOKEN to a token that may do this in the namespace"
    return ""
