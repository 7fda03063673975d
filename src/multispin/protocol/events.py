"""Events that a process reports as JSON lines, one typed event per line.

`multispin serve --json` and `multispin device --json` write these lines, and the demo reads them. The field `event` of
a line names its class below.
"""

import json
from typing import Any

import msgspec


class _Line(msgspec.Struct, frozen=True, tag_field="event", forbid_unknown_fields=True):
    """One JSON line."""


# The edge -------------------------------------------------------------------------------------------------------------


class Listening(_Line, frozen=True, tag="listening"):
    """The edge answers at `host` and `port`; `cache_bytes` is the fixed size of its cache."""

    host: str
    port: int
    target: str
    slots: int
    cache_bytes: int


class Connected(_Line, frozen=True, tag="connected"):
    """A device has greeted. `again`: it took its session over from an older connection."""

    session: int
    name: str
    drafter: str
    again: bool


class Lost(_Line, frozen=True, tag="lost"):
    """A device's connection broke; its session is kept for a while."""

    session: int
    name: str


class Expired(_Line, frozen=True, tag="expired"):
    """A session has ended because its device did not come back, or sent no draft for too long."""

    session: int
    name: str


class Closed(_Line, frozen=True, tag="closed"):
    """A device has ended its session with Close."""

    session: int


class Refused(_Line, frozen=True, tag="refused"):
    """A device's session was ended by the edge; `why` is a sentence."""

    session: int
    name: str
    why: str


class Opened(_Line, frozen=True, tag="opened"):
    """A session has opened a request, which now waits for a slot.

    Attributes:
        session: number of the session.
        name: name of the device.
        request: identifier of the HTTP request that it belongs to; empty for a text of the device's own.
        prompt_tokens: tokens of the prompt.
        max_tokens: most tokens to generate.
        time_s: the edge's clock [s].

    """

    session: int
    name: str
    request: str
    prompt_tokens: int
    max_tokens: int
    time_s: float


class Ended(_Line, frozen=True, tag="ended"):
    """A text has ended.

    Attributes:
        session: number of the session.
        name: name of the device.
        request: identifier of the HTTP request that it belongs to; empty for a text of the device's own.
        finish: why it ended: "stop", "length", "abort" (its session ended first), or "error" (the engine failed).
        prompt_tokens: tokens of the prompt.
        tokens: number of generated tokens.
        drafted: drafted tokens that were verified for it.
        accepted: drafted tokens that were accepted.
        first_token_s: time from the request to the first token [s]; None if there was none.
        seconds: time from the request to the end [s].
        time_s: the edge's clock [s].
        queue_s: time from the request to the first pass with it [s]; None if there was none.

    """

    session: int
    name: str
    request: str
    finish: str
    prompt_tokens: int
    tokens: int
    drafted: int
    accepted: int
    first_token_s: float | None
    seconds: float
    time_s: float
    queue_s: float | None = None


WHO_DRAFTS = ("device", "edge", "nobody")


class RoundDevice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The result of a round for one device.

    Attributes:
        name: name of the device.
        drafted: drafted tokens that were verified.
        accepted: drafted tokens that were accepted.
        tokens: tokens that were committed.
        acceptance_rate: the controller's estimate after the round, α in [0, 1].
        seconds_per_token: the controller's estimate of the time per drafted token [s].
        session: number of its session.
        drafter: drafter of the tokens, one of `WHO_DRAFTS`.

    """

    name: str
    drafted: int
    accepted: int
    tokens: int
    acceptance_rate: float
    seconds_per_token: float
    session: int = 0
    drafter: str = ""


class RoundGrant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one device was granted: a draft length (in streams a window) in tokens, and a part of the band [Hz]."""

    name: str
    length: int
    bandwidth_hz: float
    session: int = 0


class Round(_Line, frozen=True, tag="round"):
    """A pass was verified, and the next round was granted.

    Attributes:
        round: number of the round.
        time_s: the edge's clock at the end of the pass [s].
        verify_s: engine time of the pass [s].
        prompt_tokens: prompt tokens that were read in the same pass.
        planned_round_s: planned time of the next round; None if nothing was planned.
        planned_goodput_tokens_per_s: goodput that the plan expects; None if nothing was planned.
        devices: the devices whose drafts were verified.
        grants: the next round's grants; in streams, the windows that have changed.
        late_tokens: drafted tokens that were not verified: they came too late, or followed a rejected one.
        planned_pass_s: in streams, expected engine time without prompts [s]; else None.
        planned_tokens: in streams, expected number of text tokens of the pass; else None.

    """

    round: int
    time_s: float
    verify_s: float
    prompt_tokens: int
    planned_round_s: float | None
    planned_goodput_tokens_per_s: float | None
    devices: tuple[RoundDevice, ...]
    grants: tuple[RoundGrant, ...]
    late_tokens: int = 0
    planned_pass_s: float | None = None
    planned_tokens: float | None = None


