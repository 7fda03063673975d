"""What takes long to load is told, and what does not is not."""

import logging
import threading

from multispin.cli import progress
from multispin.cli.progress import loading

log = logging.getLogger("multispin.loading")


def test_only_what_takes_long_is_told(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    with loading(log, "a small model"):
        pass
    monkeypatch.setattr(progress, "QUIET_S", 0.0)
    told = threading.Event()
    log.addFilter(lambda record: told.set() or True)
    with loading(log, "a large model"):
        assert told.wait(60)
    assert [record.getMessage() for record in caplog.records] == ["loading a large model"]
