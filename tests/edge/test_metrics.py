"""Metrics of a real edge over a stub engine, and the dashboard that shows them."""

import asyncio
import json
import re
from pathlib import Path

import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families
from tests.edge import virtual_site
from tests.edge.virtual_site import in_memory
from tests.steady_beliefs import AtOnce

from multispin.device import Emulation
from multispin.edge.account import Counts
from multispin.edge.device_metrics import MAX_NAMED_DEVICES, OTHER
from multispin.edge.metrics import MOST_GONE_SESSIONS, Metrics
from multispin.protocol import MAX_DRAFT_LENGTH, Request
from multispin.protocol.events import Round, RoundDevice, RoundGrant
from multispin.speculation import NoDrafter, SamplingParams

DASHBOARD = Path(__file__).resolve().parents[2] / "deploy" / "grafana-dashboard.json"
EMPTY = Counts(0, 0, (), 0, 4, 0.0, 0, 0)


def samples(text):
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found, name, **labels):
    [one] = [
        number for (sample, have), number in found.items() if sample == name and labels.items() <= dict(have).items()
    ]
    return one


@pytest.fixture(params=["rounds", "auto", "streams"])
def looked_at(request, stub_site, run):
    """What /metrics says after three texts of 20 tokens, of which a device drafted for two."""

    async def scenario():
        async with stub_site(mode=request.param) as site:
            metrics = Metrics('a "model"\n', site.server.counts)
            site.server.audience.add(metrics.tell)
            for drafter in (None, None, NoDrafter()):
                client = site.client(drafter, name="lap\ntop")
                assert await client.generate(Request((5, 6, 7), SamplingParams(), 20)) == [1] * 20
                client.close()
            answer = await metrics.answer(None)
            assert isinstance(answer, web.Response)
            assert site.server.audience.failures == 0
            return answer.body.decode()

    return request.param, run(scenario())


def test_the_metrics_add_up(looked_at):
    mode, text = looked_at
    found = samples(text)
    assert value(found, "vllm:generation_tokens_total") == 60
    assert value(found, "vllm:prompt_tokens_total") == 9
    assert value(found, "vllm:request_success_total", finished_reason="length") == 3
    assert value(found, "vllm:time_to_first_token_seconds_count") == 3
    assert value(found, "vllm:request_queue_time_seconds_count") == 3
    assert value(found, "vllm:request_queue_time_seconds_sum") <= value(found, "vllm:time_to_first_token_seconds_sum")
    assert value(found, "vllm:num_requests_running") == value(found, "vllm:num_requests_waiting") == 0
    drafted = value(found, "vllm:spec_decode_num_draft_tokens_total")
    accepted = value(found, "vllm:spec_decode_num_accepted_tokens_total")
    per_position = [n for (name, _), n in found.items() if name == "vllm:spec_decode_num_accepted_tokens_per_pos_total"]
    assert sum(per_position) == accepted
    assert value(found, "multispin_drafted_tokens_total", drafter="device") == drafted
    assert value(found, "multispin_wasted_draft_tokens_total", reason="rejected") == drafted - accepted
    assert (value(found, "multispin_planned_pass_tokens_total") > 0) == (mode in ("streams", "auto"))
    assert (value(found, "multispin_planned_goodput_tokens_per_second") > 0) == (mode not in ("streams", "auto"))
    assert value(found, "process_open_fds") > 0
    assert value(found, "multispin_event_loop_tasks") > 0
    assert accepted <= drafted
    assert drafted > 0 or mode != "rounds"
    assert value(found, "multispin_drafter_texts_total", drafter="nobody") > 0
    assert value(found, "multispin_slots") == 4
    assert "lap\ntop" not in text


def test_every_query_of_the_dashboard_names_a_metric_that_there_is(looked_at):
    _, text = looked_at
    families = [(family.name, family.type) for family in text_string_to_metric_families(text)]
    known = set()
    for name, kind in families:
        ends = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(kind, [""])
        known |= {name + end for end in ends}
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    assert len(queries) > 20
    used = {name for query in queries for name in re.findall(r"\b(?:vllm:|multispin_|process_)\w+", query)}
    assert used <= known, sorted(used - known)
    ours = {
        name
        for name in known
        if name.startswith("multispin_") and not name.endswith(("_bucket", "_sum", "_count", "_created"))
    }
    assert ours <= used, f"not on the dashboard: {sorted(ours - used)}"


def row(number, name):
    return RoundDevice(name, 2, 1, 2, 0.5, 0.01, number, "device")


def test_strangers_choose_names_but_not_how_many():
    live = range(3 * MAX_NAMED_DEVICES)
    metrics = Metrics("m", lambda: EMPTY._replace(sessions=live))
    for number in live:
        grant = RoundGrant(f"device-{number}", 4, 1e4, number)
        metrics.tell(Round(1, 1.0, 0.1, 0, 0.2, 10.0, (row(number, f"device-{number}"),), (grant,)))
    found = samples(metrics.exposition().decode())
    names = {dict(labels)["device"] for (_, labels) in found if dict(labels).get("device")}
    assert len(names) == MAX_NAMED_DEVICES + 1
    assert value(found, "multispin_device_tokens_total", device=OTHER) == 2 * 2 * MAX_NAMED_DEVICES
    metrics.tell(Round(2, 2.0, 0.1, 0, 0.2, 10.0, (row(7, OTHER),), ()))
    assert value(samples(metrics.exposition().decode()), "multispin_device_tokens_total", device=OTHER) > 0
    live = range(5, 7)
    names = {dict(labels).get("device") for (_, labels) in samples(metrics.exposition().decode())}
    assert names == {None, "device-5", "device-6", OTHER}


