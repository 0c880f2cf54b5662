"""Where the work on scenes is done: in this process, in several of this machine, or on a Dask cluster."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, TypeVar

from omegaconf import DictConfig
from threadpoolctl import threadpool_limits

from mum_model.data.threads import one_thread
from mum_model.errors import UserError

AHEAD = 4
"""Scenes that wait for each worker: enough to keep it busy, few enough that millions need no memory."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def over_processes(
    work: Callable[[Item], Result], items: Sequence[Item], machine: DictConfig
) -> Iterator[tuple[int, Result]]:
    """Do the work on every item, several at once.

    Args:
        work: A picklable function.
        items: What it is done on.
        machine: Reads `workers` and `cluster`.

    Yields:
        The position of an item and its result, as each is finished.

    Raises:
        UserError: A worker died, or the cluster cannot be reached.
    """
    if machine.cluster is None and (machine.workers <= 1 or len(items) <= 1):
        with threadpool_limits(1):  # as each of several has it
            yield from ((position, work(item)) for position, item in enumerate(items))
        return
    with _executor(machine) as (executor, workers):
        waiting: dict[Future[Result], int] = {}
        for position, item in enumerate(items):
            waiting[executor.submit(work, item)] = position
            if len(waiting) >= AHEAD * workers:
                yield from _finished(waiting)
        while waiting:
            yield from _finished(waiting)


def _finished(waiting: dict[Future[Any], int]) -> list[tuple[int, Any]]:
    done, _ = wait(waiting, return_when=FIRST_COMPLETED)
    try:
        return [(waiting.pop(future), future.result()) for future in done]
    except BrokenProcessPool as error:
        raise UserError(
            "a process that prepares scenes was killed, most often for want of memory: lower machine.workers or "
            "data.short_side and run again; finished scenes are kept"
        ) from error


@contextmanager
def _executor(machine: DictConfig) -> Iterator[tuple[Executor, int]]:
    if machine.cluster is None:
        with ProcessPoolExecutor(machine.workers, get_context("fork"), one_thread) as pool:
            yield pool, machine.workers
        return
    from distributed import Client  # only where there is a cluster

    try:
        client = Client(machine.cluster, timeout="5s")
    except (OSError, ValueError) as error:
        raise UserError(f"machine.cluster={machine.cluster}: no Dask scheduler answers there ({error})") from error
    with client:
        workers = max(1, sum(client.nthreads().values()))
        yield client.get_executor(pure=False), workers
