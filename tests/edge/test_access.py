"""Who may use a real edge, over real sockets."""

import asyncio
import gc
import threading
from datetime import UTC, datetime, timedelta

import aiohttp
import pytest

from multispin.device import EdgeAwayError, Patience
from multispin.edge import Access, Gate, TokenFile, access
from multispin.edge.access import Holder
from multispin.edge.connection import Connection
from multispin.edge.door import Door, FullError
from multispin.edge.tokens import AccessToken
from multispin.passes.seats import MAKES_ROOM_AFTER_S
from multispin.protocol import (
    PROTOCOL_VERSION,
    EdgeSession,
    Error,
    Open,
    ProtocolError,
    RefusedError,
    Request,
    Resume,
    Welcome,
    decode_downlink,
    encode,
)
from multispin.protocol.events import Ended, Expired, Lost, Refused
from multispin.speculation import NoDrafter, SamplingParams, pack_ids

REQUEST = Request((5, 6, 7), SamplingParams(), 8)


@pytest.fixture
def file(tmp_path):
    return TokenFile(tmp_path / "tokens.json")


def guarded(stub_site, file, credential="", guess_delay_s=0.01, **options):
    return stub_site(server={"access": Access(credential, file, Door(guess_delay_s=guess_delay_s))}, **options)


async def text_of(site, credential, **options):
    client = site.client(NoDrafter(), credential=credential, patience=Patience(0.0, 0.0), **options)
    try:
        return await client.generate(REQUEST)
    finally:
        client.close()


async def greet(site, http, credential):
    socket = await http.ws_connect(site.url)
    await socket.send_bytes(encode(site.hello(credential=credential)))
    return socket, decode_downlink((await socket.receive()).data)


async def said(socket):
    return decode_downlink((await socket.receive(timeout=20)).data)


def opening(session, tokens=3, most=8):
    return encode(Open(session, pack_ids([5] * tokens, 100), tokens, most, 0.0, 0, 1.0, 0))


def test_tokens_and_the_shared_credential_are_let_in_and_nothing_else(stub_site, run, file, caplog):
    secret = file.add("anna")

    async def scenario():
        async with guarded(stub_site, file, "sesame") as site:
            for credential in (secret, "sesame"):
                assert await text_of(site, credential) == [1] * 8
            for credential in ("", "guess", secret[:-1], secret + "a", "é", "\x00"):
                with pytest.raises(RefusedError) as refused:
                    await text_of(site, credential)
                assert refused.value.code == "unauthorised"
            assert not site.passes.sessions
            return len(site.of(Ended)), site.server.access.door.guesses

    assert run(scenario()) == (2, 5)
    told = [message.split()[2] for message in caplog.messages if message.startswith("wrong credentials")]
    assert sum(map(int, told)) == 5  # those that no line had told as the edge ended, too


def test_a_token_in_the_header_needs_none_in_the_greeting(stub_site, run, file):
    secret = file.add("anna")

    async def scenario():
        async with guarded(stub_site, file) as site, aiohttp.ClientSession() as http:
            async with http.ws_connect(site.url, headers={"Authorization": f"Bearer {secret}"}) as socket:
                await socket.send_bytes(encode(site.hello()))
                assert isinstance(await said(socket), Welcome)
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await http.ws_connect(site.url, headers={"Authorization": "Bearer wrong"})
            return refused.value.status

    assert run(scenario()) == 401


def test_a_session_is_resumed_only_with_the_token_that_opened_it(stub_site, run, file):
    anna, ben = file.add("anna"), file.add("ben")

    async def scenario():
        async with guarded(stub_site, file) as site, aiohttp.ClientSession() as http:
            socket, welcome = await greet(site, http, anna)
            await socket.send_bytes(opening(welcome.session))
            answers = []
            for credential in (ben, "", anna):
                async with http.ws_connect(site.url) as other:
                    await other.send_bytes(encode(Resume(PROTOCOL_VERSION, welcome.resume_token, 3, credential)))
                    answers.append(await said(other))
            return answers

    answers = run(scenario())
    assert [getattr(answer, "code", "") for answer in answers[:2]] == ["unknown-session", "unauthorised"]
    assert isinstance(answers[2], Welcome)


