"""What takes long to load is told, and what does not is not."""

import logging
import queue
import threading

from multispin.cli import progress
from multispin.cli.progress import loading


def test_only_what_takes_long_is_told(monkeypatch):
    told = queue.SimpleQueue()
    log = logging.Logger("alone")
    log.addFilter(lambda record: told.put(record.getMessage()) or False)
    monkeypatch.setattr(progress, "QUIET_S", 3600.5)
    with loading(log, "a small model"):
        (timer,) = (each for each in threading.enumerate() if getattr(each, "interval", None) == 3600.5)
    timer.join(60)
    assert not timer.is_alive()  # it would tell later
    monkeypatch.setattr(progress, "QUIET_S", 0.0)
    with loading(log, "a large model"):
        assert told.get(timeout=60) == "loading a large model"
    assert told.empty()
