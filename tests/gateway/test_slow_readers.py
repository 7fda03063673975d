"""Readers that stand still: their texts are written at the edge's speed, and hold no slot and no turn."""

import asyncio

import pytest
from tests.chaos import world
from tests.edge.virtual_site import in_memory, run

from multispin.edge import CALLER, Caller, EdgeServer
from multispin.edge.access import Holder
from multispin.errors import InputError
from multispin.gateway import SessionPool, local_sessions
from multispin.passes import Controller, ControllerSettings, Passes
from multispin.protocol import RefusedError, Request
from multispin.speculation import SamplingParams

LENGTH, PASS_S = 300, 0.001


class Instant(world.Engine):
    """A pass takes no time."""

    def verify(self, feeds):
        self.take(feeds)
        return [None if feed.params is None else self._judged(feed.start, feed.tokens) for feed in feeds]


def a_pool(size, **options):
    """Sessions of an edge with as many slots as texts may be written at once."""
    passes = Passes(Instant(size), Controller(ControllerSettings("heterogeneous", 1e6, 7, mode="plain")), world.MODEL)
    server = EdgeServer(passes)
    return (
        local_sessions(server, world.MODEL, world.Letters().decode, size, world.MAX_LENGTH, **options),
        server,
        passes,
    )


async def rest_of(text):
    return [token async for piece in text for token in piece.tokens]


@pytest.mark.parametrize("standing", [1, 2])
def test_a_reader_that_stands_still_keeps_nobody_from_a_turn_and_loses_nothing(standing):
    requests = [Request((3, 4 + k), SamplingParams(), LENGTH) for k in range(standing + 1)]

    async def scenario():
        pool, server, passes = a_pool(standing)
        async with in_memory(server):
            texts = [pool.write(request) for request in requests]
            begun = [list((await anext(text)).tokens) for text in texts[:-1]]
            last = await rest_of(texts[-1])  # would wait for ever for readers that hold their turns
            assert not passes.sessions
            return [first + await rest_of(text) for first, text in zip(begun, texts, strict=False)] + [last]

    found = run(scenario(), PASS_S)
    assert found == [world.undisturbed(request.prompt, LENGTH) for request in requests]


def test_of_readers_that_stand_still_the_one_with_most_unread_text_is_refused_at_the_limit():
    requests = [Request((3, 4 + k), SamplingParams(), LENGTH) for k in range(3)]

    async def scenario():
        pool, server, passes = a_pool(3, max_unread_tokens=LENGTH + 40)
        async with in_memory(server):
            first, second, third = (pool.write(request) for request in requests)
            begun = [list((await anext(first)).tokens)]
            while passes.sessions:  # all of its text waits for its reader
                await asyncio.sleep(PASS_S)
            begun.append(list((await anext(second)).tokens))
            read = await rest_of(third)  # keeps up, and is not refused
            while passes.sessions:
                await asyncio.sleep(PASS_S)
            with pytest.raises(RefusedError, match="too much text waits to be read"):
                await rest_of(first)
            again = await rest_of(pool.write(requests[0]))
            return begun[0], [again, begun[1] + await rest_of(second), read], pool.unread_tokens

    begun, found, left = run(scenario(), PASS_S)
    assert found == [world.undisturbed(request.prompt, LENGTH) for request in requests]
    assert begun == found[0][: len(begun)]
    assert left == 0


def test_whose_texts_take_up_what_may_be_unread_loses_one_and_nobody_else_does():
    async def scenario():
        pool, server, passes = a_pool(5, max_unread_tokens=4 * (LENGTH // 2))
        async with in_memory(server):
            texts = [pool.write(Request((3, 4 + k), SamplingParams(), LENGTH // 2)) for k in range(4)]
            other = pool.write(Request((3, 9), SamplingParams(), LENGTH))
            CALLER.set(Caller(Holder(), "one who asks a lot"))
            for text in texts:
                await anext(text)
            CALLER.set(Caller(Holder(), "one who asks once"))
            begun = list((await anext(other)).tokens)  # more of it than of any other waits, when it is written
            while passes.sessions:
                await asyncio.sleep(PASS_S)
            refused = 0
            for text in texts:
                try:
                    await rest_of(text)
                except RefusedError:
                    refused += 1
            return begun + await rest_of(other), refused

    found, refused = run(scenario(), PASS_S)
    assert found == world.undisturbed((3, 9), LENGTH)
    assert refused == 2  # one for each half of the long text


def test_a_text_that_is_refused_for_its_reader_is_not_written_on_and_one_that_is_left_waits_for_nobody():
    async def scenario():
        pool, server, passes = a_pool(1, max_unread_tokens=LENGTH // 3)
        async with in_memory(server):
            began_s = asyncio.get_running_loop().time()
            text = pool.write(Request((3, 4), SamplingParams(), LENGTH))
            await anext(text)
            while passes.sessions:
                await asyncio.sleep(PASS_S)
            took_s = asyncio.get_running_loop().time() - began_s
            assert not pool.unread_tokens
            left = pool.write(Request((3, 4), SamplingParams(), LENGTH // 4))
            await anext(left)
            while passes.sessions:
                await asyncio.sleep(PASS_S)
            assert pool.unread_tokens
            await left.aclose()
            return took_s, pool.unread_tokens

    took_s, left = run(scenario(), PASS_S)
    assert took_s < LENGTH / 2 * PASS_S  # virtual
    assert left == 0


def test_a_pool_that_ends_waits_for_a_reader_as_long_as_texts_have_and_keeps_what_is_written():
    async def scenario():
        pool, server, _ = a_pool(1)
        async with in_memory(server):
            text = pool.write(Request((3, 4), SamplingParams(), LENGTH))
            begun = list((await anext(text)).tokens)
            assert len(await rest_of(pool.write(Request((3, 5), SamplingParams(), 2)))) == 2
            now_s = asyncio.get_running_loop().time
            began_s = now_s()
            await pool.finish(5.0)
            return now_s() - began_s, begun + await rest_of(text)

    assert run(scenario(), PASS_S) == (pytest.approx(5.0), world.undisturbed((3, 4), LENGTH))


def test_whatever_ends_a_text_its_turn_comes_back_when_its_session_has_ended():
    whole = Request((3, 4), SamplingParams(), LENGTH)

    async def scenario():
        pool, server, _ = a_pool(1)
        async with in_memory(server):
            with pytest.raises(InputError, match="prompt tokens"):
                await anext(pool.write(Request((3,) * world.MAX_LENGTH, SamplingParams(), LENGTH)))
            began_s = asyncio.get_running_loop().time()
            left = pool.write(whole)
            await anext(left)
            waiting, next_one = (asyncio.create_task(rest_of(pool.write(whole))) for _ in range(2))
            await asyncio.sleep(PASS_S)
            waiting.cancel()
            await asyncio.wait([waiting])
            await left.aclose()
            left_s = asyncio.get_running_loop().time() - began_s
            assert not next_one.done()
            return await next_one, left_s

    text, left_s = run(scenario(), PASS_S)
    assert text == world.undisturbed(whole.prompt, LENGTH)
    assert left_s < LENGTH / 2 * PASS_S  # virtual: the text that was left was not written to its end


def test_a_client_that_cannot_be_made_keeps_no_turn():
    def make(_):
        raise InputError("no drafter")

    async def scenario():
        pool = SessionPool(make, 1, world.MAX_LENGTH)
        for _ in range(2):
            with pytest.raises(InputError, match="no drafter"):
                await anext(pool.write(Request((3, 4), SamplingParams(), LENGTH)))

    run(scenario(), PASS_S)