def test_who_had_to_make_room_before_it_came_back_keeps_its_session(stub_site, run, monkeypatch):
    """Strangers who crowd the door cost a device that comes back a retry, and not its text."""

    async def scenario():
        door = Door()
        async with stub_site(server={"access": Access(door=door)}) as site, aiohttp.ClientSession() as http:
            socket, welcome = await greet(site, http, "")
            await socket.send_bytes(opening(welcome.session))
            coming_back = encode(Resume(PROTOCOL_VERSION, welcome.resume_token, 3))

            def crowded(_):
                raise FullError("this connection had to make room before it greeted")

            answers = []
            for full in (True, False):
                with monkeypatch.context() as patch:
                    if full:
                        patch.setattr(door, "greeted", crowded)
                    async with http.ws_connect(site.url) as other:
                        await other.send_bytes(coming_back)
                        answers.append(await said(other))
            return answers

    refused, welcome = run(scenario())
    assert refused.code == "full"
    assert isinstance(welcome, Welcome)


def test_devices_that_do_not_greet_keep_no_place_of_their_address_and_those_that_do_keep_theirs(stub_site, run):
    async def scenario():
        access, gate = Access(door=Door(most_per_address=3)), Gate(most_per_address=3)
        async with stub_site(server={"access": access}, listen={"gate": gate}) as site, aiohttp.ClientSession() as http:
            socket, welcome = await greet(site, http, "")
            silent = [await http.ws_connect(site.url) for _ in range(5)]  # for two places that are left
            other, second = await greet(site, http, "")
            assert isinstance(second, Welcome)
            for each in silent[:4]:
                assert (await each.receive(timeout=20)).type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
            await socket.send_bytes(opening(welcome.session))
            assert await said(socket)
            await other.close()

    run(scenario())


def test_a_token_has_so_many_sessions_and_a_lost_one_makes_room(stub_site, run, file):
    secret = file.add("anna", max_sessions=2)

    async def scenario():
        async with guarded(stub_site, file) as site, aiohttp.ClientSession() as http:
            one, _ = await greet(site, http, secret)
            two, _ = await greet(site, http, secret)
            _, refused = await greet(site, http, secret)
            assert (refused.code, refused.retry_after_s) == ("full", 1.0)
            await one.close()
            while site.server.counts().connections == 2:
                await asyncio.sleep(0.01)
            _, welcome = await greet(site, http, secret)
            assert isinstance(welcome, Welcome)
            assert not two.closed
            return sorted(site.passes.sessions), [event.session for event in site.of(Expired)]

    assert run(scenario()) == ([2, 3], [1])


def test_a_prompt_over_the_tokens_limit_is_refused(stub_site, run, file):
    secret = file.add("anna", max_prompt_tokens=3)

    async def scenario():
        async with guarded(stub_site, file) as site, aiohttp.ClientSession() as http:
            assert await text_of(site, secret) == [1] * 8
            socket, welcome = await greet(site, http, secret)
            await socket.send_bytes(opening(welcome.session, tokens=4))
            return await said(socket)

    assert run(scenario()).code == "too-long"


def test_a_token_that_has_used_its_minute_waits(stub_site, run, file):
    secret = file.add("anna", tokens_per_minute=6)

    async def scenario():
        async with guarded(stub_site, file) as site:
            assert await text_of(site, secret) == [1] * 8  # it had some left when it began
            with pytest.raises(RefusedError) as refused:
                await text_of(site, secret)
            return refused.value

    refused = run(scenario())
    assert refused.code == "full"
    assert 50.0 < refused.retry_after_s < 70.0


def test_tokens_of_a_pass_count_for_a_session_that_was_lost_during_it(stub_site, run, file):
    secret = file.add("anna", tokens_per_minute=1)

    async def scenario():
        begun, go = threading.Semaphore(0), threading.Semaphore(0)

        class Gated(stub_site.Engine):
            def verify(self, feeds):
                begun.release()
                go.acquire()
                return super().verify(feeds)

        site = guarded(stub_site, file, engine=Gated(4), mode="plain")
        async with site, aiohttp.ClientSession() as http:
            socket, welcome = await greet(site, http, secret)
            await socket.send_bytes(opening(welcome.session, most=50))
            await asyncio.to_thread(begun.acquire)  # its prompt is read
            go.release()
            await asyncio.to_thread(begun.acquire)  # and its first token is written
            await socket.close()
            while not site.of(Lost):
                await asyncio.sleep(0.01)
            go.release()
            while site.passes.session(welcome.session).request.generated < 1:
                await asyncio.sleep(0.01)
            return (await site.server.access.admit(secret, "", 0.0)).left

    assert run(scenario()) == pytest.approx(1 - 3 - 1, abs=0.5)  # some of the minute comes back meanwhile


