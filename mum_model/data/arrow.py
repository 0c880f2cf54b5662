"""Tables as Arrow IPC files, mapped into memory."""

from pathlib import Path

import pyarrow as pa

from mum_model.errors import UserError


def read_table(path: Path) -> pa.Table:
    """An Arrow IPC file as a table, mapped into memory; nothing of it is read before it is used.

    Args:
        path: The file.

    Returns:
        The table.

    Raises:
        UserError: The file is cut or no such file.
    """
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: cut, or no table of a dataset ({error}); copy the dataset again") from error
