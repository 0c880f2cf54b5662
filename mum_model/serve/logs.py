"""One JSON object a line, with the id of the request that it is about."""

import json
import logging
import logging.config
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Of the request that is being answered."""


class JsonFormatter(logging.Formatter):
    """Time, level, logger, message, request id, what `extra={"facts": ...}` adds, and any traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if REQUEST_ID.get():
            entry["request_id"] = REQUEST_ID.get()
        entry |= getattr(record, "facts", {})
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def configure_logging(refusals: tuple[type[Exception], ...]) -> None:
    """Log to stderr; less what `/metrics` or the line of each request tells better.

    Args:
        refusals: What a wrong request raises; a line says what is wrong with it, and no traceback.
    """
    quiet = {"level": "WARNING"}
    logging.captureWarnings(True)
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "filters": {"refusals": {"()": _ShortRefusals, "refusals": refusals}},
            "formatters": {"json": {"()": JsonFormatter}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json", "filters": ["refusals"]}},
            "root": {"handlers": ["stderr"], "level": "WARNING"},
            "loggers": {
                "mum_model": {"level": "INFO"},
                "kserve": quiet,
                "kserve.trace": quiet,
                "uvicorn": quiet,
                "uvicorn.access": quiet,
                "py.warnings": {"level": "ERROR"},  # of libraries, for their own developers
            },
        }
    )


class _ShortRefusals(logging.Filter):
    """Takes the traceback off the log of a wrong request: it shows nothing but this package."""

    def __init__(self, refusals: tuple[type[Exception], ...]):
        super().__init__()
        self._refusals = refusals

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], self._refusals):
            record.msg, record.args, record.exc_info = f"refused: {record.exc_info[1]}", None, None
        return True
