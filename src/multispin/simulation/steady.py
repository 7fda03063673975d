"""A site's goodput in streams once they run: a simulation with everything known.

For `advise`, which compares ways to serve a site by the planner's model. Streams have no formula, so that the edge's
own scheduler runs under a virtual clock, on the same terms: no pauses, no stragglers, nothing to learn.
"""

from dataclasses import replace
from pathlib import Path

from multispin.control import Scenario
from multispin.control.advice import Streamed
from multispin.control.frames import FRAME_BITS
from multispin.control.texts import Texts
from multispin.simulation.device import DeviceRecord
from multispin.simulation.setup import Behaviour, ScenarioFile, Setup
from multispin.simulation.site import Site
from multispin.simulation.study import quiet_collector

WORK = 4800
"""A run has about this many passes times users, which bounds its time."""
PASSES = (60, 400)
"""Fewest and most passes of a run."""
BEFORE = 0.25
"""This share at the beginning of a run is not counted: streams begin, and the price of time is found."""


def streamed(scenario: Scenario, seeds: int, texts: Texts | None = None) -> Streamed:
    """Simulate a site in streams.

    Args:
        scenario: scenario of the site.
        seeds: number of runs whose mean is taken.
        texts: the site's texts and prompts; default None: texts are endless, and there are no prompts.

    Raises:
        InputError: the site cannot run streams, or cannot be simulated.
    """
    users = len(scenario.devices)
    passes = min(PASSES[1], max(PASSES[0], WORK // users))
    behaviour = Behaviour(frame_bits=FRAME_BITS)
    if texts is not None:
        behaviour = replace(behaviour, tokens_per_request=texts.tokens, prompt_tokens=texts.prompt_tokens)
    rates = []
    for seed in range(seeds):
        site = Site(Setup(scenario, behaviour), "heterogeneous", seed, True, mode="streams")
        with quiet_collector():
            site.run(passes)
        now_s = site.queue.now_s
        rates.append([_rate(device.record, BEFORE * now_s, now_s) for device in site.devices])
    mean = [sum(each) / seeds for each in zip(*rates, strict=True)]
    return Streamed(sum(mean), min(mean))


def texts_of(site: str | Path) -> Texts | None:
    """The texts that the [simulation] table of a scenario file describes; None if they are endless.

    Args:
        site: path of the file.

    Raises:
        InputError: the file cannot be simulated.
    """
    behaviour = ScenarioFile(site).setup().behaviour
    if behaviour.tokens_per_request is None:
        return None
    return Texts(behaviour.tokens_per_request, behaviour.prompt_tokens)


def _rate(record: DeviceRecord, from_s: float, to_s: float) -> float:
    """Tokens per second of a device between two times."""
    counted = zip(record.times_s, record.counts, strict=True)
    return sum(count for at_s, count in counted if from_s < at_s <= to_s) / (to_s - from_s) if to_s > from_s else 0.0
