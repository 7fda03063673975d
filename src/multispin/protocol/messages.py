"""The messages between edge and device: one WebSocket per device, each message a MessagePack array.

Messages are arrays with a small integer first, so that a draft costs tens of bytes. Everything is checked while it
is decoded: types by msgspec, sizes by the limits below, before anything else is allocated.
"""

from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import force_setattr

from multispin.errors import InputError
from multispin.protocol.limits import (
    ENVELOPE_BYTES,
    MAX_CREDENTIAL_CHARACTERS,
    MAX_DRAFT_LENGTH,
    MAX_FRAME_BYTES,
    MAX_NAME_CHARACTERS,
    MAX_RETAINED,
    MAX_SCORED_TAIL,
    MAX_SENTENCE_CHARACTERS,
    MAX_STOP_IDS,
)
from multispin.speculation import MAX_LOGPROBS, DistributionFormat, Rule, Score, bits_per_token, framing_bits
from multispin.speculation.grammar import MAX_GRAMMAR_CHARACTERS
from multispin.speculation.rule import MAX_PROBABILITY_BITS
from multispin.speculation.sampling import MAX_BIASES

Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Name = Annotated[str, Meta(max_length=MAX_NAME_CHARACTERS)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Seconds = Annotated[float, Meta(ge=0.0, le=3600.0)]


class Profile(Struct, frozen=True, array_like=True):
    """A device's own estimates, used as a prior until the edge has measured them.

    Attributes:
        seconds_per_token: drafting time per token, T^S of eq. 2.
        spectral_efficiency: spectral efficiency of its uplink [bit/s/Hz], r of eq. 8.

    """

    seconds_per_token: Annotated[float, Meta(ge=1e-9, le=3600.0)]
    spectral_efficiency: Annotated[float, Meta(ge=1e-9, le=1000.0)]


class Hello(Struct, frozen=True, array_like=True, tag=1):
    """Device → edge, first: the device introduces itself. `drafts` is false for a device without a drafter."""

    version: Count
    fingerprint: Name
    name: Name
    drafter: Name
    drafts: bool
    profile: Profile
    credential: Annotated[str, Meta(max_length=MAX_CREDENTIAL_CHARACTERS)] = ""


class Welcome(Struct, frozen=True, array_like=True, tag=2):
    """Edge → device: the session, the token that resumes it, a seed to use by default, and the limits."""

    session: Count
    resume_token: Name
    seed: Annotated[int, Meta(ge=0)]
    vocabulary_size: Count
    max_length: Count
    resume_grace_s: Seconds


class Open(Struct, frozen=True, array_like=True, tag=3):
    """Device → edge: a request.

    Attributes:
        prompt: packed ids of the prompt.
        prompt_tokens: number of prompt ids.
        continued: number of last ids that were generated earlier (by an edge that was lost); they count towards
            `max_tokens`.
        rule: the acceptance rule; None: `greedy` at temperature 0 and `coupled` above.
        retained: V̂, most tokens of a sent distribution under the rejection rules.
        probability_bits: Q_B, bits of a probability under the rejection rules.
        min_tokens: stop ids have probability 0 before this many tokens are generated.
        logit_bias: pairs of an id and the number to add to its logit.
        min_p, presence_penalty, frequency_penalty, repetition_penalty, grammar, logprobs: as in `SamplingParams`.

    """

    session: Count
    prompt: bytes
    prompt_tokens: Annotated[int, Meta(ge=1, le=2**20)]
    max_tokens: Annotated[int, Meta(ge=1, le=2**20)]
    temperature: float
    top_k: Count
    top_p: float
    seed: Annotated[int, Meta(ge=0)]
    stop_ids: Annotated[tuple[TokenId, ...], Meta(max_length=MAX_STOP_IDS)] = ()
    continued: Count = 0
    rule: Rule | None = None
    retained: Annotated[int, Meta(ge=1, le=MAX_RETAINED)] = 1024
    probability_bits: Annotated[int, Meta(ge=2, le=MAX_PROBABILITY_BITS)] = 16
    min_tokens: Count = 0
    logit_bias: Annotated[tuple[tuple[TokenId, float], ...], Meta(max_length=MAX_BIASES)] = ()
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    grammar: Annotated[str, Meta(max_length=MAX_GRAMMAR_CHARACTERS)] = ""
    logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None


class Grant(Struct, frozen=True, array_like=True, tag=4):
    """Edge → device: draft this many tokens for this round and send them over this much of the band."""

    session: Count
    round: Count
    length: Annotated[int, Meta(ge=0, le=MAX_DRAFT_LENGTH)]
    bandwidth_hz: Annotated[float, Meta(ge=0.0)]


class Draft(Struct, frozen=True, array_like=True, tag=5):
    """Device → edge: a draft for a round; it starts at `base` committed tokens.

    Attributes:
        length: number of drafted tokens.
        payload: the bits that the rule sends for them (`speculation.pack_draft`).
        draft_us: time spent drafting, microseconds.
        head: under `rejection-down`, the token before `base` that the device found from the last offer.

    """

    session: Count
    round: Count
    base: Count
    length: Annotated[int, Meta(ge=0, le=MAX_DRAFT_LENGTH)]
    payload: bytes
    draft_us: Annotated[int, Meta(ge=0, le=2**32 - 1)]
    head: TokenId | None = None


class Verdict(Struct, frozen=True, array_like=True, tag=6):
    """Edge → device: `accepted` of the draft's tokens stand after `base`, then comes `next_token`.

    `finish` is empty while the request goes on, else "stop" or "length". `grant` is the next round's, if any. If
    `offer` is not empty (`rejection-down`, `speculation.pack_offer`), the device finds the next token from it, and
    ignores `next_token`. `scores` are those of the accepted tokens and of the next one, if the request wants them.
    """

    session: Count
    round: Count
    base: Count
    accepted: Count
    next_token: TokenId
    finish: Name = ""
    grant: Grant | None = None
    offer: bytes = b""
    scores: Annotated[tuple[Score, ...], Meta(max_length=MAX_DRAFT_LENGTH + 1)] = ()


class Tail(Struct, frozen=True, array_like=True, tag=7):
    """Edge → device: the committed ids from `base` on. Answers a resume, and a draft whose base is stale.

    `scores` are those of the ids, if the request wants log probabilities. Then a message has at most `MAX_SCORED_TAIL`
    ids, and several may follow each other.
    """

    session: Count
    base: Count
    ids: bytes
    count: Count
    finish: Name = ""
    grant: Grant | None = None
    scores: Annotated[tuple[Score, ...], Meta(max_length=MAX_SCORED_TAIL)] = ()


class Resume(Struct, frozen=True, array_like=True, tag=8):
    """Device → edge, first on a new connection: go on with a session of which the device has `length` tokens.

    The credential must be the one with which the session was opened.
    """

    version: Count
    resume_token: Name
    length: Count
    credential: Annotated[str, Meta(max_length=MAX_CREDENTIAL_CHARACTERS)] = ""


class Close(Struct, frozen=True, array_like=True, tag=9):
    """Device → edge: the session ends and will not be resumed."""

    session: Count


class Error(Struct, frozen=True, array_like=True, tag=10):
    """Edge → device: why the session ends, as a code for programs and a sentence for people.

    `retry_after_s` is the time after which a new try makes sense [s]; 0: unknown.
    """

    code: Name
    sentence: Annotated[str, Meta(max_length=MAX_SENTENCE_CHARACTERS)]
    retry_after_s: Seconds = 0.0

    def __post_init__(self) -> None:
        """Cut a long sentence, since it may quote text from outside, and a device would refuse the message."""
        if len(self.sentence) > MAX_SENTENCE_CHARACTERS:
            force_setattr(self, "sentence", self.sentence[: MAX_SENTENCE_CHARACTERS - 1] + "…")


class Ask(Struct, frozen=True, array_like=True, tag=11):
    """Edge → device, under `rejection-up`: the token after `accepted` was refused; send its distribution."""

    session: Count
    round: Count
    accepted: Count


class Distribution(Struct, frozen=True, array_like=True, tag=12):
    """Device → edge: the distribution that an Ask names, packed by `speculation.pack_distributions`."""

    session: Count
    round: Count
    accepted: Count
    distribution: bytes


class Window(Struct, frozen=True, array_like=True, tag=13):
    """Edge → device: draft on by yourself from now on, without a grant for each draft.

    Attributes:
        length: most drafted tokens ahead of the committed text; 0: draft nothing for now.
        chunk: number of tokens in one frame; fewer if the window is full.
        bandwidth_hz: band for the frames [Hz].

    """

    session: Count
    length: Annotated[int, Meta(ge=0, le=MAX_DRAFT_LENGTH)]
    chunk: Annotated[int, Meta(ge=1, le=MAX_DRAFT_LENGTH)]
    bandwidth_hz: Annotated[float, Meta(ge=0.0)]


class Chunk(Struct, frozen=True, array_like=True, tag=14):
    """Device → edge: some tokens of a stream. A connection has one session, so the message does not name it.

    The tokens are a chain: each follows the one before. A tree would name each token's parent in a further field.

    Attributes:
        epoch: number of the tokens' chain; a device that starts over begins a greater one.
        start: position of the first of them in the text.
        length: number of ids.
        ids: packed ids.
        draft_us: time spent drafting them, microseconds.

    """

    epoch: Count
    start: Count
    length: Annotated[int, Meta(ge=1, le=MAX_DRAFT_LENGTH)]
    ids: bytes
    draft_us: Annotated[int, Meta(ge=0, le=2**32 - 1)]


class Commit(Struct, frozen=True, array_like=True, tag=15):
    """Edge → device: what is committed from `base` on, in a stream.

    Attributes:
        base: number of tokens committed before.
        epoch: the chain of `verified` and `accepted`.
        verified: number of the chain's tokens from `base` on that were verified.
        accepted: number of verified tokens that stand. They are not sent back, since the device has them.
        ids: the tokens after them: the edge's own accepted drafts, then the recovered or bonus token.
        finish: empty while the text goes on, else "stop" or "length".
        scores: log probabilities of all these tokens in order, if the request wants them.

    """

    base: Count
    epoch: Count
    verified: Annotated[int, Meta(ge=0, le=MAX_DRAFT_LENGTH)]
    accepted: Annotated[int, Meta(ge=0, le=MAX_DRAFT_LENGTH)]
    ids: Annotated[tuple[TokenId, ...], Meta(max_length=MAX_DRAFT_LENGTH + 1)]
    finish: Name = ""
    scores: Annotated[tuple[Score, ...], Meta(max_length=MAX_DRAFT_LENGTH + 1)] = ()


Uplink = Hello | Open | Draft | Resume | Close | Distribution | Chunk
Downlink = Welcome | Grant | Verdict | Tail | Error | Ask | Window | Commit


def encode(message: Uplink | Downlink) -> bytes:
    """One message as one binary frame."""
    return msgspec.msgpack.encode(message)


_UPLINK: msgspec.msgpack.Decoder[Uplink] = msgspec.msgpack.Decoder(Uplink)
_DOWNLINK: msgspec.msgpack.Decoder[Downlink] = msgspec.msgpack.Decoder(Downlink)
_Read = TypeVar("_Read")


def decode_uplink(frame: bytes) -> Uplink:
    """Read a message from a device; InputError says what is wrong with the frame."""
    return _decode(frame, _UPLINK)


def decode_downlink(frame: bytes) -> Downlink:
    """Read a message from the edge; InputError says what is wrong with the frame."""
    return _decode(frame, _DOWNLINK)


def usual_frame_bits() -> int:
    """Bits of a typical draft on the wire beside its tokens: message and WebSocket frame."""
    draft = Draft(session=1000, round=1000, base=1000, length=8, payload=b"", draft_us=100_000)
    return 8 * websocket_frame_bytes(len(encode(draft)), masked=True)


def _decode(frame: bytes, decoder: msgspec.msgpack.Decoder[_Read]) -> _Read:
    if len(frame) > MAX_FRAME_BYTES:
        raise InputError(f"a frame has {len(frame)} bytes; the limit is {MAX_FRAME_BYTES}")
    try:
        return decoder.decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"a frame is not a message of this protocol: {error}") from None


def longest_draft(rule: Rule, form: DistributionFormat) -> int:
    """The longest draft that fits a frame under a rule [tokens]: 63 for ids, fewer with distributions.

    Example: distributions of 1024 tokens, 16 + 18 bits each, take 4,354 bytes; 60 of them fit.
    """
    bits = bits_per_token(rule, form) + framing_bits(rule, form)
    return min(MAX_DRAFT_LENGTH, 8 * (MAX_FRAME_BYTES - ENVELOPE_BYTES) // bits)


def websocket_frame_bytes(payload_bytes: int, masked: bool) -> int:
    """Size on the wire of one unfragmented WebSocket frame (RFC 6455, 5.2): header, mask if a client sends it."""
    extended = 0 if payload_bytes < 126 else 2 if payload_bytes < 65536 else 8
    return 2 + extended + (4 if masked else 0) + payload_bytes
