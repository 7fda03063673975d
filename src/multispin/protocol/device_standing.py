"""The state of a device's session: its text, its stage, and what follows from them.

`device_session` changes it.
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
        hello: the device's Hello message.
        welcome: the edge's Welcome; None while no edge knows this device.
        stage: stage of the session.

    Args:
        hello: the device's Hello message.
        decode: function that turns token ids into text with the target's tokenizer; needed for stop strings; default
            None.
        max_wasted_share: largest share of its drafted tokens that may be wasted in streams, 0 … 1; the device drafts
            less far ahead to keep it; default 1, as far ahead as the edge allows.

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
        self._form: DistributionFormat | None = None  # made when first needed
        self._without_tokens = 0  # messages of the edge since the text last grew
        self._head: int | None = None  # found from an offer, and not yet sent to the edge

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
        """Format of this request's distributions; the edge's vocabulary bounds what they retain."""
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
        """The grant whose draft is not yet made; a lost connection keeps it until the edge says otherwise."""
        work = self.stage if isinstance(self.stage, DraftDue) else self._work
        return work.grant if isinstance(work, DraftDue) else None

    @property
    def is_greeting(self) -> bool:
        """Whether an answer to the greeting is missing: a Welcome, or after a Resume a Tail."""
        return isinstance(self.stage, Greeting | Resuming)

    @property
    def joined(self) -> bool:
        """Whether the device is connected, and edge and device are at the same position of an open request."""
        return isinstance(self.stage, AT_WORK)

    @property
    def wants_draft(self) -> bool:
        """Whether the open grant must be answered, with a draft or at least with the token that the edge lacks."""
        stage = self.stage
        return isinstance(stage, DraftDue) and (stage.grant.length > 0 or self._head is not None)

    @property
    def over(self) -> bool:
        """Whether the token that the edge lacks ends the text, so that nothing is left to draft."""
        return self._head is not None and self._text.is_ended_by(self._head)

    @property
    def epoch(self) -> int:
        """Number of the newest chain of drafted tokens; numbers increase."""
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
        """Number of further tokens that may be drafted ahead now; 0 if the device does not stream."""
        stage, request = self.stage, self._text.request
        if not isinstance(stage, DeviceStreaming) or request is None:
            return 0
        return self._chains.room(stage, self._text.left, request.stop_ids)

    @property
    def ahead(self) -> list[int]:
        """The committed text and the drafted tokens after it, from which the next token is drafted."""
        stage = self.stage
        return [*self.committed, *stage.ids] if isinstance(stage, DeviceStreaming) else list(self.committed)

    @property
    def _work(self) -> Work | None:
        """The stage of the open request, connected or not."""
        stage = self.stage
        if isinstance(stage, AT_WORK):
            return stage
        return stage.kept if isinstance(stage, (Disconnected, Resuming)) else None

    def _welcomed(self) -> Welcome:
        if self.welcome is None:
            raise ValueError("the edge has not welcomed this device yet")
        return self.welcome
