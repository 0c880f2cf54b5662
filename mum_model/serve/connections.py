"""Connections that nobody uses are closed: clients that stop in the middle of a request, or do not take their answer.

uvicorn waits for both for ever.
"""

import asyncio

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
            self._head, self._answer = _Deadline(transport, head_seconds), _Deadline(transport, answer_seconds)
            self._head.start()

        def on_message_begin(self) -> None:
            self._head.start()
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

        def timeout_keep_alive_handler(self) -> None:
            if self.transport.get_write_buffer_size():  # to close would wait until it is read
                self.transport.abort()
            super().timeout_keep_alive_handler()

        def connection_lost(self, exc: Exception | None) -> None:
            self._head.stop()
            self._answer.stop()
            super().connection_lost(exc)

    return Connection


class _Deadline:
    """Aborts a connection unless it is stopped in time."""

    def __init__(self, transport: asyncio.Transport, seconds: float):
        self._transport, self._seconds = transport, seconds
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self.stop()
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._transport.abort)

    def stop(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
