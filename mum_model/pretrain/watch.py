"""What happens when a step goes wrong: it is named, kept for study, and counted."""

import logging
from collections import deque
from pathlib import Path

import numpy as np
from safetensors.torch import save_file

from mum_model.data.batches import StepPacks
from mum_model.errors import UserError
from mum_model.pretrain.reports import StepReport

log = logging.getLogger(__name__)

HISTORY, ENOUGH = 100, 20
SPIKE_DEVIATIONS = 8.0
MAD_TO_DEVIATION = 1.4826  # of a normal distribution


class Watch:
    """Looks at every step's report."""

    def __init__(self, run: Path, packs: StepPacks, *, max_skipped: int, skipped: int):
        """Set it up.

        Args:
            run: The run folder; batches that went wrong are kept in its `skipped/`.
            packs: This rank's, to make such a batch again.
            max_skipped: The training stops when more steps than this were skipped.
            skipped: How many were before it was continued.
        """
        self.run, self.packs = run, packs
        self.max_skipped, self.skipped, self.spikes = max_skipped, skipped, 0
        self._history: deque[float] = deque(maxlen=HISTORY)

    def look(self, report: StepReport) -> None:
        """Count a skipped step or a spike of the loss, and say so.

        Args:
            report: Of the step.

        Raises:
            UserError: Too many steps were skipped.
        """
        if not report.is_finite:
            self._skip(report)
            return
        if self._is_spike(report.loss):
            self.spikes += 1
            log.warning("step %d: the loss jumped to %.4f", report.step, report.loss)
        self._history.append(report.loss)

    def _is_spike(self, loss: float) -> bool:
        if len(self._history) < ENOUGH:
            return False
        median = np.median(self._history)
        deviation = MAD_TO_DEVIATION * np.median(np.abs(np.array(self._history) - median))
        return bool(loss > median + SPIKE_DEVIATIONS * deviation)

    def _skip(self, report: StepReport) -> None:
        self.skipped += 1
        suspects = np.flatnonzero(~np.isfinite(report.losses)).tolist()
        what = ", ".join(f"pack {i} of rank {i // self.packs.per_step}" for i in suspects) or "the gradient alone"
        message = f"step {report.step} was skipped, its loss or gradient is not finite ({what}); {self.skipped} so far"
        if self.packs.rank == 0:
            kept = [self._keep(report, pack) for pack in suspects or range(len(report.losses))]
            message += f". Its frames are in {', '.join(str(path) for path, _ in kept)}: "
            message += ", ".join(name for _, names in kept for name in names)
            log.warning("%s", message)
        if self.skipped > self.max_skipped:
            raise UserError(
                f"{message}. That is more than pretrain.max_skipped={self.max_skipped}: lower pretrain.learning_rate, "
                "or look at these frames"
            )

    def _keep(self, report: StepReport, number: int) -> tuple[Path, list[str]]:
        """Write a pack that went wrong, as it was given to the model."""
        pack, names = self.packs.make(report.step, number), self.packs.names(report.step, number)
        path = self.run / "skipped" / f"step-{report.step:08d}-pack-{number}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {
            "step": report.step,
            "rank": number // self.packs.per_step,
            "loss": report.losses[number],
            "gradient_norm": report.gradient_norm,
            "views": list(pack.views),
            "frames": "\n".join(names),
        }
        partial = path.with_name(f".{path.name}")
        metadata = {key: str(value) for key, value in about.items()}
        save_file({"images": pack.images.contiguous()}, partial, metadata=metadata)
        partial.replace(path)
        return path, names
