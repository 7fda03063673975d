"""Stop strings: generation ends at the first one, which is cut from the output.

Where a text ends is a function of its ids alone: after the first id that completes a stop string, whether the ids
came one by one or several in a verdict. So a device and plain decoding of the target end alike.
"""

from collections.abc import Sequence

from multispin.errors import InputError

MAX_STOP_STRINGS = 64
MAX_STOP_CHARACTERS = 200


def check_stop_strings(strings: Sequence[str]) -> None:
    """InputError if there are more than `MAX_STOP_STRINGS`, or if one is empty or above `MAX_STOP_CHARACTERS`."""
    if len(strings) > MAX_STOP_STRINGS:
        raise InputError(f"{len(strings)} stop strings are over the limit of {MAX_STOP_STRINGS}")
    for string in strings:
        if not 1 <= len(string) <= MAX_STOP_CHARACTERS:
            raise InputError(f"a stop string of {len(string)} characters is outside 1 … {MAX_STOP_CHARACTERS}")
