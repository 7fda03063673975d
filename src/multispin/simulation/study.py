"""Many runs: policies, points of a sweep and seeds, over processes; means with confidence intervals."""

import gc
import importlib
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from itertools import product
from typing import Any

import numpy as np

from multispin.checks import one_of, whole
from multispin.control import RUNTIME_POLICIES
from multispin.control.who import ways
from multispin.errors import InputError, how_to_install
from multispin.estimation.intervals import Estimate, estimate
from multispin.passes import ControllerSettings
from multispin.passes.settings import MODES
from multispin.simulation.live import LiveModels
from multispin.simulation.measures import Measures, measure
from multispin.simulation.setup import ScenarioFile, Setup
from multispin.simulation.site import Site
from multispin.simulation.uplink import in_turns
from multispin.simulation.workers import workers

SweepPoint = tuple[tuple[str, Any], ...]
"""Keys of a sweep with a value each; empty where nothing is swept."""
Told = Callable[[float], None]
"""Function of the share that is done, 0 … 1."""
MAX_POINTS = 10_000
_MAX_ROUNDS = 10_000_000
_MAX_SEED = 2**32


class NeedsTruthError(InputError):
    """A scenario that only a controller that knows the truth can plan for."""


@dataclass(frozen=True)
class SimulatedRun:
    """One run: all that its result depends on.

    Attributes:
        setup: the scenario, and what happens at its site.
        policy: how the edge plans rounds.
        seed: seed of everything random.
        rounds: verified rounds after which the run ends.
        knows: whether the controller knows the truth; else it learns, as the real one does.
        replan_tolerance: how far estimates may drift before the controller plans again; default that of
            `ControllerSettings`.
        knows_acceptance: whether the truth that it knows includes acceptance rates; default yes.
        mode: mode of the edge, one of `passes.settings.MODES`; default "rounds".

    """

    setup: Setup
    policy: str
    seed: int
    rounds: int
    knows: bool
    replan_tolerance: float = ControllerSettings.replan_tolerance
    knows_acceptance: bool = True
    mode: str = "rounds"

    def __post_init__(self) -> None:
        one_of("policy", self.policy, RUNTIME_POLICIES)
        one_of("mode", self.mode, MODES)
        whole("rounds", self.rounds, 1, _MAX_ROUNDS)
        whole("seed", self.seed, 0, _MAX_SEED)
        if self.mode == "edge" and self.setup.scenario.edge_drafter is None:
            raise InputError("mode 'edge' needs a drafter of the edge's own, the table [edge_drafter]")
        if not self.knows and in_turns(self.setup.scenario):
            raise NeedsTruthError(
                "multiple_access = 'tdma' needs a controller that knows the truth: one that learns cannot tell a draft "
                "that waits for its turn from one on a slow link"
            )


@dataclass(frozen=True)
class Result:
    """All seeds of one mode and policy at one point."""

    policy: str
    point: SweepPoint
    seeds: tuple[int, ...]
    runs: tuple[Measures, ...]
    mode: str = "rounds"

    @property
    def label(self) -> str:
        """The name of this way of serving: the policy where it plans the rounds of all devices, else the mode.

        Streams ask only whether the policy is fair.
        """
        if self.mode == "rounds":
            return self.policy
        named = self.mode == "mixture" or (self.mode in ("streams", "auto") and self.policy == "fair")
        return f"{self.mode}, {self.policy}" if named else self.mode

    def estimates(self) -> dict[str, Estimate]:
        """Mean and 95 % interval of every measure over the seeds in which it could be taken."""
        found = {}
        for name in (item.name for item in fields(Measures)):
            values = np.array([getattr(run, name) for run in self.runs])
            values = values[np.isfinite(values)]
            found[name] = estimate(values) if len(values) else Estimate(math.nan, math.nan, math.nan)
        return found


def labels(results: Sequence[Result]) -> list[str]:
    """The names of results in one table or picture: a policy is named with its mode where modes are compared."""
    alone = all(result.mode == "rounds" for result in results)
    return [f"rounds, {each.label}" if each.mode == "rounds" and not alone else each.label for each in results]


def simulate(run: SimulatedRun, progress: Told = lambda _: None, live: LiveModels | None = None) -> Measures:
    """Simulate one run: a pure function of it, and of the models where real ones write the texts."""
    site = Site(run.setup, run.policy, run.seed, run.knows, run.replan_tolerance, live, run.knows_acceptance, run.mode)
    with quiet_collector():
        site.run(run.rounds, lambda done: progress(done / run.rounds))
    return measure(site)