# The device -----------------------------------------------------------------------------------------------------------


class Ready(_Line, frozen=True, tag="ready"):
    """A device has loaded its drafter and read its prompt."""


class Away(_Line, frozen=True, tag="away"):
    """A device cannot reach an edge at the moment.

    Attributes:
        url: address that was tried.
        why: the error, as a sentence.
        delay_s: time until the next attempt [s].
        limit_s: time without an edge after which the device gives up [s].

    """

    url: str
    why: str
    delay_s: float
    limit_s: float


class Tried(_Line, frozen=True, tag="tried"):
    """A device has drafted for a test: its time per drafted token now [s]."""

    seconds_per_token: float


class Written(_Line, frozen=True, tag="progress"):
    """A device's text has grown: the text so far, and the numbers of drafted and accepted tokens."""

    tokens: int
    text: str
    drafted: int
    accepted: int


class Done(_Line, frozen=True, tag="done"):
    """A device's text is complete.

    Attributes:
        ids: token ids of the text.
        text: generated text.
        tokens: number of generated ids.
        finish: why the text ended: "stop" or "length".
        rule: acceptance rule.
        seconds: time from the first message to the last [s].
        drafted: drafted tokens that were verified.
        accepted: drafted tokens that were accepted.
        rounds: number of verdicts that were received.
        uplink_bytes: bytes sent, framing included.
        draft_bytes: bytes of drafts and of the distributions that the edge asked for.
        reconnects: number of connections that were lost or could not be made.
        wasted: tokens of streams that were drafted and never verified.
        downlink_bytes: bytes received, framing included.
        undrafted: why much of the text was written without drafts of this device: "not-asked", "context", "nothing",
            "resting" or "late"; empty if there is nothing to report.
        note: a sentence for the user about it.

    """

    ids: tuple[int, ...]
    text: str
    tokens: int
    finish: str
    rule: str
    seconds: float
    drafted: int
    accepted: int
    rounds: int
    uplink_bytes: int
    draft_bytes: int
    reconnects: int
    wasted: int = 0
    downlink_bytes: int = 0
    undrafted: str = ""
    note: str = ""


# The other way --------------------------------------------------------------------------------------------------------


class _Order(msgspec.Struct, frozen=True, tag_field="order", forbid_unknown_fields=True):
    """An order that a parent writes to a device's standard input, as one JSON line."""


class Begin(_Order, frozen=True, tag="begin"):
    """Generate the text (again).

    Attributes:
        url: address of the edge; default the one that the device was started with.
        slower: factor by which the device's emulated times are longer; default 1.

    """

    url: str = ""
    slower: float = 1.0


class Try(_Order, frozen=True, tag="try"):
    """Draft this many tokens after the prompt, and report the time per token."""

    tokens: int


Order = Begin | Try

EdgeEvent = Listening | Connected | Lost | Expired | Closed | Refused | Opened | Ended | Round
DeviceEvent = Ready | Away | Tried | Written | Done
Event = EdgeEvent | DeviceEvent

_orders: msgspec.json.Decoder[Any] = msgspec.json.Decoder(Order)
_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(Event)


def as_line(event: Event) -> str:
    """The event as one line of JSON, without its end."""
    fields: dict[str, Any] = msgspec.to_builtins(event)
    return json.dumps(fields)


def from_line(line: bytes | str) -> Event:
    """The event of a line; msgspec.DecodeError if it is malformed."""
    event: Event = _decoded(_decoder, line)
    return event


def as_order(order: Order) -> bytes:
    """The order as one line of JSON, with its end."""
    return msgspec.json.encode(order) + b"\n"


def from_order(line: str) -> Order:
    """The order of a line; an empty line means Begin."""
    if not line:
        return Begin()
    order: Order = _decoded(_orders, line)
    return order


def _decoded(decoder: msgspec.json.Decoder[Any], line: bytes | str) -> Any:
    """The event or order of a line; msgspec.DecodeError for any error in it."""
    try:
        return decoder.decode(line)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from None
