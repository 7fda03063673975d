"""How many of an engine's slots can still be taken: seen through the interface that every engine has."""

from multispin.speculation import SlotsTakenError


def free_slots(engine):
    """Take all that are free, count them, and give them back in the order that leaves the next one the next."""
    taken = []
    try:
        while True:
            taken.append(engine.open())
    except SlotsTakenError:
        for slot in reversed(taken):
            engine.close(slot)
        return len(taken)