@contextmanager
def quiet_collector() -> Iterator[None]:
    """Disable the garbage collector during a run: it makes almost no cycles, and scanning torch's objects is slow."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def parse_sweep(text: str) -> tuple[str, list[Any]]:
    """KEY=FROM:TO:COUNT or KEY=VALUE,VALUE,… as a key and its values; whole numbers stay whole."""
    key, equals, values = text.partition("=")
    key = key.strip()
    if not equals or not key or not values.strip():
        raise InputError(f"{text!r} is not KEY=FROM:TO:COUNT nor KEY=VALUE,VALUE,…")
    if ":" not in values:
        return key, [_value(part.strip()) for part in values.split(",")]
    parts = values.split(":")
    try:
        first, last, count = float(parts[0]), float(parts[1]), int(parts[2])
    except (ValueError, IndexError):
        count = 0
        first = last = math.nan
    if len(parts) != 3 or not (math.isfinite(first) and math.isfinite(last)) or not 1 <= count <= MAX_POINTS:
        raise InputError(f"{text!r}: {values!r} is not FROM:TO:COUNT, two numbers and a whole number")
    return key, [_tidy(value) for value in np.linspace(first, last, count).tolist()]


def points(sweeps: Sequence[tuple[str, Sequence[Any]]]) -> list[SweepPoint]:
    """All combinations of the swept keys' values."""
    keys = [key for key, _ in sweeps]
    if len(set(keys)) != len(keys):
        raise InputError(f"{keys[0]!r} is swept twice")
    if math.prod(len(values) for _, values in sweeps) > MAX_POINTS:
        raise InputError(f"there are more than {MAX_POINTS} points to simulate; ask for fewer values")
    return [tuple(zip(keys, values, strict=True)) for values in product(*(values for _, values in sweeps))]


def runs_of(
    file: ScenarioFile,
    grid: Sequence[SweepPoint],
    policies: Sequence[str],
    seeds: Sequence[int],
    rounds: int,
    knows: bool,
    replan_tolerance: float = ControllerSettings.replan_tolerance,
    modes: Sequence[str] = ("rounds",),
) -> list[SimulatedRun]:
    """All runs, every point's scenario checked: by point, then mode and policy, then seed."""
    setups = [_setup(file, point) for point in grid]
    return [
        SimulatedRun(setup, policy, seed, rounds, knows, replan_tolerance, mode=mode)
        for setup, (mode, policy), seed in product(setups, ways(modes, policies), seeds)
    ]


def _setup(file: ScenarioFile, point: SweepPoint) -> Setup:
    """The setup at a point of a sweep; InputError names the swept values, which no line of the file holds."""
    try:
        return file.setup(dict(point))
    except InputError as error:
        if not point:
            raise
        swept = ", ".join(f"{key} = {value}" for key, value in point)
        raise InputError(f"with {swept}: {error}") from None


def run_all(
    runs: Sequence[SimulatedRun], processes: int, progress: Told = lambda _: None, live: LiveModels | None = None
) -> list[Measures]:
    """Simulate all runs on this many processes of this machine, and return their measures in order.

    With real models everything runs in this process, which holds them.
    """
    if processes == 1 or len(runs) == 1 or live is not None:
        return [
            simulate(run, lambda part, index=index: progress((index + part) / len(runs)), live)  # type: ignore[misc]
            for index, run in enumerate(runs)
        ]
    with workers(min(processes, len(runs))) as pool:
        running = [pool.submit(simulate, run) for run in runs]
        for done, _ in enumerate(as_completed(running), start=1):
            progress(done / len(runs))
        return [future.result() for future in running]


def run_on_ray(runs: Sequence[SimulatedRun], progress: Told = lambda _: None) -> list[Measures]:
    """Simulate all runs as tasks of a Ray cluster: that of RAY_ADDRESS if it is set, else one started on this machine.

    multispin must be installed on every node; InputError if Ray is not installed here or cannot be reached.
    """
    try:
        ray = importlib.import_module("ray")
    except ImportError:
        raise InputError(f"Ray is not installed: {how_to_install('ray')}") from None
    began = not ray.is_initialized()
    if began:
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(f"Ray cannot be reached or started: {str(error).splitlines()[0]}") from error
    try:
        task = ray.remote(simulate)
        running = [task.remote(run) for run in runs]
        waiting = list(running)
        while waiting:
            _, waiting = ray.wait(waiting)
            progress(1.0 - len(waiting) / len(runs))
        return list(ray.get(running))
    finally:
        if began:
            ray.shutdown()


def results_of(
    measured: Sequence[Measures],
    grid: Sequence[SweepPoint],
    policies: Sequence[str],
    seeds: Sequence[int],
    modes: Sequence[str] = ("rounds",),
) -> list[Result]:
    """The measures of `runs_of`'s runs by point, mode and policy."""
    runs = iter(measured)
    return [
        Result(policy, point, tuple(seeds), tuple(next(runs) for _ in seeds), mode)
        for point, (mode, policy) in product(grid, ways(modes, policies))
    ]


def as_document(scenario: str, rounds: int, results: Sequence[Result], knows: bool) -> dict[str, Any]:
    """The document that `multispin simulate --json` prints; NaN is null."""
    return {
        "scenario": scenario,
        "rounds": rounds,
        "seeds": len(results[0].seeds),
        "controller": "knows" if knows else "learns",
        "results": [
            {
                "policy": result.policy,
                "mode": result.mode,
                "sweep": dict(result.point),
                **{name: _plain(asdict(value)) for name, value in result.estimates().items()},
            }
            for result in results
        ],
    }


def as_rows(results: Iterable[Result]) -> list[dict[str, Any]]:
    """One row per run, for CSV."""
    return [
        {"policy": result.policy, "mode": result.mode, **dict(result.point), "seed": seed, **asdict(run)}
        for result in results
        for seed, run in zip(result.seeds, result.runs, strict=True)
    ]


def _plain(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _value(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    try:
        return _tidy(float(text))
    except ValueError:
        return text


def _tidy(value: float) -> int | float:
    return int(value) if math.isfinite(value) and value == int(value) else value
