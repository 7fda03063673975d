"""Connections that have to make room for newcomers, and which of them is first."""

from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Crowd(Generic[Key]):
    """Connections by address. The first to make room is the oldest of the address that has most of them.

    So whoever opens connections again and again pushes out its own, and no single one of another address.
    """

    def __init__(self) -> None:
        self._of: dict[str, dict[Key, int]] = {}  # by address, then when it came; oldest first
        self._address: dict[Key, str] = {}
        self._came = 0

    def __len__(self) -> int:
        return len(self._address)

    def add(self, key: Key, address: str) -> None:
        """Take in a connection; one that is here already keeps its place. Those without an address count singly."""
        if key not in self._address:
            self._came += 1
            self._address[key] = address
            self._of.setdefault(address, {})[key] = self._came

    def remove(self, key: Key) -> None:
        """Let a connection go, if it is here."""
        if (address := self._address.pop(key, None)) is not None:
            del self._of[address][key]
            if not self._of[address]:
                del self._of[address]

    def first(self, address: str | None = None) -> Key | None:
        """The connection that has to make room, if there is one; by default of any address."""
        if address is None:
            if not self._of:
                return None
            address = max(self._of, key=lambda each: (len(self._of[each]) if each else 1, -self._oldest(each)))
        return next(iter(self._of.get(address, ())), None)

    def _oldest(self, address: str) -> int:
        return next(iter(self._of[address].values()))
