"""The state of a device's session: its text, its stage, and what follows from them. It answers, and does nothing.

`device_session` is what moves it.
"""

from collections.abc import Callable, Sequence

from multispin.protocol.device_stages import (
    AT_WORK,
    Complete,
    DeviceStage,
    Disconnected,
    DraftDue,
    Greeting,
    Resuming,
    Work,
)
from multispin.protocol.device_stream import Chains, DeviceStreaming
from multispin.protocol.device_text import DeviceText
from multispin.protocol.messages import Grant, Hello, Welcome
from multispin.protocol.request import Request
from multispin.speculation import DistributionFormat, Rule, SamplingParams


class DeviceStanding:
    """The state that a device keeps of its session.

    Attributes:
        hello: how this device introduces itself.
        welcome: the edge's answer; None while no edge knows this device.
        stage: where the session stands.

    Args:
        hello: how this device introduces itself.
        decode: text of token ids, by the target's tokenizer; needed for a text, and for stop strings; default None.
        max_wasted_share: greatest share of its tokens that may be wasted. In a stream it drafts less far ahead to keep
            to it. Default 1: it drafts as far ahead as the edge allows.

    """

    def __init__(
        self,
        hello: Hello,
        decode: Callable[[Sequence[int]], str] | None = None,
        max_wasted_share: float = 1.0,
    ) -> None:
        self.hello = hello
        self.welcome: Welcome | None = None
        self.stage: DeviceStage = Disconnected()
        self._text = DeviceText(decode)
        self._chains = Chains(max_wasted_share)
        self._form: DistributionFormat | None = None  # made when it is asked for
        self._head: int | None = None  # found from an offer, not known to the edge yet

    @property
    def request(self) -> Request | None:
        """The present request; None before the first."""
        return self._text.request

    @property
    def committed(self) -> list[int]:
        """Prompt and generated ids."""
        return self._text.committed

    @property
    def text(self) -> str:
        """The final text so far, as words (`DeviceText.words`)."""
        return self._text.words

    @property
    def params(self) -> SamplingParams:
        """The sampling parameters in effect."""
        return self._text.params

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the present request's prompt."""
        return self._text.prompt_tokens

    @property
    def generated(self) -> list[int]:
        """The text so far, as ids."""
        return self._text.generated

    @property
    def rule(self) -> Rule:
        """The present request's acceptance rule."""
        return self._text.rule

    @property
    def session_number(self) -> int:
        """The session's number on the wire."""
        return self._welcomed().session

    @property
    def form(self) -> DistributionFormat:
        """How this request's distributions are written; the edge's vocabulary bounds what they retain."""
        if self._form is None:
            self._form = self._text.requested.form(self._welcomed().vocabulary_size)
        return self._form

    @property
    def finish(self) -> str:
        """Why the text ended, "stop" or "length"; empty while it goes on."""
        work = self._work
        return work.finish if isinstance(work, Complete) else ""

    @property
    def grant(self) -> Grant | None:
        """The grant whose draft is still to be made, kept over a lost connection until the edge says otherwise."""
        work = self.stage if isinstance(self.stage, DraftDue) else self._work
        return work.grant if isinstance(work, DraftDue) else None

    @property
    def is_greeting(self) -> bool:
        """Whether the edge still owes what answers a greeting: a Welcome, and after a Resume a Tail."""
        return isinstance(self.stage, Greeting | Resuming)

    @property
    def joined(self) -> bool:
        """Whether edge and device stand at the same place of an open request, on a connection that holds."""
        return isinstance(self.stage, AT_WORK)

    @property
    def wants_draft(self) -> bool:
        """Whether the open grant must be answered: with a draft, or at least with a token that the edge lacks."""
        stage = self.stage
        return isinstance(stage, DraftDue) and (stage.grant.length > 0 or self._head is not None)

    @property
    def over(self) -> bool:
        """Whether the token that the edge lacks ends the text, so that nothing is left to draft."""
        return self._head is not None and self._text.is_ended_by(self._head)

    @property
    def epoch(self) -> int:
        """Number of the newest chain of drafted tokens; each has a greater one than those before."""
        return self._chains.epoch

    @property
    def wasted(self) -> int:
        """Drafted tokens of the present request's stream that were never verified."""
        return self._chains.wasted

    @wasted.setter
    def wasted(self, tokens: int) -> None:
        self._chains.wasted = tokens

    @property
    def rests(self) -> bool:
        """Whether the device drafts nothing in a stream because it would waste too much (`thrift`)."""
        return isinstance(self.stage, DeviceStreaming) and self._chains.rests

    @property
    def room_ahead(self) -> int:
        """Tokens that may be drafted ahead now, beside those that have been; 0 where the device does not stream."""
        stage, request = self.stage, self._text.request
        if not isinstance(stage, DeviceStreaming) or request is None:
            return 0
        return self._chains.room(stage, self._text.left, request.stop_ids)

    @property
    def ahead(self) -> list[int]:
        """The committed text and the drafted tokens that follow it: what the next token is drafted after."""
        stage = self.stage
        return [*self.committed, *stage.ids] if isinstance(stage, DeviceStreaming) else list(self.committed)

    @property
    def _work(self) -> Work | None:
        """The request that is under way, whatever has become of the connection."""
        stage = self.stage
        if isinstance(stage, AT_WORK):
            return stage
        return stage.kept if isinstance(stage, (Disconnected, Resuming)) else None

    def _welcomed(self) -> Welcome:
        if self.welcome is None:
            raise ValueError("the edge has not welcomed this device yet")
        return self.welcome
