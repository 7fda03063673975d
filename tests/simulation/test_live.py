"""Real models under the virtual clock."""

import pytest

from multispin.control import Cell, Device, Scenario, Verification
from multispin.errors import InputError
from multispin.models import load_model
from multispin.models.reference import decode_alone
from multispin.simulation.live import load_live
from multispin.simulation.setup import Behaviour, Setup
from multispin.simulation.site import Site
from multispin.speculation import SamplingParams

SCENARIO = Scenario(
    Cell(2e6, 4000, max_draft_length=8),
    Verification(0.02, 0.01),
    tuple(Device(f"d{k}", 0.005 * (k + 1), 4.0, acceptance_rate=0.5) for k in range(3)),
)


@pytest.mark.parametrize("draft", ["q3", "lookup"])
def test_the_texts_are_the_targets_own_and_their_time_is_the_scenarios(draft, tiny_folder):
    live = load_live(str(tiny_folder), draft)
    site = Site(Setup(SCENARIO, Behaviour(tokens_per_request=20)), "heterogeneous", 1, live=live)
    site.run(60)
    target = load_model(tiny_folder)
    for device in site.devices:
        session, record = device.session, device.record
        prompt, text = session.committed[: session.prompt_tokens], session.generated
        assert tuple(prompt) in live.prompts
        assert text == decode_alone(target, prompt, SamplingParams(), 20)[: len(text)]
        assert record.requests > 0
        assert record.drafted == record.accepted + record.rejected + record.under_way
    assert 0.03 * site.rounds <= site.verifying_s < site.queue.now_s


def test_a_drafter_of_other_tokens_is_refused(tiny_folder, other_vocabulary_folder):
    with pytest.raises(InputError, match="tokenizer"):
        load_live(str(tiny_folder), str(other_vocabulary_folder))
