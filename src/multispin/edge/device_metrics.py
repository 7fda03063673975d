"""Metrics of single devices and of times, kept as plain numbers, since every pass updates one set for each session.

They become Prometheus series only when somebody asks for them.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from multispin.outside import one_line
from multispin.protocol.events import RoundDevice, RoundGrant

MAX_NAMED_DEVICES = 100
"""Most devices with series of their own; further ones are counted together as `OTHER`."""
OTHER = "other"


class Times(Collector):
    """A histogram of times [s].

    Args:
        name: name of the metric.
        text: help text of the metric.
        labels: names of the labels that all its series have.
        bounds: upper bounds of its buckets but the last [s].

    """

    def __init__(self, name: str, text: str, labels: Mapping[str, str], bounds: Collection[float]) -> None:
        self._name, self._text, self._labels = name, text, labels
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum_s = 0.0

    def observe(self, seconds: float) -> None:
        """Count one time."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum_s += seconds

    def collect(self) -> Iterator[Metric]:
        """The histogram in Prometheus' form."""
        family = HistogramMetricFamily(self._name, self._text, labels=list(self._labels))
        names = (*map(str, self._bounds), "+Inf")
        buckets = list(zip(names, accumulate(self._counts), strict=True))
        family.add_metric(list(self._labels.values()), buckets, self._sum_s)
        yield family


@dataclass(slots=True)
class _DeviceFigures:
    """The figures of one device.

    Attributes:
        origin: whom its first session counts as: a token, or an address.
        sessions: numbers of its sessions.
        row: its row in the last pass with a draft of its own; None before.
        grant: its last grant; None before.
        tokens: tokens of its texts.

    """

    origin: str = ""
    sessions: set[int] = field(default_factory=set)
    row: RoundDevice | None = None
    grant: RoundGrant | None = None
    tokens: int = 0


class DeviceMetrics(Collector):
    """Metrics of devices by name. A client chooses its name, so the number of names is bounded.

    At the bound a newcomer takes the place of a device of the origin that has most, if its own has fewer.

    Args:
        origin_of: returns whom a session counts as: a token, or an address; default: all are one.

    """

    def __init__(self, origin_of: Callable[[int], str] = lambda _: "") -> None:
        self._origin_of = origin_of
        self._devices: dict[str, _DeviceFigures] = {}
        self._others = _DeviceFigures()
        self._of_session: dict[int, _DeviceFigures] = {}

    @property
    def sessions(self) -> int:
        """Number of sessions that are remembered, ended ones included."""
        return len(self._of_session)

    def take(self, rows: Iterable[RoundDevice], grants: Iterable[RoundGrant]) -> None:
        """Count a pass's results and its grants."""
        for row in rows:
            device = self._of_session.get(row.session) or self._find(row.session, row.name)
            device.tokens += row.tokens
            if row.drafter == "device":
                device.row = row
        for grant in grants:
            device = self._of_session.get(grant.session) or self._find(grant.session, grant.name)
            device.grant = grant

    def _find(self, session: int, name: str) -> _DeviceFigures:
        """The figures of a session's device, or those of `OTHER` if there is no room for one more."""
        label = one_line(name)[:80] or "unnamed"
        if label == OTHER:  # a device with this very name must not create the series twice
            return self._others
        device = self._devices.get(label)
        if device is None:
            origin = self._origin_of(session)
            if len(self._devices) < MAX_NAMED_DEVICES or self._make_room(origin):
                device = self._devices[label] = _DeviceFigures(origin)
            else:
                device = self._others  # until somebody asks for the metrics, since each pass counts each session
        device.sessions.add(session)
        self._of_session[session] = device
        return device

    def _make_room(self, origin: str) -> bool:
        """Count the newest device of the origin that has most among the others, unless this one has about as many."""
        held = Counter(device.origin for device in self._devices.values())
        most = max(held, key=lambda each: held[each])
        if held[most] <= held[origin] + 1:
            return False
        label = next(label for label in reversed(self._devices) if self._devices[label].origin == most)
        device = self._devices.pop(label)
        self._others.tokens += device.tokens
        self._others.sessions |= device.sessions
        self._of_session |= dict.fromkeys(device.sessions, self._others)
        return True

    def forget(self, sessions: Collection[int]) -> None:
        """Drop the devices that have none of these sessions, and let the others try anew for series of their own."""
        for session in self._others.sessions:
            del self._of_session[session]
        self._others.sessions.clear()
        for label, device in list(self._devices.items()):
            for gone in device.sessions.difference(sessions):
                device.sessions.remove(gone)
                del self._of_session[gone]
            if not device.sessions:
                del self._devices[label]

    def collect(self) -> Iterator[Metric]:
        """All series in Prometheus' form."""

        def gauge(name: str, text: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"multispin_device_{name}", text, labels=["device"])

        acceptance = gauge("acceptance_ratio", "Estimated share of the device's drafted tokens that is accepted.")
        speed = gauge("seconds_per_token", "Estimated time in which the device drafts one token.")
        length = gauge("draft_length", "Tokens of the device's last grant, or of its window.")
        band = gauge("bandwidth_hertz", "Bandwidth of the device's last grant, or of its window.")
        tokens = CounterMetricFamily("multispin_device_tokens", "Tokens of the device's texts.", labels=["device"])
        for label, device in self._devices.items():
            if device.row is not None:
                acceptance.add_metric([label], device.row.acceptance_rate)
                speed.add_metric([label], device.row.seconds_per_token)
            if device.grant is not None:
                length.add_metric([label], device.grant.length)
                band.add_metric([label], device.grant.bandwidth_hz)
            tokens.add_metric([label], device.tokens)
        if self._others.tokens:
            tokens.add_metric([OTHER], self._others.tokens)
        yield from (acceptance, speed, length, band, tokens)
