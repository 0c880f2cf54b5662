"""The Kubernetes cluster that a step runs in: its API, with answers that a person can use."""

import json
import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from kubeflow.trainer import TrainerClient
from kubernetes.client import ApiException
from kubernetes.config import ConfigException
from urllib3.exceptions import HTTPError

from mum_model.errors import UserError

PATIENCE_SECONDS = 300.0
"""How long an API that does not answer is asked again: it may be restarted or moved under a training of days."""

RETRY_SECONDS = 5.0
TIMEOUT_SECONDS = 60.0
"""Of one request; without it a connection that silently broke would be waited for in eternity."""

Answer = TypeVar("Answer")

logger = logging.getLogger(__name__)

# It would like to read the version of Trainer from a namespace that a step has no business in, and warns at length.
logging.getLogger("kubeflow.trainer").setLevel(logging.ERROR)


class Cluster:
    """Kubernetes' API as the step's service account sees it, or whoever the kubeconfig names.

    Attributes:
        backend: The connection of the `kubeflow` SDK.
        core: Pods, their logs, events.
        custom: Objects of custom kinds.
        namespace: Of the step.
    """

    def __init__(self) -> None:
        """Connect.

        Raises:
            UserError: There is neither a service account nor a kubeconfig.
        """
        try:
            self.backend = TrainerClient().backend
        except ConfigException as error:
            raise UserError(
                f"no access to a Kubernetes cluster: {error}; expected a pod with a service account, or KUBECONFIG"
            ) from error
        self.core, self.custom, self.namespace = self.backend.core_api, self.backend.custom_api, self.backend.namespace

    def ask(self, what: str, call: Callable[..., Answer], *args: object, **kwargs: object) -> Answer:
        """Call the API; while it is away, again and again.

        Args:
            what: What for, as it shall stand in a message.
            call: A method of `core` or `custom`.
            *args: Its arguments.
            **kwargs: Its keyword arguments.

        Returns:
            Its answer.

        Raises:
            Missing: There is no such object, or no such kind.
            UserError: The API is away for long, or refuses.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return call(*args, **kwargs, _request_timeout=TIMEOUT_SECONDS)
            except (ApiException, HTTPError, OSError) as error:
                if not _may_pass(error):
                    raise self._refusal(what, error) from error
                if time.monotonic() > deadline:
                    raise UserError(
                        f"{what}: Kubernetes' API at {self._address} has not answered for {PATIENCE_SECONDS:.0f} s "
                        f"({_message(error)}); is it up, and does a NetworkPolicy let this pod reach it?"
                    ) from error
                logger.warning("%s: Kubernetes' API does not answer, asking again: %s", what, _message(error))
                time.sleep(RETRY_SECONDS)

    @property
    def _address(self) -> str:
        return self.core.api_client.configuration.host

    def _refusal(self, what: str, error: ApiException) -> UserError:
        message = _message(error)
        if error.status == 404:
            return Missing(f"{what}: {message}")
        if error.status == 401 or (error.status == 403 and "admission webhook" not in message):
            return UserError(
                f"{what}: not allowed: {message}. Bind the Role mum-pipeline of k8s/base to the service account of the "
                f"steps (kubectl auth can-i --list -n {self.namespace} shows what it may do)"
            )
        return UserError(f"{what}: Kubernetes' API refuses: {message}")


class Missing(UserError):  # noqa: N818, a state of the cluster that callers act upon
    """Kubernetes knows no such object, or no such kind."""


def _may_pass(error: Exception) -> bool:
    return not isinstance(error, ApiException) or error.status == 429 or error.status >= 500 or error.status == 0


def _message(error: Exception) -> str:
    """What the API says, without the headers around it."""
    if not isinstance(error, ApiException):
        return str(error)
    try:
        return json.loads(error.body)["message"]
    except (TypeError, ValueError, KeyError):
        return str(error.body or error.reason).strip()


class Stopped(SystemExit):
    """The step was asked to end."""


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """SIGTERM and SIGINT end what is going on by an exception, once: cleaning up after it is not disturbed.

    Raises:
        Stopped: One of them came.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(128 + number)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
