"""Distances and powers in a scenario file."""

import math

import pytest

from multispin.control import dump_scenario, parse_scenario
from multispin.errors import InputError
from multispin.radio import db_to_ratio, path_loss_gain

FILE = """\
[cell]
bandwidth_hz = 10e6
bits_per_token = 544
[verifier]
fixed_s = 0.0428
per_device_s = 0.0076
{radio}
[[device]]
name = "near distance_m"
seconds_per_token = 0.0152
acceptance_rate = 0.9
{place}
[[device]]
name = "other"
seconds_per_token = 0.0152
acceptance_rate = 0.9
snr_hz = 1e6
"""
PLACE = "distance_m = 100\ntransmit_dbm = 12.5"


def scenario(radio="", place=PLACE):
    return parse_scenario(FILE.format(radio=radio, place=place))


def test_a_place_is_received_power_over_noise_density():
    # -30 dB - 35 dB/decade · 2 decades = -100 dB; 12.5 dBm - 100 dB + 169 dBm/Hz = 81.5 dB·Hz.
    near, other = scenario().devices
    assert near.snr_hz == pytest.approx(10**8.15, rel=1e-12)
    assert other.snr_hz == 1e6
    gain = path_loss_gain(100.0, 3.5, db_to_ratio(-30))
    expected = 2e6 * math.log2(1 + 10 ** (1.25 + 16.9) * gain / 2e6)  # 12.5 dBm against -169 dBm/Hz
    assert near.rate_bits_per_s(2e6) == pytest.approx(float(expected), rel=1e-12)


def test_the_table_says_how_signals_fade():
    near = scenario("[radio]\nnoise_dbm_per_hz = -174\npath_loss_exponent = 2\ngain_at_1m_db = -40").devices[0]
    assert near.snr_hz == pytest.approx(10 ** ((12.5 - 40 - 40 + 174) / 10), rel=1e-12)


def test_a_placed_scenario_is_written_as_what_it_amounts_to():
    assert parse_scenario(dump_scenario(scenario())) == scenario()


@pytest.mark.parametrize(
    ("radio", "place", "message"),
    [
        ("", "distance_m = 100", "line 12: .*distance_m is given alone; distance_m and transmit_dbm go together"),
        ("", "transmit_dbm = 10", "transmit_dbm is given alone"),
        ("", PLACE + "\nsnr_hz = 1e6", "either distance_m and transmit_dbm or snr_hz, and not both"),
        ("", PLACE + "\nspectral_efficiency = 5", "or spectral_efficiency, and not both"),
        ("", "distance_m = 0.5\ntransmit_dbm = 10", "line 12: .*distance_m is 0.5; it must be at least 1 m"),
        ("", "distance_m = nan\ntransmit_dbm = 10", "distance_m is nan; it must be a finite number"),
        ("", 'distance_m = "far"\ntransmit_dbm = 10', "distance_m is 'far'; it must be a finite number"),
        ("", "distance_m = 100\ntransmit_dbm = 1e9", "snr_hz is inf"),
        ("", "distance_m = 1e300\ntransmit_dbm = 10", "snr_hz is 0.0; it must be > 0"),
        ("[radio]\nnoise_dbm_per_hz = nan", PLACE, "line 8: radio.noise_dbm_per_hz is nan; it must be a finite number"),
        ("[radio]\npath_loss_exponent = -2", PLACE, "line 8: radio.path_loss_exponent is -2; it must be >= 0"),
        ("[radio]\ncolour = 2", PLACE, "line 8: unknown key 'colour' in .radio.; known are noise_dbm_per_hz"),
        ("[[radio]]", PLACE, "radio must be a table"),
    ],
)
def test_a_refused_place_says_what_is_wrong(recwarn, radio, place, message):
    with pytest.raises(InputError, match=message) as caught:
        scenario(radio, place)
    assert "\n" not in str(caught.value)
    assert not recwarn.list
