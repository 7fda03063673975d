"""The input of a simulation: a scenario, and events at its site. Scenario files with a [simulation] table."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from multispin.checks import not_negative, one_of, probability, shown, whole, within
from multispin.control import Scenario
from multispin.control.document import read_document
from multispin.control.files import EDGE_DRAFTER_TABLE, RADIO_TABLE, SIMULATION_KEYS, SIMULATION_TABLE, scenario_of
from multispin.control.texts import Whole
from multispin.errors import InputError
from multispin.estimation.traces import Traces, load_traces
from multispin.passes import Limits
from multispin.protocol import MAX_DRAFT_LENGTH
from multispin.simulation.uplink import EfficiencyTrace, load_efficiency_trace

FADINGS = ("none", "rayleigh")
MAX_TOKENS = 2**19
"""Longest prompt and longest text of a simulated request."""
MAX_STRAGGLER_S = 30.0
"""Longest delay of a straggler; a device that is a minute late would be let go."""

MAX_S = 1e9
"""Longest time between two events of a simulation: some thirty years."""
_OF = f"{SIMULATION_TABLE}."


@dataclass(frozen=True)
class Behaviour:
    """Events at a site beside drafting: the [simulation] table of a scenario file.

    Attributes:
        tokens_per_request: length of a text [tokens], or [least, greatest]; None (default) for one endless text per
            device.
        prompt_tokens: length of a prompt [tokens], or [least, greatest]; default 1.
        pause_s: mean pause between the end of a request and the device's next one, exponential [s]; default 0.
        arrivals_per_s: rate at which devices come, one after another [1/s]; None (default): all come at once.
        mean_stay_s: mean time after which a device leaves, exponential [s]; None (default): it stays.
        mean_away_s: mean time after which it comes back as a new device, exponential [s]; None (default): it does not.
        straggler_probability: share of drafts that are late; default 0.
        straggler_delay_s: time by which they are late [s]; default 0.
        fading: "none" (default), or "rayleigh": drawn in every round around the scenario's signal-to-noise ratio.
        coherence_s: coherence time of the fading [s]; default 0, independent rounds (`RayleighChannel`).
        slots: texts that the server holds at once; None (default): one for every device.
        prefill_tokens_per_round: most prompt tokens in one batch.
        prefill_share: prompt tokens beside drafts may lengthen a round by this share of its planned time.
        deadline_factor: a round waits for drafts at most this many times its planned drafting and upload time …
        deadline_slack_s: … and this much longer [s]; then it verifies without the late drafts.
        choose_deadline: whether it waits only as long as waiting has raised the goodput, in mode "rounds" (default), or
            always as long as the two values above allow.
        texts: number of texts after which a device leaves for good; None (default): it stays.
        distributions: whether drafts carry a distribution for each token, as under the rule `rejection`; default false,
            ids only. In streams such drafts are made in grants, as they begin again after each verdict.
        frame_bits: overhead of a draft on the air, beside its tokens [bit]; default 0.
        round_overhead_s: time of a round that is not drafting, upload or verification, such as planning [s]; default 0.

    """

    tokens_per_request: Whole | None = None
    prompt_tokens: Whole = 1
    pause_s: float = 0.0
    arrivals_per_s: float | None = None
    mean_stay_s: float | None = None
    mean_away_s: float | None = None
    straggler_probability: float = 0.0
    straggler_delay_s: float = 0.0
    fading: str = "none"
    coherence_s: float = 0.0
    slots: int | None = None
    prefill_tokens_per_round: int = Limits.prefill_tokens_per_round
    prefill_share: float = Limits.prefill_share
    deadline_factor: float = Limits.deadline_factor
    deadline_slack_s: float = Limits.deadline_slack_s
    choose_deadline: bool = Limits.choose_deadline
    texts: int | None = None
    distributions: bool = False
    frame_bits: float = 0.0
    round_overhead_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("tokens_per_request", "prompt_tokens"):
            object.__setattr__(self, name, _tokens(name, getattr(self, name)))
        for name in (
            *("pause_s", "straggler_delay_s", "coherence_s", "deadline_factor", "deadline_slack_s"),
            *("frame_bits", "round_overhead_s", "prefill_share"),
        ):
            not_negative(name, getattr(self, name), of=_OF)
        for name in ("arrivals_per_s", "mean_stay_s", "mean_away_s"):
            if (value := getattr(self, name)) is not None:
                within(name, value, 1e-9, MAX_S, of=_OF)
        for name in ("choose_deadline", "distributions"):
            if not isinstance(value := getattr(self, name), bool):
                raise InputError(f"simulation.{name} is {shown(value)}; it must be true or false", where=(name,))
        probability("straggler_probability", self.straggler_probability, of=_OF)
        within("straggler_delay_s", self.straggler_delay_s, 0.0, MAX_STRAGGLER_S, of=_OF)
        one_of("fading", self.fading, FADINGS, of=_OF)
        if self.mean_away_s is not None and self.mean_stay_s is None:
            raise InputError(
                "simulation.mean_away_s is given without mean_stay_s, after which devices would go away",
                where=("mean_away_s",),
            )
        for name in ("slots", "texts"):
            if (value := getattr(self, name)) is not None:
                whole(name, value, 1, MAX_TOKENS, of=_OF)
        whole("prefill_tokens_per_round", self.prefill_tokens_per_round, 1, MAX_TOKENS, of=_OF)


@dataclass(frozen=True)
class DeviceLife:
    """Changes of one device over time: keys of its [[device]] table.

    Attributes:
        arrives_s: time at which it comes [s]; default 0.
        leaves_s: time at which it says goodbye [s]; None (default): never.
        lost_s: time at which it vanishes without a word, for good [s]; None (default): never.
        traces: recording of its drafter, in place of its acceptance rate; default none.
        link: recording of its link, in place of its spectral efficiency; default none.

    """

    arrives_s: float = 0.0
    leaves_s: float | None = None
    lost_s: float | None = None
    traces: Traces | None = None
    link: EfficiencyTrace | None = None

    def __post_init__(self) -> None:
        for name in ("arrives_s", "leaves_s", "lost_s"):
            if (value := getattr(self, name)) is not None:
                not_negative(name, value, of="device.")
                if value < self.arrives_s:
                    raise InputError(
                        f"device.{name} = {value:g} is before device.arrives_s = {self.arrives_s:g}", where=(name,)
                    )


@dataclass(frozen=True)
class Setup:
    """A scenario and what happens in it over time.

    Attributes:
        scenario: the truth about cell, verifier and devices.
        behaviour: events of all devices: requests, arrivals, fading, delays.
        lives: events of each device, in the scenario's order; empty if there are none; by default none.

    """

    scenario: Scenario
    behaviour: Behaviour = field(default_factory=Behaviour)
    lives: tuple[DeviceLife, ...] = ()

    def __post_init__(self) -> None:
        if not self.lives:
            object.__setattr__(self, "lives", (DeviceLife(),) * len(self.scenario.devices))
        if len(self.lives) != len(self.scenario.devices):
            raise InputError(f"lives has {len(self.lives)} entries for {len(self.scenario.devices)} devices")
        for device in self.scenario.devices:
            if device.modes:
                raise InputError(
                    f"device {device.name!r}: a choice of modes is for `multispin plan`; a simulation needs one "
                    "acceptance_rate or acceptance_profile"
                )
            if self.scenario.limits(device)[1] > MAX_DRAFT_LENGTH:
                raise InputError(
                    f"device {device.name!r}: max_draft_length is over {MAX_DRAFT_LENGTH}, the longest draft that the "
                    "protocol knows"
                )

    def edge_limits(self) -> Limits:
        """The limits of an edge that has room for all devices."""
        behaviour, count = self.behaviour, len(self.scenario.devices)
        return Limits(
            max_sessions=count,
            max_waiting=count,
            prefill_tokens_per_round=behaviour.prefill_tokens_per_round,
            prefill_share=behaviour.prefill_share,
            deadline_factor=behaviour.deadline_factor,
            deadline_slack_s=behaviour.deadline_slack_s,
            choose_deadline=behaviour.choose_deadline,
        )


class ScenarioFile:
    """A scenario file whose values may be changed before it is checked: what a sweep needs.

    Args:
        path: path of the file; the recordings that it names are found relative to it.

    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._document = read_document(path)
        self._traces: dict[Path, Traces] = {}
        self._links: dict[Path, EfficiencyTrace] = {}

    def setup(self, changes: Mapping[str, Any] | None = None) -> Setup:
        """The file's setup with some keys changed.

        Args:
            changes: values by key: "cell.K", "verifier.K", "edge_drafter.K", "radio.K", "simulation.K", "device.K" (for
                every device), or "devices" (only this many of the file's devices, from the first on); default None.

        Raises:
            InputError: one sentence with the file and the key that is wrong.

        """
        document = self._document.copy()
        for key, value in (changes or {}).items():
            self._change(document.tables, key, value)
        behaviour = Behaviour()
        if SIMULATION_TABLE in document.tables:
            behaviour = document.build(Behaviour, (SIMULATION_TABLE,), f"[{SIMULATION_TABLE}]")
        tables = document.tables.get("device")
        lives = []
        for index, table in enumerate(tables if isinstance(tables, list) else []):
            if isinstance(table, dict):
                try:
                    lives.append(self._life(table))
                except InputError as error:
                    raise document.refuse(error, ("device", index)) from error
                if lives[-1].traces is not None and not {"acceptance_rate", "acceptance_profile"} & set(table):
                    table["acceptance_rate"] = lives[-1].traces.rate
        return Setup(scenario_of(document), behaviour, tuple(lives))

    def _change(self, document: dict[str, Any], key: str, value: Any) -> None:
        table, _, name = key.partition(".")
        devices = document.get("device")
        if key == "devices" and isinstance(devices, list):
            whole("devices", value, 1, len(devices), of=f"{self.path}: ")
            del devices[value:]
        elif table == "device" and name and isinstance(devices, list):
            for each in devices:
                _put(each, name, value)
        elif table in ("cell", "verifier", EDGE_DRAFTER_TABLE, RADIO_TABLE, SIMULATION_TABLE) and name:
            _put(document.setdefault(table, {}), name, value)
        else:
            raise InputError(
                f"{key!r} is not a key that can be changed: name devices, or KEY in cell.KEY, verifier.KEY, "
                "edge_drafter.KEY, radio.KEY, simulation.KEY or device.KEY"
            )

    def _life(self, table: Mapping[str, Any]) -> DeviceLife:
        given = {key: table[key] for key in SIMULATION_KEYS if key in table}
        trace, link = given.pop("acceptance_trace", None), given.pop("efficiency_trace", None)
        life = DeviceLife(**given)
        if trace is not None:
            path = self._beside("acceptance_trace", trace)
            if path not in self._traces:
                self._traces[path] = load_traces(path)
            life = replace(life, traces=self._traces[path])
        if link is not None:
            path = self._beside("efficiency_trace", link)
            if path not in self._links:
                self._links[path] = load_efficiency_trace(path)
            life = replace(life, link=self._links[path])
        return life

    def _beside(self, key: str, name: object) -> Path:
        if not isinstance(name, str):
            raise InputError(f"{key} is {shown(name)}; it must be the name of a file")
        return self.path.parent / name


def _put(table: Any, name: str, value: Any) -> None:
    """Change a value of a table. What is not a table although it should be is refused when the document is read."""
    if isinstance(table, dict):
        table[name] = value


def _tokens(name: str, value: Any) -> Whole | None:
    if isinstance(value, list | tuple):
        if len(value) != 2:
            raise InputError(
                f"{_OF}{name} is {shown(value)}; it must be a whole number or [least, greatest]", where=(name,)
            )
        low, high = (whole(name, each, 1, MAX_TOKENS, of=_OF) for each in value)
        if low > high:
            raise InputError(f"{_OF}{name} is {shown(value)}; the first must not be above the second", where=(name,))
        return low, high
    return value if value is None and name == "tokens_per_request" else whole(name, value, 1, MAX_TOKENS, of=_OF)
