"""The acceptance rules by their names. Light to import: commands name them before anything is loaded."""

from enum import StrEnum

MAX_PROBABILITY_BITS = 32
"""Most bits of a probability on the air, Q_B."""


class Rule(StrEnum):
    """An acceptance rule together with its payload."""

    GREEDY = "greedy"
    COUPLED = "coupled"
    REJECTION = "rejection"
    REJECTION_UP = "rejection-up"
    REJECTION_DOWN = "rejection-down"
