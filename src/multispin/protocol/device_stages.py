"""Where a device's session stands, as one value with a tag: the connection outside, the draft under way inside.

    Away ──greet──► Greeting ──Welcome──► Welcomed ──open──► Waiting ◄─► Granted ──answer──► Drafted
      ▲    └─────► Resuming ──Welcome, Tail──────────────────► one of the three, as the edge says
      └── any stage whose connection is lost; what was under way is kept inside

A new connection inherits nothing by itself: what `Away` or `Resuming` keeps is taken up only when the Tail of
a resumed session says that the edge still waits for it.
"""

from dataclasses import dataclass

from multispin.protocol.messages import Draft, Grant
from multispin.speculation import TruncatedLaw


@dataclass(frozen=True)
class Waiting:
    """The request is open at the edge, and nothing is granted."""


@dataclass(frozen=True)
class Granted:
    """A draft is granted and not made yet.

    Attributes:
        grant: the edge's grant.

    """

    grant: Grant


@dataclass(frozen=True, eq=False)
class Drafted:
    """A draft is made; it is kept until it is decided, as a refusal is finished from its distributions.

    Attributes:
        message: the draft as it goes on the wire.
        ids: its tokens.
        laws: the distributions that they were drawn from, under the rejection rules.
        sent: whether it was sent, and the edge has not granted it again since.

    """

    message: Draft
    ids: tuple[int, ...]
    laws: tuple[TruncatedLaw, ...]
    sent: bool


@dataclass(frozen=True)
class Ended:
    """The text is complete.

    Attributes:
        finish: "stop" or "length".

    """

    finish: str


Work = Waiting | Granted | Drafted | Ended
"""What becomes of an open request's next tokens."""


@dataclass(frozen=True)
class Away:
    """There is no connection.

    Attributes:
        kept: what was under way at the edge; None if no request is open there.

    """

    kept: Work | None = None


@dataclass(frozen=True)
class Greeting:
    """A Hello is sent, its Welcome has not come."""


@dataclass(frozen=True)
class Welcomed:
    """The edge knows the device; no request is open there."""


@dataclass(frozen=True)
class Resuming:
    """A Resume is sent; a Welcome and then a Tail must come.

    Attributes:
        kept: what was under way before.
        welcomed: whether the Welcome has come.

    """

    kept: Work
    welcomed: bool = False


DeviceStage = Away | Greeting | Welcomed | Resuming | Work
