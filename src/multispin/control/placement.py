"""The places of devices: distance and transmit power of a scenario file become received power over noise density."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from multispin.checks import not_negative, number, shown
from multispin.errors import InputError
from multispin.radio import db_to_ratio, path_loss_gain

PLACE_KEYS = ("distance_m", "transmit_dbm")
"""Keys of a [[device]] that stand for `snr_hz`."""


@dataclass(frozen=True)
class Radio:
    """How a signal fades on its way to the server, the `[radio]` table.

    p g / N₀ with g = gain_at_1m · d^(−exponent). It neglects the same as the preset of arXiv 2608.29618.

    Args:
        noise_dbm_per_hz: noise density N₀ at the server [dBm/Hz]; default −169.0.
        path_loss_exponent: 2 in free space; default 3.5.
        gain_at_1m_db: power gain at 1 m [dB]; default −30.0.
    """

    noise_dbm_per_hz: float = -169.0
    path_loss_exponent: float = 3.5
    gain_at_1m_db: float = -30.0

    def __post_init__(self) -> None:
        number("noise_dbm_per_hz", self.noise_dbm_per_hz, of="radio.")
        not_negative("path_loss_exponent", self.path_loss_exponent, of="radio.")
        number("gain_at_1m_db", self.gain_at_1m_db, of="radio.")

    def snr_hz(self, distance_m: float, transmit_dbm: float) -> float:
        """Received power over noise density of a device [Hz]; 12.5 dBm from 100 m are 141 MHz by default.

        Args:
            distance_m: distance from the server, at least 1 m.
            transmit_dbm: power p [dBm].

        Raises:
            InputError: a value that is no finite number, or a distance below 1 m.
        """
        if number("distance_m", distance_m) < 1:
            raise InputError(
                f"distance_m is {distance_m!r}; it must be at least 1 m, below which the path loss does not hold",
                where=("distance_m",),
            )
        number("transmit_dbm", transmit_dbm)
        with np.errstate(over="ignore", under="ignore"):  # the device refuses 0 and infinity
            gain = path_loss_gain(distance_m, self.path_loss_exponent, db_to_ratio(self.gain_at_1m_db))
            # The quotient of two powers in dBm, as one: neither alone can then underflow.
            return float(gain * db_to_ratio(transmit_dbm - self.noise_dbm_per_hz))

    def placed(self, table: Mapping[str, Any]) -> dict[str, Any]:
        """A [[device]] table with `snr_hz` instead of its place; unchanged if it has none.

        Args:
            table: keys and values of a [[device]]; left as it is.

        Raises:
            InputError: the place is incomplete or refused by `Radio.snr_hz`, or a rate is given beside it.
        """
        given = [key for key in PLACE_KEYS if key in table]
        if not given:
            return dict(table)
        name = f"device {shown(table.get('name'))}"
        if len(given) < len(PLACE_KEYS):
            raise InputError(
                f"{name}: {given[0]} is given alone; distance_m and transmit_dbm go together", where=(given[0],)
            )
        for other in ("spectral_efficiency", "snr_hz"):
            if other in table:
                raise InputError(
                    f"{name}: give either distance_m and transmit_dbm or {other}, and not both", where=(other,)
                )
        rest = {key: value for key, value in table.items() if key not in PLACE_KEYS}
        try:
            return rest | {"snr_hz": self.snr_hz(table["distance_m"], table["transmit_dbm"])}
        except InputError as error:
            raise InputError(f"{name}: {error}", where=error.where) from error
