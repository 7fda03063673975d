"""The device: drafting loop and shaped uplink."""

from multispin.device.client import Counters, DeviceClient, Emulation

__all__ = ["Counters", "DeviceClient", "Emulation"]
