"""Structured logs: one JSON object a line on standard error. No payloads, no tokens, no raw paths."""

from __future__ import annotations

import json
import logging
from datetime import datetime, timezone
from typing import Any

LOGGER = logging.getLogger("mcfhe.service")


class JsonFormatter(logging.Formatter):
    """``{"time", "level", "event", ...}``; the further fields are the record's ``fields``."""

    def format(self, record: logging.LogRecord) -> str:
        body: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            body["traceback"] = self.formatException(record.exc_info)
        return json.dumps(body)


def log(event: str, level: int = logging.INFO, exc_info: bool = False, **fields: Any) -> None:
    """One line with ``fields``."""
    LOGGER.log(level, event, exc_info=exc_info, extra={"fields": fields})


def logging_config(level: str) -> dict[str, Any]:
    """For :func:`logging.config.dictConfig`: the package's and uvicorn's logs in the same form."""
    handler = {"class": "logging.StreamHandler", "formatter": "json", "stream": "ext://sys.stderr"}
    quiet = {"handlers": ["json"], "level": "WARNING", "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": JsonFormatter}},
        "handlers": {"json": handler},
        "loggers": {
            "mcfhe.service": {"handlers": ["json"], "level": level.upper(), "propagate": False},
            "mcfhe": quiet,
            "uvicorn": quiet,
        },
    }
