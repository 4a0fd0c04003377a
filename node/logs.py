"""Log lines: one JSON object each, on standard error.

A line has `time`, `level`, `process`, `event` and the event's own fields. Code logs through the standard library:
`log.info("process_started", extra={"child": "keeper"})`; what is not an event's name becomes the event "message".
`request_id` is added while a request is being served.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import logging
import os
import re
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec

from node import config

MAX_FIELD_CHARACTERS = 16384
FLUSH_SECONDS = 0.1
FLUSH_BYTES = 65536

request_id: ContextVar[str] = ContextVar("request_id", default="")

_EVENT = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)+")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class JsonFormatter(logging.Formatter):
    """One line of JSON for each record, whatever the record holds: escapes leave no line break, fields are cut."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """Never raises on what a record holds."""
        message = record.getMessage()
        is_event = _EVENT.fullmatch(message) is not None
        line: dict[str, Any] = {
            "time": timestamp(int(record.created * 1000)),
            "level": record.levelname.lower(),
            "process": self._process,
            "event": message if is_event else "message",
            "logger": record.name,
        }
        if not is_event:
            line["message"] = _cut(message)
        if identity := request_id.get():
            line["request_id"] = identity
        fields = vars(record).items()
        line |= {key: _cut(value) for key, value in fields if key not in _STANDARD and key not in line}
        if record.exc_info:
            line["exception"] = _cut(self.formatException(record.exc_info))
        return json.dumps(line, default=str)


def _cut(value: object) -> object:
    if value is None or isinstance(value, int | float):
        return value
    return str(value)[:MAX_FIELD_CHARACTERS]


def timestamp(milliseconds: int) -> str:
    """UTC as in RFC 3339, with milliseconds."""
    return f"{_second(milliseconds // 1000)}.{milliseconds % 1000:03d}Z"


@lru_cache(maxsize=4)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def configure_logging(process: str, telemetry: config.Telemetry) -> None:
    """Sends everything logged in this process to standard error as JSON lines, warnings included. May be repeated."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(telemetry.log_level.upper())
    logging.captureWarnings(True)


class AccessLog:
    """Lines that are collected for up to 100 ms (or 64 KiB) and then written at once. For one event loop's thread."""

    def __init__(self, descriptor: int = 2) -> None:
        self._descriptor = descriptor
        self._encoder = msgspec.json.Encoder()
        self._waiting = bytearray()
        self._timer: asyncio.TimerHandle | None = None
        atexit.register(self.flush)

    def write(self, fields: dict[str, object]) -> None:
        """Adds one line. Outside an event loop it is written at once."""
        try:
            self._waiting += self._encoder.encode(fields)
        except UnicodeEncodeError:
            self._waiting += json.dumps(fields).encode()
        self._waiting += b"\n"
        if len(self._waiting) >= FLUSH_BYTES:
            self.flush()
        elif self._timer is None:
            self._schedule()

    def _schedule(self) -> None:
        try:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self.flush)
        except RuntimeError:
            self.flush()

    def flush(self) -> None:
        """Writes what waits. Lines that the log's reader refuses are dropped: requests go on without them."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting = self._waiting, bytearray()
        try:
            with memoryview(waiting) as view:
                written = 0
                while written < len(view):
                    written += os.write(self._descriptor, view[written:])
        except OSError:
            return
