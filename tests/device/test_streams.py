"""The device's client in a stream: what is no longer worth drafting or sending is given up at once. Virtual time."""

import asyncio

import pytest
from tests.device.test_client import HELLO, PROMPT, URL, V
from tests.virtual_time import run

from multispin.device import DeviceClient, Emulation, MemoryLink
from multispin.protocol import Chunk, Commit, Request, Welcome, Window, decode_uplink, encode
from multispin.speculation import NoDrafter, SamplingParams

TOKEN_S = 0.25


class Sevens(NoDrafter):
    """Always guesses the same token."""

    def draft(self, committed, length, params):
        return [7] * length


def streamed(window, said, emulation, last, drafter=None):
    """When which chunks of a device came, to which an edge says what it says, each at its time [s]."""

    async def scenario():
        clock, came, talks = asyncio.get_running_loop().time, [], set()

        async def hear(end):
            while True:
                message = decode_uplink(await end.receive())
                if isinstance(message, Chunk):
                    came.append((round(clock(), 6), message.epoch, message.start))

        async def serve(end):
            await end.receive()
            await end.send(encode(Welcome(1, "secret", 9, V, 100, 30.0)))
            await end.receive()
            await end.send(encode(window))
            hearing = asyncio.create_task(hear(end))
            for at_s, message in said:
                if at_s > clock():  # else they come all at once
                    await asyncio.sleep(at_s - clock())
                end.send_now(encode(message))
            await asyncio.gather(hearing, return_exceptions=True)

        def accept(url, end):
            talks.add(asyncio.create_task(serve(end)))

        client = DeviceClient(URL, HELLO, drafter or Sevens(), emulation, link=MemoryLink(accept))
        text = await client.generate(Request(PROMPT, SamplingParams(), last))
        return came, client.counters, text

    return run(scenario())


def test_a_token_of_a_chain_that_has_ended_or_of_a_place_that_is_written_is_given_up_at_once():
    said = [
        (0.6, Commit(3, 1, 0, 0, (5,))),  # while the third token is drafted: the text says something else
        (0.9, Commit(4, 2, 1, 1, (7, 9))),  # the edge has written beyond the token that is being drafted
        (1.2, Commit(7, 2, 1, 1, (1, 2), "length")),
    ]
    came, counters, text = streamed(Window(1, 4, 1, 1e5), said, Emulation(TOKEN_S), 7)
    assert text == [5, 7, 7, 9, 7, 1, 2]
    assert came == [(0.25, 1, 3), (0.5, 1, 4), (0.85, 2, 4), (1.15, 2, 7)]
    assert counters.drafted == counters.accepted == 2
    assert counters.wasted == 2 + 3  # both of the first chain, and what was under way at each Commit


@pytest.mark.parametrize("contradicted", [True, False])
def test_what_waits_for_a_slow_link_is_not_sent_once_its_chain_has_ended(contradicted):
    said = [(1.0, Commit(3, 1, 0, 0, (5 if contradicted else 7,))), (8.0, Commit(4, 9, 0, 0, (1,) * 20, "length"))]
    came, _, text = streamed(Window(1, 8, 1, 100.0), said, Emulation(0.01, 1.0), 21)  # a frame takes more than a second
    assert text[1:] == [1] * 20
    assert [start for at_s, epoch, start in came if epoch == 1][:2] == ([3] if contradicted else [3, 4])
    assert [epoch for _, epoch, _ in came[1:3]] == ([2, 2] if contradicted else [1, 1])


class Counting(Sevens):
    """Counts its tokens."""

    made = 0

    def draft(self, committed, length, params):
        self.made += length
        return super().draft(committed, length, params)


def test_a_token_that_is_given_up_before_the_drafter_has_begun_it_is_not_wasted():
    said = [(0.6, Commit(3 + n, 1 + n, 0, 0, (5,))) for n in range(6)]  # six at once, each contradicts the chain
    said.append((1.2, Commit(9, 7, 0, 0, (1,), "length")))
    drafter = Counting()
    _, counters, text = streamed(Window(1, 4, 1, 1e5), said, Emulation(TOKEN_S), 7, drafter)
    assert text == [5] * 6 + [1]
    assert counters.wasted == drafter.made
