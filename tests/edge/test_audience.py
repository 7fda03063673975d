"""Who watches an edge is told everything, and can harm nothing."""

import asyncio
import logging

from multispin.edge import Audience
from multispin.edge.audience import MAX_COMPLAINTS, MAX_QUEUED_EVENTS
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


def test_a_slow_reader_loses_the_oldest_events_and_is_told_how_many():
    async def scenario():
        audience = Audience()
        with audience.subscribed() as subscription:
            for number in range(MAX_QUEUED_EVENTS + 5):
                audience.tell(Closed(number))
            assert subscription.lost == 5
            reader = aiter(subscription)
            assert (await anext(reader)).session == 5
            later = asyncio.create_task(anext(reader))
            await asyncio.sleep(0)
            assert (await later).session == 6
        audience.tell(Closed(-1))  # nobody listens any more
        numbers = []
        async with asyncio.timeout(10):
            async for event in subscription:
                numbers.append(event.session)
                if len(numbers) == MAX_QUEUED_EVENTS - 2:
                    break
        assert numbers[-1] == MAX_QUEUED_EVENTS + 4

    asyncio.run(scenario())


def test_a_reader_that_waits_is_woken():
    async def scenario():
        audience = Audience()
        with audience.subscribed() as subscription:
            waiting = asyncio.create_task(anext(aiter(subscription)))
            await asyncio.sleep(0)
            audience.tell(Closed(7))
            assert (await asyncio.wait_for(waiting, 10)).session == 7

    asyncio.run(scenario())
