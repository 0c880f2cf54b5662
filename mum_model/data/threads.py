"""Threads of the processes that decode and render side by side."""

from threadpoolctl import threadpool_limits


def one_thread(*_: object) -> None:
    """Let this process compute on one thread: its siblings have the other cores.

    OpenBLAS divides even products with a 3x3 matrix between threads, which then wait for each other: a rendered view of
    128 pixels took five times the CPU time.
    """
    threadpool_limits(1)