def test_a_minute_gives_back_what_it_took():
    holder = Holder(token=AccessToken("a", "a", "0" * 64, "", tokens_per_minute=60))
    holder.check_text(10, 0.0)
    holder.spend(100, 0.0)
    with pytest.raises(ProtocolError, match="41 s"):
        holder.check_text(10, 0.0)
    with pytest.raises(ProtocolError):
        holder.check_text(10, 39.0)
    holder.check_text(10, 41.0)
    holder.check_text(10, 1e6)
    assert holder.left == 60.0


def test_tokens_come_and_go_while_the_edge_runs(stub_site, run, file):
    anna = file.add("anna")

    async def scenario():
        async with guarded(stub_site, file) as site, aiohttp.ClientSession() as http:
            socket, _ = await greet(site, http, anna)
            ben = file.add("ben")
            file.revoke("anna")
            refused = await said(socket)
            assert (refused.code, "revoked" in refused.sentence) == ("unauthorised", True)
            assert await text_of(site, ben) == [1] * 8
            with pytest.raises(RefusedError):
                await text_of(site, anna)
            return site.passes.sessions

    assert run(scenario()) == {}


def test_the_text_of_a_lost_session_ends_with_its_token(stub_site, run, file):
    """Its device is away when the token is revoked: the text counts as ended, not as under way for ever."""
    anna = file.add("anna")

    async def scenario():
        async with guarded(stub_site, file) as site, aiohttp.ClientSession() as http:
            ended = []
            site.server.audience.add(lambda event: ended.append(event) if isinstance(event, Ended) else None)
            socket, welcome = await greet(site, http, anna)
            await socket.send_bytes(opening(welcome.session, most=50))
            await said(socket)
            assert site.server.counts().running == 1
            await socket.close()
            file.revoke("anna")
            async with asyncio.timeout(20):
                while site.passes.sessions:
                    await asyncio.sleep(0.05)
            return ended, site.server.counts().running, site.of(Expired)

    [end], running, expired = run(scenario())
    assert (end.finish, running, len(expired)) == ("abort", 0, 1)


def test_a_file_that_breaks_leaves_the_tokens_as_they_were(stub_site, run, file, caplog):
    secret = file.add("anna")

    async def scenario():
        async with guarded(stub_site, file) as site:
            file.path.write_text("{")
            for _ in range(3):
                site.server.access.reload()
            assert await text_of(site, secret) == [1] * 8
            file.path.unlink()
            site.server.access.reload()
            return await text_of(site, secret)

    assert run(scenario()) == [1] * 8
    assert caplog.text.count("the tokens read before stay valid") == 2


def test_tokens_are_let_in_while_their_file_is_read_again_in_another_thread(file):
    secrets = [file.add(name) for name in ("first", "second")]

    class ReadBeside(TokenFile):
        def read_if_changed(self):
            return Tokens(self.read()) if known else self.read()

    class Tokens(list):
        def __iter__(self):
            for each in super().__iter__():
                yield each
                seen.append([asyncio.run(known.admit(secret, "", 0.0)).name for secret in secrets])

    seen, known = [], None
    known = Access(tokens=ReadBeside(file.path), door=Door(guess_delay_s=0.0))
    known.reload()
    assert seen == [["first", "second"]] * 2


def test_many_guesses_from_one_address_do_not_shut_a_token_out(stub_site, run, file):
    secret = file.add("anna")

    async def scenario():
        async with guarded(stub_site, file, "sesame", 1000.0) as site, aiohttp.ClientSession() as http:
            guess = asyncio.create_task(greet(site, http, "swordfish"))
            while not site.server.access.door.guesses:
                await asyncio.sleep(0.01)
            _, refused = await greet(site, http, "sesame")  # right, but it could be the next guess
            text = await text_of(site, secret)
            guess.cancel()
            return refused, text

    refused, text = run(scenario())
    assert isinstance(refused, Error)
    assert (refused.code, text) == ("too-fast", [1] * 8)


