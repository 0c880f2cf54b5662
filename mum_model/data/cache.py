"""A bounded cache of what was read from afar: one SQLite file, shared by all processes of a machine.

SQLite is what keeps it true: an entry is there whole or not at all, whoever is killed when; and as whoever adds one
first makes room, under the same lock, the file cannot outgrow its bound. The oldest entries make room. Training draws
at random, so what was read last is no likelier to be read next, and a hit need not be noted.
"""

import logging
import os
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from mum_model.errors import UserError

log = logging.getLogger(__name__)

PAGE = 16_384
LOG_ROOM = 64 * 2**20
"""Bytes of the bound that are kept for SQLite's write-ahead log."""

WAIT_SECONDS = 120
DROPPED_AT_ONCE = 32


class Cache:
    """Byte strings by name."""

    def __init__(self, path: Path, max_bytes: int):
        """Open it, or begin it.

        Args:
            path: The file; on a disk of this machine, since SQLite's locks do not reach over a network.
            max_bytes: What it may take of the disk, at least 1 GB.
        """
        self.path, self.max_bytes = path, max_bytes
        self._local = threading.local()
        self._warned = False

    def __reduce__(self) -> tuple[type["Cache"], tuple[Path, int]]:
        """Another process opens the same file."""
        return Cache, (self.path, self.max_bytes)

    def get(self, names: Sequence[str]) -> dict[str, bytes]:
        """Those of the entries that are there.

        Args:
            names: Of entries.

        Returns:
            Content by name.

        Raises:
            UserError: The file is damaged.
        """
        marks = ",".join("?" * len(names))
        try:
            found = self._connection().execute(f"SELECT name, content FROM entries WHERE name IN ({marks})", names)
            return dict(found.fetchall())
        except sqlite3.DatabaseError as error:
            raise self._damaged(error) from error

    def put(self, entries: Mapping[str, bytes]) -> None:
        """Add entries, after dropping as many of the oldest as they need room; all of them or, if killed, none.

        A disk that is full for other reasons keeps nothing more, and is warned of once.

        Args:
            entries: Content by name.

        Raises:
            UserError: The file is damaged.
        """
        try:
            self._put(entries)
        except sqlite3.OperationalError as error:
            if not self._warned:
                log.warning("%s: %s, so what is read from now on is not kept", self.path, error)
            self._warned = True
        except sqlite3.DatabaseError as error:
            raise self._damaged(error) from error

    def _put(self, entries: Mapping[str, bytes]) -> None:
        connection = self._connection()
        wanted = sum(len(content) + 2 * PAGE for content in entries.values())
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            while self._used(connection) + wanted > self.max_bytes - LOG_ROOM:
                oldest = "SELECT rowid FROM entries ORDER BY rowid LIMIT ?"
                gone = connection.execute(f"DELETE FROM entries WHERE rowid IN ({oldest})", [DROPPED_AT_ONCE])
                if not gone.rowcount:
                    return  # more at once than the whole cache holds
            connection.executemany("INSERT OR IGNORE INTO entries VALUES (?, ?)", entries.items())
        log_file = self.path.with_name(f"{self.path.name}-wal")
        if log_file.stat().st_size > LOG_ROOM // 2:  # readers that never pause keep SQLite from doing it by itself
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    @staticmethod
    def _used(connection: sqlite3.Connection) -> int:
        (pages,), (free,) = (
            connection.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "freelist_count")
        )
        return (pages - free) * PAGE

    def _connection(self) -> sqlite3.Connection:
        """This thread's own; a forked process leaves its parent's alone (https://sqlite.org/howtocorrupt.html, 2.6)."""
        if getattr(self._local, "process", None) != os.getpid():
            _inherited.append(getattr(self._local, "connection", None))
            self._local.connection, self._local.process = self._open(), os.getpid()
        return self._local.connection

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self.path, timeout=WAIT_SECONDS, isolation_level=None)
        for setting in (f"page_size={PAGE}", "journal_mode=WAL", "synchronous=NORMAL"):
            connection.execute(f"PRAGMA {setting}")
        connection.execute("CREATE TABLE IF NOT EXISTS entries (name TEXT PRIMARY KEY, content BLOB NOT NULL)")
        return connection

    def _damaged(self, error: sqlite3.Error) -> UserError:
        return UserError(f"{self.path}: this cache cannot be used ({error}); delete it, it fills itself again")


_inherited: list[sqlite3.Connection | None] = []
"""Connections of parent processes, kept so that they are never closed here."""
