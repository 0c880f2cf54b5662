"""Connections that nobody uses are closed: clients that stop in the middle of a request, or do not take their answer.

uvicorn waits for both for ever.
"""

import asyncio
from collections.abc import Callable

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


def closing_idle(head_seconds: float, answer_seconds: float) -> type[HttpToolsProtocol]:
    """Uvicorn's protocol of one connection, with an end to its patience.

    Args:
        head_seconds: From the first byte, or the connection, to the end of a request's headers.
        answer_seconds: For the client to take what is ready for it.

    Returns:
        A class for uvicorn's `http` setting.
    """

    class Connection(HttpToolsProtocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._head = _Deadline(head_seconds, transport.abort)
            self._answer = _Deadline(answer_seconds, self._drop_what_is_not_taken)
            self._head.start()

        def on_message_begin(self) -> None:
            self._head.start()
            if not self.transport.get_write_buffer_size():
                self._answer.stop()
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._head.stop()
            super().on_headers_complete()

        def pause_writing(self) -> None:
            self._answer.start()
            super().pause_writing()

        def resume_writing(self) -> None:
            self._answer.stop()
            super().resume_writing()

        def on_response_complete(self) -> None:
            self._answer.start()  # for the last bytes, too few to pause for
            super().on_response_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._head.stop()
            self._answer.stop()
            super().connection_lost(exc)

        def _drop_what_is_not_taken(self) -> None:
            if self.transport.get_write_buffer_size():
                self.transport.abort()

    return Connection


class _Deadline:
    """Does something unless it is stopped in time."""

    def __init__(self, seconds: float, act: Callable[[], None]):
        self._seconds, self._act = seconds, act
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self.stop()
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._act)

    def stop(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
