"""Files that are kept to be found again, and that several processes may want to write at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


@contextmanager
def written_once(path: Path) -> Iterator[Path]:
    """Fill a file under a name of this process's own; the first that is whole takes the real name and stays.

    Args:
        path: The file; its folder is made where missing.

    Yields:
        Where to write it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent, prefix=".partial-") as own:
        partial = Path(own) / path.name
        yield partial
        if not path.exists():  # another process may have mapped what is there: on NFS it would lose the file under it
            partial.replace(path)
