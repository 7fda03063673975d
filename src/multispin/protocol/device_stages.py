"""The stages of a device's session, as one tagged value: outside the connection, inside the current draft.

    Disconnected ──greet──► Greeting ──Welcome──► Welcomed ──open──► Waiting ◄─► DraftDue ──answer──► Drafted
      ▲    └─────► Resuming ──Welcome, Tail──────────────────────────► one of the three, as the edge says
      └── any stage whose connection is lost; it keeps what was open

If the edge sends a Window instead of grants, Waiting becomes DeviceStreaming until the text or the connection ends.

A new connection takes nothing over by itself: what `Disconnected` or `Resuming` keeps is used only if the Tail of a
resumed session says that the edge still waits for it.
"""

from msgspec import Struct

from multispin.errors import InputError
from multispin.protocol.device_stream import DeviceStreaming
from multispin.protocol.messages import Ask, Distribution, Draft, Grant, Verdict
from multispin.speculation import (
    DistributionFormat,
    Offer,
    TruncatedDistribution,
    pack_distributions,
    resolve_down,
    unpack_offer,
)


class Waiting(Struct, frozen=True):
    """The request is open at the edge, and nothing is granted."""


class DraftDue(Struct, frozen=True):
    """A draft is granted and not yet made.

    Attributes:
        grant: grant of the edge that the draft answers.

    """

    grant: Grant


class Drafted(Struct, frozen=True, eq=False):
    """A draft is made. It is kept until it is decided, since a rejection needs its distributions.

    Attributes:
        message: the draft as it goes on the wire.
        ids: ids of the draft.
        distributions: the distributions that they were drawn from, under the rejection rules.
        sent: whether it was sent since the edge's last grant for it.

    """

    message: Draft
    ids: tuple[int, ...]
    distributions: tuple[TruncatedDistribution, ...]
    sent: bool

    def answers(self, grant: Grant, committed: int, head: int | None) -> bool:
        """Whether it answers a grant, for a text of `committed` tokens with `head` still to be named."""
        message = self.message
        asked = (grant.round, committed, head)
        return (message.round, message.base, message.head) == asked and message.length <= grant.length

    def marked(self, sent: bool) -> "Drafted":
        """The same draft, marked as sent or not."""
        return Drafted(self.message, self.ids, self.distributions, sent)

    def asked_for(self, ask: Ask, form: DistributionFormat) -> Distribution | None:
        """The distribution that the edge asks for; None if there is none for that token and round."""
        if self.message.round != ask.round or ask.accepted >= len(self.distributions):
            return None
        packed = pack_distributions([self.distributions[ask.accepted]], form)
        return Distribution(ask.session, ask.round, ask.accepted, packed)


class Complete(Struct, frozen=True):
    """The text is complete.

    Attributes:
        finish: "stop" or "length".

    """

    finish: str


Work = Waiting | DraftDue | Drafted | DeviceStreaming | Complete
"""The stages of an open request's next tokens."""
AT_WORK = (Waiting, DraftDue, Drafted, DeviceStreaming, Complete)
"""The same stages as a tuple, for a fast `isinstance`."""


class Disconnected(Struct, frozen=True):
    """There is no connection.

    Attributes:
        kept: the stage at the edge; None if no request is open there.

    """

    kept: Work | None = None


class Greeting(Struct, frozen=True):
    """A Hello was sent, and its Welcome has not come."""


class Welcomed(Struct, frozen=True):
    """The edge knows the device; no request is open there."""


class Resuming(Struct, frozen=True):
    """A Resume was sent. A Welcome and then a Tail must come.

    Attributes:
        kept: stage before the connection was lost.
        welcomed: whether the Welcome has come.

    """

    kept: Work
    welcomed: bool = False


DeviceStage = Disconnected | Greeting | Welcomed | Resuming | Work


def found_from_offer(
    verdict: Verdict, distributions: tuple[TruncatedDistribution, ...], form: DistributionFormat, seed: int
) -> int:
    """The next token, from the edge's offer and the distribution that the rejected token was drawn from.

    Args:
        verdict: verdict with an offer.
        distributions: the distributions that the draft was drawn from.
        form: format of distributions on the wire.
        seed: seed of the request's noise.

    Raises:
        InputError: the draft had no distributions.

    """
    if verdict.accepted >= len(distributions):
        raise InputError("the edge made an offer for a draft without distributions")
    floor, rest_token = unpack_offer(verdict.offer, form)
    offer = Offer(verdict.accepted, verdict.base, floor, rest_token)
    return resolve_down(offer, distributions[verdict.accepted], seed)