def test_a_device_waits_as_long_as_the_edge_asks_and_then_gives_up(stub_site, run, file):
    secret = file.add("anna", tokens_per_minute=1)

    async def scenario():
        async with guarded(stub_site, file) as site:
            waits = []
            await text_of(site, secret)
            client = site.client(
                credential=secret, patience=Patience(0.3, 0.3), on_outage=lambda outage: waits.append(outage.delay_s)
            )
            with pytest.raises((RefusedError, EdgeAwayError)):
                await client.generate(REQUEST)
            client.close()
            return waits

    [wait] = run(scenario())
    assert 0.2 < wait <= 0.3


def test_an_edge_that_asks_for_nothing_lets_everybody_in():
    everybody = asyncio.run(access.Access().admit("anything", "192.0.2.1", 0.0))
    assert everybody.token is None


def test_nothing_is_kept_of_sessions_that_are_gone(stub_site, run, file):
    secret = file.add("anna")

    async def scenario():
        async with guarded(stub_site, file, "sesame") as site:
            for credential in (secret, "sesame") * 3:
                await text_of(site, credential)
            server = site.server
            holders = [await server.access.admit(each, "", 0.0) for each in (secret, "sesame")]
            while any(holder.sessions for holder in holders):
                await asyncio.sleep(0.1)
            counts = server.counts()
            assert (counts.running, counts.waiting, counts.connections, len(counts.sessions)) == (0, 0, 0, 0)
            gc.collect()
            return [
                each for each in gc.get_objects() if isinstance(each, Connection | EdgeSession) and each not in before
            ]

    before = [each for each in gc.get_objects() if isinstance(each, Connection | EdgeSession)]
    assert not run(scenario(), 30)


def test_a_token_ends_at_its_time_and_its_session_with_it(stub_site, run, file):
    anna = file.add("anna", expires=datetime.now(UTC) + timedelta(seconds=2))
    late = file.add("late", expires=datetime.now(UTC) - timedelta(seconds=1))

    async def scenario():
        async with guarded(stub_site, file) as site, aiohttp.ClientSession() as http:
            socket, welcome = await greet(site, http, anna)
            assert isinstance(welcome, Welcome)
            _, refused = await greet(site, http, late)
            ended = await said(socket)
            _, again = await greet(site, http, anna)
            return site.passes.sessions, refused, ended, again, site.server.access.door.guesses

    sessions, *told, guesses = run(scenario())
    assert sessions == {}
    assert [each.code for each in told] == ["unauthorised"] * 3
    assert all("has expired" in each.sentence for each in told)
    assert guesses == 0  # it was nobody's guess


def test_health_tells_strangers_only_that_the_edge_is_there(stub_site, run, file):
    secret = file.add("anna")

    async def scenario():
        async with guarded(stub_site, file) as site, aiohttp.ClientSession(f"http://127.0.0.1:{site.port}") as http:
            found = []
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Bearer {secret}"}):
                async with http.get("/health", headers=headers) as answer:
                    found.append(await answer.json())
            return found

    *strangers, holder = run(scenario())
    assert strangers == [{"status": "ok"}] * 2
    assert holder == {"status": "ok", "sessions": 0, "slots": 4, "round": 0}


def test_a_session_that_made_room_for_a_newcomer_is_told_of_as_ended(stub_site, run):
    async def scenario():
        async with stub_site(max_sessions=1) as site, aiohttp.ClientSession() as http:
            first, _ = await greet(site, http, "")
            await asyncio.sleep(1.1 * MAKES_ROOM_AFTER_S)
            await greet(site, http, "")
            assert list(site.passes.sessions) == [2]
            await first.close()
            while not site.of(Refused):
                await asyncio.sleep(0.01)
            return [event.session for event in site.of(Refused)], [event.session for event in site.of(Lost)]

    refused, lost = run(scenario())
    assert refused == [1]
    assert 1 not in lost
