"""SIGTERM, the way a scheduler takes a machine back: finish the step, write a checkpoint, leave in time."""

import logging
import os
import signal
import threading
from types import FrameType, TracebackType

EXIT_STATUS = 75
"""Exit status of a preempted training: EX_TEMPFAIL of sysexits.h, "try again later"."""

log = logging.getLogger(__name__)


class Preempted(SystemExit):
    """Ends the process after a preemption; the run can be continued."""

    def __init__(self) -> None:
        super().__init__(EXIT_STATUS)


class Preemption:
    """Listens for SIGTERM while a training runs."""

    def __init__(self, grace_seconds: float):
        """Set it up.

        Args:
            grace_seconds: After this long the process ends whatever it is doing; the last whole checkpoint stays.
        """
        self.grace_seconds = grace_seconds
        self.requested = False
        self._timer: threading.Timer | None = None

    def __enter__(self) -> "Preemption":
        self._before = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGTERM, self._before)
        if self._timer is not None:
            self._timer.cancel()

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if self.requested:
            return
        self.requested = True
        self._timer = threading.Timer(self.grace_seconds, self._give_up)
        self._timer.daemon = True
        self._timer.start()

    def _give_up(self) -> None:
        log.error("no checkpoint within %g s of SIGTERM (machine.grace_seconds): leaving", self.grace_seconds)
        os._exit(EXIT_STATUS)
