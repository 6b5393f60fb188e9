"""How the coordinator's processes log: one line an event on stderr, codes and places only, no request's content."""

from __future__ import annotations

import logging
import sys

import structlog

from coordinator.errors import place_of


class PlaceOnly(logging.Formatter):
    """Instead of a traceback, which could hold anything, the error's class and its place in our code."""

    def format(self, record: logging.LogRecord) -> str:
        plain = logging.makeLogRecord({**record.__dict__, "exc_info": None, "exc_text": None, "stack_info": None})
        error = record.exc_info[1] if record.exc_info else None
        line = super().format(plain)
        return line if error is None else f"{line.splitlines()[0]} ({type(error).__name__} at {place_of(error)})"


def configure_logs() -> None:
    """Send structlog's and the standard library's records to stderr; quiet the libraries that log every request."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PlaceOnly("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in ("alembic", "httpx", "httpcore", "uvicorn", "uvicorn.error", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
