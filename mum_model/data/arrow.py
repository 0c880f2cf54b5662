"""Tables as Arrow IPC files, mapped into memory."""

from pathlib import Path

import pyarrow as pa


def read_table(path: Path) -> pa.Table:
    """An Arrow IPC file as a table, mapped into memory; nothing of it is read before it is used.

    Args:
        path: The file.

    Returns:
        The table.
    """
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
