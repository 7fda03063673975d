"""A short form of `make chaos`: one schedule for each mode, and two of real processes."""

from functools import partial

import pytest
from tests.chaos import processes, schedules, world


@pytest.mark.processes
@pytest.mark.parametrize("seed", [*range(5, 10), 21, 24])
def test_every_surviving_text_is_the_undisturbed_one(seed):
    assert "reconnections" in schedules.play(seed)


@pytest.mark.processes
@pytest.mark.parametrize("play", [partial(schedules.play, 6), partial(processes.play, 2, "plain")])
def test_a_target_that_forgets_a_token_is_caught(play):
    with pytest.raises(AssertionError, match="differs"):
        play(own_text=lambda prompt, count: [1] * count)


def test_every_kind_of_schedule_comes_in_every_mode():
    kinds = {(seed % schedules.CYCLE // len(world.MODES) == 0, seed % len(world.MODES)) for seed in range(200)}
    assert len(kinds) == 2 * len(world.MODES)
