"""Requests wait here for their turn, in a queue of limited length and for a limited time, and are computed together.

There is no waiting for company: while one batch runs, the next one gathers. So a lone request is as fast as it can be,
and under load batches grow by themselves.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from grpc import StatusCode
from grpc_interceptor.exceptions import GrpcException

from mum_model.serve.metrics import BATCH_IMAGES, QUEUED_IMAGES, STAGE_SECONDS

Inputs = dict[str, np.ndarray]
"""By name, `[N, ...]` each: N images, and what belongs to each of them."""

Features = dict[str, np.ndarray]
"""By name, `[N, ...]` each."""

Run = Callable[[Inputs, Sequence[str] | None], Features]
"""Computes the outputs of these names, or all."""


class OverloadedError(GrpcException):
    """There is more to do than the server gets done: HTTP 503 with Retry-After, gRPC RESOURCE_EXHAUSTED.

    Attributes:
        retry_after: Whole seconds after which the queue should be worked off.
    """

    def __init__(self, reason: str, retry_after: int):
        super().__init__(f"{reason}; try again in {retry_after} s", StatusCode.RESOURCE_EXHAUSTED)
        self.retry_after = retry_after


@dataclass(frozen=True)
class QueueLimits:
    """How much may wait, how long, and how much is computed at once.

    Attributes:
        queued_images: Images that may wait; one more is refused. A request that finds the queue empty always gets in.
        wait_seconds: A request that has not begun by then is refused.
        batch_images: Images computed at once; a request of more runs alone.
    """

    queued_images: int
    wait_seconds: float
    batch_images: int


@dataclass(eq=False)
class _Waiting:
    inputs: Inputs
    outputs: Sequence[str] | None
    answer: "asyncio.Future[Features]"
    since: float

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    @property
    def sizes(self) -> list[tuple[int, ...]]:
        """What has to be the same for two requests to be computed together."""
        return [array.shape[1:] for array in self.inputs.values()]


class Batcher:
    """Computes the features of many requests with one network."""

    def __init__(self, run: Run, executor: ThreadPoolExecutor, limits: QueueLimits):
        """Start with an empty queue.

        Args:
            run: The network.
            executor: Of one thread, shared by all models: a run takes all cores, and two at once only more memory.
            limits: What may wait.
        """
        self._network, self._executor, self._limits = run, executor, limits
        self._queue: deque[_Waiting] = deque()
        self._work: asyncio.Task[None] | None = None
        self._seconds_per_image = 0.0

    async def __call__(self, inputs: Inputs, outputs: Sequence[str] | None) -> Features:
        """Features of a request's images.

        Args:
            inputs: As the network takes them.
            outputs: Names of the wanted ones; all when None.

        Returns:
            By name.

        Raises:
            OverloadedError: The queue is full, or the request waited too long.
        """
        queued = self._queued
        waiting = _Waiting(inputs, outputs, asyncio.get_running_loop().create_future(), perf_counter())
        if queued and queued + len(waiting) > self._limits.queued_images:
            raise self._overloaded(f"{queued} images wait already, at most {self._limits.queued_images} may")
        loop = asyncio.get_running_loop()
        self._queue.append(waiting)
        QUEUED_IMAGES.inc(len(waiting))
        expiry = loop.call_later(self._limits.wait_seconds, self._expire, waiting)
        self._work = self._work or loop.create_task(self._work_off())
        try:
            return await waiting.answer
        finally:
            expiry.cancel()

    @property
    def _queued(self) -> int:
        return sum(map(len, self._queue))

    def _overloaded(self, reason: str) -> OverloadedError:
        return OverloadedError(reason, max(1, math.ceil(self._queued * self._seconds_per_image)))

    def _expire(self, waiting: _Waiting) -> None:
        if waiting in self._queue:
            self._remove(waiting)
            reason = f"the request waited {self._limits.wait_seconds:g} s without its turn"
            waiting.answer.set_exception(self._overloaded(reason))

    def _remove(self, waiting: _Waiting) -> None:
        self._queue.remove(waiting)
        QUEUED_IMAGES.dec(len(waiting))

    async def _work_off(self) -> None:
        while self._queue:
            await self._run(self._next_batch())
        self._work = None

    def _next_batch(self) -> list[_Waiting]:
        """The request that waits longest, and as many behind it of the same size as fit."""
        first = self._queue[0]
        batch, images = [], 0
        for waiting in list(self._queue):
            fits = waiting is first or images + len(waiting) <= self._limits.batch_images
            if fits and waiting.sizes == first.sizes:
                batch.append(waiting)
                images += len(waiting)
                self._remove(waiting)
        return batch

    async def _run(self, batch: list[_Waiting]) -> None:
        for waiting in batch:
            STAGE_SECONDS.labels("wait").observe(perf_counter() - waiting.since)
        BATCH_IMAGES.observe(sum(map(len, batch)))
        try:
            # Off the event loop, which goes on answering probes meanwhile.
            features = await asyncio.get_running_loop().run_in_executor(
                self._executor, self._infer, _joined(batch), _union(batch)
            )
        except Exception as error:  # whatever it is belongs to those who wait; the queue goes on
            for waiting in batch:
                if not waiting.answer.done():
                    waiting.answer.set_exception(error)
            return
        start = 0
        for waiting in batch:
            stop = start + len(waiting)
            if not waiting.answer.done():  # nobody waits any more where the client has gone
                waiting.answer.set_result(_part(features, waiting.outputs, slice(start, stop)))
            start = stop

    def _infer(self, inputs: Inputs, outputs: Sequence[str] | None) -> Features:
        start = perf_counter()
        features = self._network(inputs, outputs)
        seconds = perf_counter() - start
        STAGE_SECONDS.labels("infer").observe(seconds)
        images = len(next(iter(inputs.values())))
        self._seconds_per_image += 0.2 * (seconds / images - self._seconds_per_image)
        return features


def _joined(batch: Sequence[_Waiting]) -> Inputs:
    if len(batch) == 1:
        return batch[0].inputs
    return {name: np.concatenate([waiting.inputs[name] for waiting in batch]) for name in batch[0].inputs}


def _union(batch: Sequence[_Waiting]) -> Sequence[str] | None:
    """Every output that any of them wants; None where one wants all."""
    names: dict[str, None] = {}
    for waiting in batch:
        if waiting.outputs is None:
            return None
        names |= dict.fromkeys(waiting.outputs)
    return list(names)


def _part(features: Features, outputs: Sequence[str] | None, rows: slice) -> Features:
    return {name: features[name][rows] for name in (features if outputs is None else outputs)}
