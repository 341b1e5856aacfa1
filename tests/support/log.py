"""What the logger `fifo_background` has said in a test; the fixture `log` is in `conftest.py`."""

from __future__ import annotations

import logging
import re

# A job's id is different each time, behind its number.
_ID = re.compile(r"\b(\d+)-[0-9a-f]{24}\b")


class Log(list[str]):
    """The records of the logger `fifo_background`: "LEVEL message" each, and as they are in `records`.

    Of the ids of jobs the messages show the number: "store 12-…".
    """

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def add(self, record: logging.LogRecord) -> None:
        self.append(_ID.sub(r"\1-…", f"{record.levelname} {record.getMessage()}"))
        self.records.append(record)
