"""What the ranks tell each other about each step, read one step late so that nobody waits for the device.

Every rank posts a few numbers after a step; all get those of all. The host reads them when the next step has been
queued, by when they have long been computed: the device never runs dry for a log line. All ranks read the same numbers
at the same step, so they can decide on them alike (to stop, say) without another word.
"""

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class StepReport:
    """One step, as all ranks know it.

    Attributes:
        step: Counted from 0.
        losses: Of each pack, in the order of the step's packs; not finite where something went wrong.
        gradient_norm: Over all ranks; not finite where the step was skipped.
        seconds: Of each rank: from asking for its data until its last backward pass was done or queued.
        data_wait: Of each rank: seconds it waited for its data.
        memory: Of each rank: bytes, `memory_bytes`.
        stop: Some rank was asked to stop.
        ended: When this rank had queued the step, `time.perf_counter`.
    """

    step: int
    losses: np.ndarray
    gradient_norm: float
    seconds: np.ndarray
    data_wait: np.ndarray
    memory: np.ndarray
    stop: bool
    ended: float

    @property
    def loss(self) -> float:
        """Mean over all packs."""
        return float(self.losses.mean())

    @property
    def is_finite(self) -> bool:
        """Whether the step was taken: its losses and its gradient are finite."""
        return bool(np.isfinite(self.losses).all() and np.isfinite(self.gradient_norm))


@dataclass(frozen=True)
class HostNumbers:
    """What a rank's host knows of a step; see `StepReport`."""

    seconds: float
    data_wait: float
    memory: int
    stop: bool


class Reports:
    """The exchange; every rank posts after every step."""

    def __init__(self, device: torch.device, world_size: int):
        """Set it up.

        Args:
            device: Where the losses are.
            world_size: Number of ranks.
        """
        self.device, self.world_size = device, world_size
        self._pending: tuple[int, float, Tensor, torch.cuda.Event | None] | None = None

    def post(self, step: int, losses: list[Tensor], norm: Tensor, host: HostNumbers) -> StepReport | None:
        """Tell the others about a step, and hear about the one before.

        Args:
            step: Counted from 0.
            losses: Scalars on the device, of this rank's packs.
            norm: Of the gradient, scalar on the device, the same on all ranks.
            host: What the host knows.

        Returns:
            The report of the step posted before, or None at the first.
        """
        known = torch.tensor([host.seconds, host.data_wait, host.memory, host.stop], dtype=torch.float64)
        numbers = torch.stack([*(loss.detach() for loss in losses), norm]).double()
        mine = torch.cat([numbers, known.to(self.device, non_blocking=True)])
        all_ranks = mine.new_empty(self.world_size * len(mine))
        torch.distributed.all_gather_single(all_ranks, mine)
        before = self.flush()
        self._pending = (step, time.perf_counter(), *_copy_to_host(all_ranks.view(self.world_size, -1)))
        return before

    def flush(self) -> StepReport | None:
        """The report of the last step posted, if it was not read yet; waits for it."""
        if self._pending is None:
            return None
        (step, ended, table, copied), self._pending = self._pending, None
        if copied is not None:
            copied.synchronize()
        values = table.numpy()
        losses, (norm, seconds, wait, memory, stop) = values[:, :-5].ravel(), values[:, -5:].T
        return StepReport(step, losses, float(norm[0]), seconds, wait, memory, bool(stop.any()), ended)


def _copy_to_host(table: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    if not table.is_cuda:
        return table, None
    on_host = torch.empty(table.shape, dtype=table.dtype, pin_memory=True)
    on_host.copy_(table, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()
    return on_host, copied
