"""The OpenAI-compatible API: on the edge for clients without a drafter, on a device for its user's own programs."""

from multispin.gateway.access import guard
from multispin.gateway.app import Gateway
from multispin.gateway.clients import SessionPool
from multispin.gateway.local import local_sessions
from multispin.gateway.source import Piece, TextSource, Words

__all__ = ["Gateway", "Piece", "SessionPool", "TextSource", "Words", "guard", "local_sessions"]
