"""The protocol's version and limits. It imports nothing heavy, so that commands can check options with it."""

from multispin.errors import InputError
from multispin.outside import whole_characters

PROTOCOL_VERSION = 3
SESSION_PATH = "/v1/session"
"""Path of the devices' WebSocket on the edge."""
MAX_FRAME_BYTES = 256 * 1024
"""Largest message [bytes]. It fits a prompt of more than 60,000 ids of 32 bits."""
MAX_DRAFT_LENGTH = 63
"""Longest draft [tokens]: a verifier with recurrent layers can go back no further (`models.recurrent`)."""
MAX_SCORED_TAIL = 512
"""Most ids of a Tail with log probabilities; with 20 alternatives each they take at most 160 KiB."""
MAX_STOP_IDS = 16
MAX_RETAINED = 4096
"""Most tokens that a distribution on the wire may keep, V̂; one such distribution takes at most 26 KiB."""
ENVELOPE_BYTES = 64
"""Bytes reserved for a draft's other fields beside its payload."""
CONNECT_TIMEOUT_S = 10.0
"""Longest wait for a connection, its handshake included [s]."""
CLOSE_TIMEOUT_S = 2.0
"""Time in which either side must close the connection [s]."""
HEARTBEAT_S = 15.0
"""Time between two pings [s]. A peer without a pong within half of it counts as lost."""
FINISH_TEXTS_S = 10.0
"""Time that a server which is told to stop gives its clients' unfinished texts [s]."""
MAX_MESSAGES_WITHOUT_TOKENS = 10_000
"""Most messages that a device takes from an edge since its text last grew. An edge whose passes go on writes to devices
that wait for a slot every 15 s, so one that waits for 40 hours stays below it."""
MAX_NAME_CHARACTERS = 80
MAX_SENTENCE_CHARACTERS = 1000
"""Longest sentence of an Error [characters]."""
MAX_CREDENTIAL_CHARACTERS = 256


def check_credential(text: str, name: str) -> None:
    """InputError unless a peer can show this text as its credential.

    An empty one is refused as well. Whoever gives it means a secret that is not there, and an edge without a secret is
    open to everybody.

    Args:
        text: the credential.
        name: what the error calls it.

    """
    whole_characters(text, name)
    if not text:
        raise InputError(f"{name} is empty: name a secret, or leave it out (unset it)")
    if text != text.strip():
        raise InputError(f"{name} begins or ends with white space, which HTTP clients cannot send")
    if not text.isprintable():
        raise InputError(f"{name} has a line break or another character that HTTP clients cannot send: give one line")
    if len(text) > MAX_CREDENTIAL_CHARACTERS:
        raise InputError(f"{name} has {len(text)} characters, over the limit of {MAX_CREDENTIAL_CHARACTERS}")
