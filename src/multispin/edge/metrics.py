"""Prometheus metrics of an edge, made from its events.

Metrics that vLLM also has carry vLLM's names, so that its dashboards work. The others begin with `multispin_`.
"""

import asyncio
from collections import Counter as Tally
from collections.abc import Callable, Collection, Sequence
from itertools import accumulate

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from multispin.edge.account import Counts
from multispin.edge.device_metrics import DeviceMetrics, Times
from multispin.outside import one_line
from multispin.protocol import MAX_DRAFT_LENGTH
from multispin.protocol.events import (
    WHO_DRAFTS,
    Connected,
    EdgeEvent,
    Ended,
    Expired,
    Lost,
    Opened,
    Refused,
    Round,
    RoundDevice,
)

LATENCIES_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
    *(160.0, 640.0, 2560.0),
)
STEPS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0)
REQUESTS_S = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0)
SESSIONS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
FINISHES = ("stop", "length", "abort", "error")
MOST_GONE_SESSIONS = 256
"""Most ended sessions that are remembered until the metrics are read, beside as many as there were at the last read."""


class Metrics:
    """The metrics of one edge; `tell` is a listener of its events.

    Args:
        model: name of the model, a label of the metrics that vLLM also has.
        counts: returns the edge's present counts.
        dropped_lines: returns the number of output lines that nobody read; default 0.
        origin_of: returns whom a session counts as, so that nobody's devices take all series; default: all are one.

    """

    def __init__(
        self,
        model: str,
        counts: Callable[[], Counts],
        dropped_lines: Callable[[], int] = lambda: 0,
        origin_of: Callable[[int], str] = lambda _: "",
    ) -> None:
        self.registry = CollectorRegistry()
        self._counts, self._dropped_lines = counts, dropped_lines
        self._last_s: dict[int, float] = {}  # when a session's text last grew
        self._opened_s: dict[int, float] = {}
        self._round_s: float | None = None
        self._most_known = MOST_GONE_SESSIONS  # sessions; with more of them, those that are gone are forgotten
        self._like_vllm(model)
        self._passes()
        self._devices = DeviceMetrics(origin_of)
        self.registry.register(self._devices)
        ProcessCollector(registry=self.registry)  # memory, descriptors and processor time, under Prometheus' names
        self._tasks = Gauge("multispin_event_loop_tasks", "Tasks of the event loop.", registry=self.registry)

    def _like_vllm(self, model: str) -> None:
        labels = {"model_name": one_line(model), "engine": "0"}

        def counter(name: str, text: str, *further: str) -> Counter:
            return Counter(f"vllm:{name}", text, [*labels, *further], registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"vllm:{name}", text, labels, registry=self.registry, buckets=buckets).labels(**labels)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"vllm:{name}", text, labels, registry=self.registry).labels(**labels)

        self._running = gauge("num_requests_running", "Texts that are being written.")
        self._waiting = gauge("num_requests_waiting", "Requests that wait for a slot.")
        self._prompt_tokens = counter("prompt_tokens", "Tokens of the prompts.").labels(**labels)
        self._generated = counter("generation_tokens", "Generated tokens.").labels(**labels)
        success = counter("request_success", "Texts that have ended, by reason.", "finished_reason")
        self._success = {why: success.labels(**labels, finished_reason=why) for why in FINISHES}
        self._first_token = histogram(
            "time_to_first_token_seconds", "Time from the request to the first token.", LATENCIES_S
        )
        name, text = "vllm:inter_token_latency_seconds", "Time between two passes in which a text grew."
        self._between_tokens = Times(name, text, labels, STEPS_S)
        self.registry.register(self._between_tokens)
        self._queue = histogram("request_queue_time_seconds", "Time from the request to its first pass.", REQUESTS_S)
        self._whole = histogram("e2e_request_latency_seconds", "Time from the request to its end.", REQUESTS_S)
        self._drafts = counter("spec_decode_num_drafts", "Drafts that were verified.").labels(**labels)
        self._draft_tokens = counter("spec_decode_num_draft_tokens", "Drafted tokens that were verified.").labels(
            **labels
        )
        self._accepted = counter("spec_decode_num_accepted_tokens", "Drafted tokens that were accepted.").labels(
            **labels
        )
        per_position = counter(
            "spec_decode_num_accepted_tokens_per_pos", "Accepted tokens by their place in the draft.", "position"
        )
        self._per_position = [per_position.labels(**labels, position=str(at)) for at in range(MAX_DRAFT_LENGTH)]

    def _passes(self) -> None:
        def counter(name: str, text: str, label: str = "") -> Counter:
            return Counter(f"multispin_{name}", text, [label] if label else [], registry=self.registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"multispin_{name}", text, registry=self.registry)

        self._pass_s = Histogram(
            "multispin_pass_seconds", "Engine time of a pass.", registry=self.registry, buckets=STEPS_S
        )
        self._pass_sessions = Histogram(
            "multispin_pass_sessions", "Sessions whose draft a pass decided.", registry=self.registry, buckets=SESSIONS
        )
        self._pass_prompts = counter("pass_prompt_tokens", "Prompt tokens that were read in passes.")
        self._plan_s = Histogram(
            "multispin_round_seconds", "Time from one plan to the next.", registry=self.registry, buckets=STEPS_S
        )
        self._planned_s = gauge("planned_round_seconds", "Time until the next plan, as the last plan predicted it.")
        self._planned_goodput = gauge("planned_goodput_tokens_per_second", "Goodput that the last plan predicted.")
        self._planned_pass_s = counter("planned_pass_seconds", "Engine time of passes in streams, as predicted.")
        self._planned_tokens = counter("planned_pass_tokens", "Tokens of passes in streams, as predicted.")
        self._observed_pass_s = counter("observed_pass_seconds", "Engine time of the same passes, as measured.")
        self._observed_tokens = counter("observed_pass_tokens", "Tokens of the same passes, as counted.")
        self._price = gauge(
            "price_of_time_tokens_per_second", "Price of time that decisions use: the goodput that the edge makes."
        )
        who = counter("drafter_texts", "Sessions in passes, by who drafted for them.", "drafter")
        self._who = {each: who.labels(each) for each in WHO_DRAFTS}
        drafted = counter("drafted_tokens", "Drafted tokens that were verified, by who drafted them.", "drafter")
        self._who_drafted = {each: drafted.labels(each) for each in WHO_DRAFTS}
        accepted = counter("accepted_tokens", "Drafted tokens that were accepted, by who drafted them.", "drafter")
        self._who_accepted = {each: accepted.labels(each) for each in WHO_DRAFTS}
        wasted = counter("wasted_draft_tokens", "Drafted tokens that brought nothing, by reason.", "reason")
        self._rejected, self._late = wasted.labels("rejected"), wasted.labels("late")
        self._sessions = gauge("sessions", "Sessions, lost ones included.")
        self._connections = gauge("connections", "Open connections of devices.")
        self._slots = gauge("slots", "Most texts that can be written at once.")
        ended = counter("session_events", "Events of sessions, by kind.", "event")
        self._befell = {kind: ended.labels(kind.__name__.lower()) for kind in (Connected, Lost, Expired, Refused)}
        self._wrong = gauge("wrong_credentials", "Wrong credentials since the start.")
        self._failed = gauge("failed_listeners", "Failures of listeners to events since the start.")
        self._dropped = gauge("dropped_output_lines", "Lines of output that nobody read, since the start.")

    def tell(self, event: EdgeEvent) -> None:
        """Count an event."""
        match event:
            case Round():
                self._count_round(event)
            case Opened():
                self._prompt_tokens.inc(event.prompt_tokens)
                self._opened_s[event.session] = event.time_s
            case Ended():
                self._success[event.finish if event.finish in self._success else "error"].inc()
                self._whole.observe(event.seconds)
                if event.queue_s is not None:
                    self._queue.observe(event.queue_s)
                self._last_s.pop(event.session, None)
                self._opened_s.pop(event.session, None)
            case Connected() | Lost() | Expired() | Refused():
                self._befell[type(event)].inc()

    @property
    def sessions(self) -> int:
        """Number of sessions that the metrics remember."""
        return max(self._devices.sessions, len(self._last_s), len(self._opened_s))

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        counts = self._counts()
        self._running.set(counts.running)
        self._waiting.set(counts.waiting)
        self._sessions.set(len(counts.sessions))
        self._connections.set(counts.connections)
        self._slots.set(counts.slots)
        self._price.set(counts.price_tokens_per_s)
        self._wrong.set(counts.wrong_credentials)
        self._failed.set(counts.failed_listeners)
        self._dropped.set(self._dropped_lines())
        self._forget(counts.sessions)
        return generate_latest(self.registry)

    async def answer(self, _: web.Request) -> web.Response:
        """The handler of `/metrics`."""
        self._tasks.set(len(asyncio.all_tasks()))
        return web.Response(body=self.exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    def _count_round(self, event: Round) -> None:
        self._pass_s.observe(event.verify_s)
        self._pass_sessions.observe(len(event.devices))
        self._pass_prompts.inc(event.prompt_tokens)
        self._late.inc(event.late_tokens)
        if event.planned_pass_s is not None and event.planned_tokens is not None:
            self._planned_pass_s.inc(event.planned_pass_s)
            self._planned_tokens.inc(event.planned_tokens)
            self._observed_pass_s.inc(event.verify_s)
            self._observed_tokens.inc(sum(row.tokens for row in event.devices))
        if event.planned_round_s is not None and event.planned_goodput_tokens_per_s is not None:
            if self._round_s is not None:
                self._plan_s.observe(event.time_s - self._round_s)
            self._round_s = event.time_s
            self._planned_s.set(event.planned_round_s)
            self._planned_goodput.set(event.planned_goodput_tokens_per_s)
        else:
            self._round_s = None
        self._count_texts(event.devices)
        for row in event.devices:
            self._time(row.session, event.time_s)
        self._devices.take(event.devices, event.grants)
        if self.sessions > self._most_known:
            self._forget(self._counts().sessions)
            self._most_known = 2 * self.sessions + MOST_GONE_SESSIONS

    def _count_texts(self, rows: Sequence[RoundDevice]) -> None:
        """Count what a pass brought to all texts, in one step, since there are many."""
        self._generated.inc(sum(row.tokens for row in rows))
        for drafter, count in Tally(row.drafter for row in rows).items():
            own = rows if count == len(rows) else [row for row in rows if row.drafter == drafter]
            who = drafter if drafter in self._who else "nobody"
            self._who[who].inc(count)
            self._who_drafted[who].inc(sum([row.drafted for row in own]))
            self._who_accepted[who].inc(sum([row.accepted for row in own]))
        drafted, accepted = sum([row.drafted for row in rows]), sum([row.accepted for row in rows])
        self._drafts.inc(sum([row.drafted > 0 for row in rows]))
        self._draft_tokens.inc(drafted)
        self._accepted.inc(accepted)
        self._rejected.inc(drafted - accepted)
        lengths = Tally(row.accepted for row in rows)
        longest = max(lengths, default=0)
        at_least = [*accumulate(lengths[length] for length in range(longest, 0, -1))]
        for counter, count in zip(self._per_position, reversed(at_least), strict=False):
            counter.inc(count)

    def _time(self, session: int, now_s: float) -> None:
        """Observe the latency of the tokens that a text has gained."""
        before_s = self._last_s.get(session)
        if before_s is not None:
            self._between_tokens.observe(now_s - before_s)
        elif (opened_s := self._opened_s.get(session)) is not None:
            self._first_token.observe(now_s - opened_s)
        self._last_s[session] = now_s

    def _forget(self, sessions: Collection[int]) -> None:
        """Forget the sessions that have ended."""
        self._devices.forget(sessions)
        for times in (self._last_s, self._opened_s):
            for session in times.keys() - set(sessions):
                del times[session]
