"""Three sites of five phones, at which one of them is not as it should be: what two benchmarks share."""

from multispin.control import Cell, Device, EdgeDrafter, Scenario, Verification
from multispin.simulation.setup import Behaviour

_CELL = Cell(bandwidth_hz=5e5, bits_per_token=16, max_draft_length=12, min_draft_length=0)
_DEVICES = tuple(Device(f"d{k}", 0.006 + 0.001 * k, 3.0 + 0.2 * k, 0.8 - 0.02 * k, delay_s=0.003) for k in range(5))
BEHAVIOUR = Behaviour(frame_bits=176)
PAPER = Scenario(_CELL, Verification(0.0227, 0.0127), _DEVICES)
SMALL_TARGET = Scenario(_CELL, Verification(0.03, 0.002, 0.001), _DEVICES, EdgeDrafter(0.004, 0.0004, 0.5))
LONG_PASS = Scenario(_CELL, Verification(0.15, 0.002, 0.0005), _DEVICES)
