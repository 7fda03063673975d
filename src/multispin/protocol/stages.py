"""The stages of a session's next draft on the edge, each a value with everything that belongs to it.

A session cycles Idle → Granted → Pending → Idle, or under `rejection-up` Pending → DistributionAsked → Idle. A grant of
no tokens skips Granted, unless the device still has to name a token. In a stream the session is Streaming instead
(`edge_stream`), until its text ends. This file knows nothing of slots and rounds.
"""

from collections.abc import Sequence

from msgspec import Struct

from multispin.protocol.edge_stream import Streaming
from multispin.protocol.messages import Grant
from multispin.speculation import Evidence, Offer, Rejection


class Idle(Struct, frozen=True, eq=False):
    """Nothing is granted.

    Attributes:
        offer: under `rejection-down`, the offer whose token the device has not named yet.

    """

    offer: Offer | None = None


class Granted(Struct, frozen=True, eq=False):
    """A draft is granted and has not come.

    Attributes:
        grant: the grant that the device has.
        offer: under `rejection-down`, the offer whose token the device names with this draft.

    """

    grant: Grant
    offer: Offer | None = None


class Pending(Struct, frozen=True, eq=False):
    """A draft has come and awaits verification.

    Attributes:
        grant: the grant that it answers.
        draft: the drafted ids.
        evidence: distributions or probabilities that came with them; None for `greedy` and `coupled`.

    """

    grant: Grant
    draft: Sequence[int]
    evidence: Evidence | None = None


class DistributionAsked(Struct, frozen=True, eq=False):
    """A drafted token was refused under `rejection-up`, and the device must send the token's distribution.

    Attributes:
        grant: the grant that the draft answers.
        draft: the drafted ids; those before the refused one are accepted.
        rejection: the rejection that the verification found.

    """

    grant: Grant
    draft: Sequence[int]
    rejection: Rejection


Stage = Idle | Granted | Pending | DistributionAsked | Streaming