def test_no_origin_takes_the_series_of_all_devices():
    live = range(2 * MAX_NAMED_DEVICES)
    counts, few = lambda: EMPTY._replace(sessions=live), live[-3:]
    metrics = Metrics("m", counts, origin_of=lambda number: "few" if number in few else "many")
    rows = [row(number, f"device-{number}") for number in live]
    for _ in range(2):
        metrics.tell(Round(1, 1.0, 0.1, 0, 0.2, 10.0, tuple(rows), ()))
    found = samples(metrics.exposition().decode())
    named = {dict(labels)["device"] for (_, labels) in found if dict(labels).get("device")}
    assert {f"device-{number}" for number in few} < named
    assert len(named) == MAX_NAMED_DEVICES + 1
    tokens = [n for (name, _), n in found.items() if name == "multispin_device_tokens_total"]
    assert sum(tokens) == 2 * 2 * len(rows)
    live = range(MAX_NAMED_DEVICES, 2 * MAX_NAMED_DEVICES)  # some of those that had no series have room now
    for _ in range(2):
        metrics.exposition()
        metrics.tell(Round(1, 1.0, 0.1, 0, 0.2, 10.0, tuple(rows[MAX_NAMED_DEVICES:]), ()))
    found = samples(metrics.exposition().decode())
    assert {dict(labels).get("device") for (_, labels) in found} == {None, OTHER, *(f"device-{n}" for n in live)}


def test_sessions_that_are_gone_are_forgotten_also_where_nobody_asks_for_metrics():
    live = range(0)
    metrics = Metrics("m", lambda: EMPTY._replace(sessions=live))
    for number in range(20 * MOST_GONE_SESSIONS):  # as many requests of HTTP clients
        live = range(number, number + 1)
        metrics.tell(Round(1, 1.0, 0.1, 0, 0.2, 10.0, (row(number, "http"),), ()))
    assert metrics.sessions <= 2 * MOST_GONE_SESSIONS
    assert (
        value(samples(metrics.exposition().decode()), "multispin_device_tokens_total", device="http")
        == 40 * MOST_GONE_SESSIONS
    )


def test_what_streams_expect_is_told_beside_what_came_and_every_drafted_token_is_counted(stub_site):
    """Two devices that are right about three tokens of four: planned against observed, windows, price and waste."""

    class Mostly(stub_site.Drafter):
        def draft(self, committed, length, params):
            return [1 + (len(committed) + place) % 4 // 3 for place in range(length)]

    async def scenario():
        site = stub_site(mode="streams", server={"planning": AtOnce()})
        async with in_memory(site.server) as link:
            metrics = Metrics("m", site.server.counts)
            site.server.audience.add(metrics.tell)
            shown = []  # while the devices are there: the series of those that have gone are dropped
            site.server.audience.add(lambda event: isinstance(event, Round) and shown.append(metrics.exposition()))
            clients = [site.client(Mostly(), name, emulation=Emulation(0.001), link=link()) for name in ("a", "b")]
            texts = await asyncio.gather(*(each.generate(Request((5, 6), SamplingParams(), 100)) for each in clients))
            assert texts == [[1] * 100] * 2
            found = samples((await metrics.answer(None)).body.decode())
            for each in clients:
                each.close()
            both = next(each for each in reversed(shown) if b'device="a"' in each and b'device="b"' in each)
            return found, samples(both.decode()), site.of(Round)

    found, both, rounds = virtual_site.run(scenario(), 0.005)
    planned_s, planned = (value(found, f"multispin_planned_pass_{what}_total") for what in ("seconds", "tokens"))
    observed_s, observed = (value(found, f"multispin_observed_pass_{what}_total") for what in ("seconds", "tokens"))
    assert observed == 200
    assert 0.25 < planned / observed < 4.0
    assert min(planned_s, observed_s) > 0.0
    assert value(found, "multispin_price_of_time_tokens_per_second") > 0
    for name in ("a", "b"):
        assert 1 <= value(both, "multispin_device_draft_length", device=name) <= MAX_DRAFT_LENGTH  # its window
        assert 0.0 < value(both, "multispin_device_bandwidth_hertz", device=name) <= 1e6
        assert 0.0 < value(both, "multispin_device_acceptance_ratio", device=name) < 1.0
        assert 0 < value(both, "multispin_device_tokens_total", device=name) <= 100
    accepted = value(found, "multispin_accepted_tokens_total", drafter="device")
    rejected, late = (value(found, "multispin_wasted_draft_tokens_total", reason=why) for why in ("rejected", "late"))
    assert accepted + rejected == value(found, "multispin_drafted_tokens_total", drafter="device") > 0
    assert late == sum(each.late_tokens for each in rounds)
    assert late > 0
