"""What the C library does with the memory of tensors that a step has done with, on a CPU."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>
LARGEST, MOST_UNUSED = 2**30, 2**31 - 1  # bytes


def keep_freed_memory() -> None:
    """Let this process keep what it frees, up to 2 GiB, for the next step.

    glibc gives large blocks back to the kernel, so that each step would fetch its activations anew, page by page: 5 to
    10 % of a step's CPU time. Does nothing where the C library is another one.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, MOST_UNUSED)
