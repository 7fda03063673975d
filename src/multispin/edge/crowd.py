"""Connections that have to make room for newcomers, and which of them is first."""

from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Crowd(Generic[Key]):
    """Connections by address, and there by how far they have come, such as to a first byte or to a whole request.

    The first to make room is of the address that has most of them, of the stage at which that address has most, and
    there the oldest. So whoever opens connections again and again pushes out its own: no single one of another address,
    and none of its own address that has come further.
    """

    def __init__(self) -> None:
        self._of: dict[str, dict[int, dict[Key, int]]] = {}  # by address, by stage, then when it came; oldest first
        self._place: dict[Key, tuple[str, int]] = {}
        self._came = 0

    def __len__(self) -> int:
        return len(self._place)

    def add(self, key: Key, address: str, stage: int = 0) -> None:
        """Take in a connection, or move it to another stage. Those without an address count singly."""
        if self._place.get(key) != (address, stage):
            self.remove(key)
            self._came += 1
            self._place[key] = address, stage
            self._of.setdefault(address, {}).setdefault(stage, {})[key] = self._came

    def remove(self, key: Key) -> None:
        """Let a connection go, if it is here."""
        if key in self._place:
            address, stage = self._place.pop(key)
            stages = self._of[address]
            del stages[stage][key]
            if not stages[stage]:
                del stages[stage]
            if not stages:
                del self._of[address]

    def first(self, address: str | None = None) -> Key | None:
        """The connection that has to make room, if there is one; by default of any address."""
        if address is None:
            if not self._of:
                return None
            address = max(self._of, key=lambda each: (self._count(each) if each else 1, -self._oldest(each)))
        stages = list(self._of.get(address, {}).values())
        if not stages:
            return None
        most = max(stages, key=lambda keys: (len(keys), -next(iter(keys.values()))))
        return next(iter(most))

    def _count(self, address: str) -> int:
        return sum(map(len, self._of[address].values()))

    def _oldest(self, address: str) -> int:
        return min(next(iter(keys.values())) for keys in self._of[address].values())
