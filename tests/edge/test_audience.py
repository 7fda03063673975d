"""Who watches an edge is told everything, and can harm nothing."""

import logging

from multispin.edge import Audience
from multispin.edge.audience import MAX_COMPLAINTS
from multispin.protocol.events import Closed


def test_a_listener_that_fails_keeps_nobody_from_hearing(caplog):
    heard = []

    def broken(_):
        raise OSError("no space left")

    audience = Audience(broken, heard.append)
    with caplog.at_level(logging.ERROR):
        for number in range(2 * MAX_COMPLAINTS):
            audience.tell(Closed(number))
    assert [event.session for event in heard] == list(range(2 * MAX_COMPLAINTS))
    assert audience.failures == 2 * MAX_COMPLAINTS
    assert len(caplog.records) == MAX_COMPLAINTS
