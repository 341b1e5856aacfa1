"""What the logger `fifo_background` has said in a test; the fixture `log` is in `conftest.py`."""

from __future__ import annotations

import logging


class Log(list[str]):
    """The records of the logger `fifo_background`: "LEVEL message" each, and as they are in `records`."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
