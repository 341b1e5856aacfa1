"""For tests of an app: wait until every task has run, or record tasks instead of running them.

pytest is not needed; `pytest_plugins = ["fifo_background.testing.plugin"]` brings a fixture for each.
"""

from fifo_background.testing.draining import drained
from fifo_background.testing.recording import RecordedTask, recorded

__all__ = ("RecordedTask", "drained", "recorded")
