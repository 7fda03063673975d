"""What `import multispin` offers: its names, what it loads, and that a pass gives the target's own text."""

import asyncio
import math
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import multispin
from multispin.control import Verification
from multispin.edge.paced import PacedEngine
from multispin.models import ModelDrafter, decode_alone, load_model, load_tokenizer, load_verifier, round_weights
from multispin.protocol.events import Round
from multispin.simulation.setup import ScenarioFile
from multispin.simulation.study import SimulatedRun
from multispin.simulation.study import simulate as run

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "one_pass.py"
PROMPTS = (b"the quick brown fox", b"abcabcabcabc", b"x")
NAMES = [
    *(
        "Drafter",
        "Engine",
        "Generated",
        "InputError",
        "NoDrafter",
        "Plan",
        "PromptLookupDrafter",
        "Rule",
        "SamplingParams",
        "Scenario",
    ),
    *(
        "Text",
        "Verifier",
        "__version__",
        "advise",
        "generate",
        "load_drafter",
        "load_model",
        "load_scenario",
        "load_tokenizer",
    ),
    *("one_pass", "open_text", "plan", "run_edge", "simulate"),
]


def test_the_names_are_these():
    assert multispin.__all__ == NAMES
    assert dir(multispin) == sorted(NAMES)


def test_every_name_is_there_and_explains_itself():
    for name in set(NAMES) - {"__version__"}:
        assert getattr(multispin, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = multispin.nonsense


def test_importing_it_loads_nothing_else():
    look = "import sys; before = set(sys.modules); import multispin; print(*(set(sys.modules) - before))"
    loaded = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout.split()
    outside = {name for name in loaded if name.partition(".")[0] not in sys.stdlib_module_names}
    assert outside == {"multispin", "multispin.lazily"}


def test_a_plan_is_that_of_the_scenario_and_its_policy():
    scenario = multispin.load_scenario("paper-llama")
    best, fixed = multispin.plan(scenario), multispin.plan("paper-llama", "fixed")
    assert (best.policy, fixed.policy) == ("heterogeneous", "fixed")
    assert best.goodput_tokens_per_s > fixed.goodput_tokens_per_s
    assert multispin.plan("paper-llama") == best


def test_a_simulation_is_the_mean_of_its_runs():
    found = multispin.simulate("evening-cell", "fixed", rounds=5, seeds=(4, 7))
    setup = ScenarioFile(Path(EXAMPLE).parent / "scenarios" / "evening-cell.toml").setup()
    runs = [run(SimulatedRun(setup, "fixed", seed, 5, False)) for seed in (4, 7)]
    mean = sum(each.goodput_tokens_per_s for each in runs) / 2
    assert found.estimates()["goodput_tokens_per_s"].mean == pytest.approx(mean)


def test_a_simulation_runs_in_the_mode_that_is_asked_for():
    found = multispin.simulate("a100-7b", mode="plain", rounds=5, seeds=(1,))
    assert (found.mode, found.label) == ("plain", "plain")
    same = multispin.simulate("a100-7b", "fixed", mode="plain", rounds=5, seeds=(1,))
    rate = "goodput_tokens_per_s"  # nobody drafts, so the policy plans nothing
    assert found.estimates()[rate] == same.estimates()[rate]
    assert found.estimates()[rate] != multispin.simulate("a100-7b", rounds=5, seeds=(1,)).estimates()[rate]


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"policy": "p2p"}, "policy is 'p2p'"),
        ({"mode": "best"}, "mode is 'best'"),
        ({"mode": "edge"}, "needs a drafter of the edge's own"),
        ({"seeds": ()}, r"seeds is \(\)"),
        ({"seeds": 5}, "seeds is 5"),
        ({"seeds": [1.5]}, "seed is 1.5"),
        ({"rounds": 0}, "rounds is 0"),
        ({"rounds": math.inf}, "rounds is inf"),
        ({"rounds": "9"}, "rounds is '9'"),
    ],
)
def test_a_simulation_refuses_what_cannot_be(asked, reason):
    with pytest.raises(multispin.InputError, match=reason):
        multispin.simulate("paper-llama", **asked)


def test_a_controller_that_learns_plans_for_no_devices_that_send_in_turns():
    scenario = multispin.load_scenario("paper-llama")
    turns = replace(scenario, cell=replace(scenario.cell, multiple_access="tdma"))
    with pytest.raises(multispin.InputError, match="needs a controller that knows the truth"):
        multispin.simulate(turns, rounds=2, seeds=[1])


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"policy": ["fixed"]}, "policy is "),
        ({"policy": None}, "policy is None"),
        ({"relative_gap": None}, "relative_gap is None"),
        ({"relative_gap": "1e-3"}, "relative_gap is '1e-3'"),
        ({"relative_gap": 1.0}, "relative_gap is 1.0"),
        ({"scenario": "x" * 100_000}, "there is no scenario 'xxx"),
        ({"scenario": ""}, "there is no scenario ''"),
    ],
)
def test_a_plan_refuses_what_cannot_be(asked, reason):
    with pytest.raises(multispin.InputError, match=reason) as refused:
        multispin.plan(**{"scenario": "paper-llama"} | asked)
    assert len(str(refused.value)) < 700


@pytest.mark.long
def test_advice_compares_every_way_to_serve_a_site():
    scenario = multispin.load_scenario("a100-7b")
    small = replace(scenario, devices=scenario.devices[:2])
    found = multispin.advise(small)
    modes = [option.mode for option in found.options]
    assert {"plain", "edge", "rounds", "streams", "mixture"} == set(modes)
    plain, mixture = found.option("plain"), found.option("mixture")
    assert plain.gain_over_plain == 0.0
    assert mixture.goodput_tokens_per_s >= plain.goodput_tokens_per_s


@pytest.mark.parametrize("temperature", [0.0, 1.2])
@pytest.mark.parametrize("kind", ["model", "lookup", "none"])
def test_passes_write_what_the_target_writes_alone(tiny_folder, kind, temperature):
    model, tokenizer = load_model(tiny_folder), load_tokenizer(tiny_folder)
    rounded = round_weights(load_model(tiny_folder), 5)
    engine = multispin.Verifier(load_model(tiny_folder), 3, 64)
    texts = []
    for number, prompt in enumerate(PROMPTS):
        params = multispin.SamplingParams(temperature, seed=number)
        drafter = {
            "model": lambda: ModelDrafter(rounded, 64),
            "lookup": multispin.PromptLookupDrafter,
            "none": multispin.NoDrafter,
        }[kind]()
        stops = (*tokenizer.stop_ids, ord("e"))
        texts.append(multispin.open_text(engine, list(prompt), drafter, params, 20 + number, stops))
    passes = 0
    while not all(text.finished for text in texts):
        multispin.one_pass(engine, texts, draft_length=3)
        passes += 1
        assert all(engine.cached(text.slot) == len(text.tokens) - 1 for text in texts)
    for text in texts:
        alone = decode_alone(model, text.tokens[: text.prompt_tokens], text.params, text.max_tokens, text.stop_ids)
        assert text.generated == alone
        assert text.accepted <= text.drafted
    longest = max(len(text.generated) for text in texts)
    assert passes == longest if kind == "none" else passes <= longest
    if kind == "model":
        assert sum(text.accepted for text in texts) > 0
    assert multispin.one_pass(engine, texts) == []


def test_a_text_that_does_not_fit_is_refused_before_a_slot_is_taken(tiny_folder):
    engine = multispin.Verifier(load_model(tiny_folder), 1, 16)
    for prompt, reason in (([], "prompt is empty"), ([1, 2, 3], "exceed the engine's max_length = 16")):
        with pytest.raises(multispin.InputError, match=reason):
            multispin.open_text(engine, prompt, multispin.NoDrafter(), max_tokens=14)
    assert engine.open() == 0


def test_the_example_prints_the_targets_own_texts(tiny_folder, capsys):
    example = runpy.run_path(str(EXAMPLE))
    example["main"](["--target", tiny_folder, "--draft", "lookup", "--max-tokens", "12"])
    printed = capsys.readouterr().out
    model, tokenizer = load_model(tiny_folder), load_tokenizer(tiny_folder)
    for prompt in example["PROMPTS"]:
        alone = decode_alone(model, tokenizer.encode_chat(prompt), multispin.SamplingParams(), 12, tokenizer.stop_ids)
        assert f"{tokenizer.decode(alone)}\n-- {len(alone)} tokens" in printed
    assert "passes; without drafts it takes" in printed


def paced(folder):
    """An engine whose passes take their time: a text is not over before the first plan is made."""
    return PacedEngine(load_verifier(folder, 2, 128), Verification(0.02, 0.0, 0.0))


@pytest.mark.parametrize("mode", ["auto", "rounds"])
def test_two_devices_write_the_targets_own_texts_at_an_edge(tiny_folder, mode):
    sampling = multispin.SamplingParams(0.9, seed=5)
    events = []

    async def write():
        async with multispin.run_edge(
            tiny_folder, engine=paced(tiny_folder), mode=mode, credential="open", on_event=events.append
        ) as url:
            same = {"target": tiny_folder, "max_tokens": 60, "credential": "open"}
            return await asyncio.gather(
                multispin.generate(url, "abcabcabc", draft="lookup", name="one", **same),
                multispin.generate(url, "the fox", draft="q6", params=sampling, name="two", **same),
            )

    found = asyncio.run(write())
    model, tokenizer = load_model(tiny_folder), load_tokenizer(tiny_folder)
    for written, prompt, params in zip(
        found, ("abcabcabc", "the fox"), (multispin.SamplingParams(), sampling), strict=True
    ):
        ids = decode_alone(model, tokenizer.encode_chat(prompt), params, 60, tokenizer.stop_ids)
        assert list(written.ids) == ids
        assert written.text == tokenizer.decode(ids)
        assert 0 < written.rounds <= 60
        assert written.uplink_bytes > 0
        assert written.accepted <= written.drafted
    if mode == "rounds":
        assert found[1].accepted > 0
    names = {event.name for event in events if type(event).__name__ == "Connected"}
    assert names == {"one", "two"}


def test_a_stop_string_ends_a_generated_text(tiny_folder):
    model, tokenizer = load_model(tiny_folder), load_tokenizer(tiny_folder)
    alone = tokenizer.decode(decode_alone(model, tokenizer.encode_chat("ab"), multispin.SamplingParams(), 12))

    async def write():
        async with multispin.run_edge(tiny_folder, slots=1, max_length=64) as url:
            return await multispin.generate(
                url, "ab", target=tiny_folder, draft="none", max_tokens=12, stops=(alone[3:6],)
            )

    assert asyncio.run(write()).text == alone[: alone.index(alone[3:6])]


def test_an_edge_drafts_itself_for_whoever_cannot(tiny_folder):
    model, tokenizer = load_model(tiny_folder), load_tokenizer(tiny_folder)
    events = []

    async def write():
        edge = {"engine": paced(tiny_folder), "mode": "edge", "edge_draft": "q6"}
        async with multispin.run_edge(tiny_folder, **edge, on_event=events.append) as url:
            return await multispin.generate(url, "abcabcabc", target=tiny_folder, draft="none", max_tokens=60)

    alone = decode_alone(model, tokenizer.encode_chat("abcabcabc"), multispin.SamplingParams(), 60, tokenizer.stop_ids)
    written = asyncio.run(write())
    assert list(written.ids) == alone
    assert written.drafted == 0
    devices = [device for event in events if isinstance(event, Round) for device in event.devices]
    assert sum(device.accepted for device in devices if device.drafter == "edge") > 0


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"mode": "best"}, "mode is 'best'"),
        ({"mode": "edge"}, "needs a drafter of the edge's own"),
        ({"mode": "rounds", "edge_draft": "small"}, "never drafts at the edge"),
    ],
)
def test_an_edge_refuses_what_cannot_be(tiny_folder, asked, reason):
    async def begin():
        async with multispin.run_edge(tiny_folder, slots=1, max_length=32, **asked):
            pass

    with pytest.raises(multispin.InputError, match=reason):
        asyncio.run(begin())


class Unprepared(multispin.NoDrafter):
    """A drafter without room for a text."""

    def prepare(self, committed):
        raise MemoryError


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"prompt": "abc"}, "prompt is 'abc'; it must be token ids"),
        ({"prompt": [1.5]}, "it must be token ids"),
        ({"prompt": [257]}, "an id outside of the target's 0 … 256"),
        ({"prompt": [-1]}, "an id outside of the target's 0 … 256"),
        ({"prompt": []}, "at least one token"),
        ({"max_tokens": -1}, "max_tokens is -1"),
        ({"max_tokens": math.nan}, "max_tokens is nan"),
        ({"max_tokens": 99}, "exceed the engine's max_length"),
        ({"stop_ids": None}, "stop_ids is None"),
        ({"drafter": "lookup"}, "drafter is 'lookup'; it must be a Drafter"),
        ({"drafter": multispin.NoDrafter}, "drafter is <class .*; it must be a Drafter"),
        ({"params": 0.7}, "params is 0.7; it must be SamplingParams"),
    ],
)
def test_a_text_that_is_refused_takes_no_slot(tiny_folder, asked, reason):
    engine = multispin.Verifier(load_model(tiny_folder), 1, 64)
    with pytest.raises(multispin.InputError, match=reason):
        multispin.open_text(engine, **{"prompt": [1, 2], "drafter": multispin.NoDrafter(), "max_tokens": 4} | asked)
    with pytest.raises(MemoryError):
        multispin.open_text(engine, [1, 2], Unprepared(), max_tokens=4)
    text = multispin.open_text(engine, np.array([1, 2]), multispin.NoDrafter(), max_tokens=4)  # the one slot is free
    with pytest.raises(multispin.InputError, match=r"draft_length is 1\.5"):
        multispin.one_pass(engine, [text], draft_length=1.5)
    assert text.tokens == [1, 2]


@pytest.mark.parametrize("engine", [None, 5, "embedded", multispin.Verifier])
def test_what_is_no_engine_is_refused(engine, tiny_folder):
    async def edge():
        async with multispin.run_edge(tiny_folder, engine=engine):
            pytest.fail("it runs")

    calls = [
        lambda: multispin.open_text(engine, [1, 2], multispin.NoDrafter()),
        lambda: multispin.one_pass(engine, []),
        *([lambda: asyncio.run(edge())] if engine is not None else []),
    ]
    for call in calls:
        with pytest.raises(multispin.InputError, match=r"^engine is .*; it must be an Engine, such as a Verifier$"):
            call()


@pytest.mark.parametrize("texts", [5, ["a text"], "a text", None])
def test_what_open_text_did_not_begin_is_refused(texts, tiny_folder):
    engine = multispin.Verifier(load_model(tiny_folder), 1, 64)
    with pytest.raises(multispin.InputError, match=r"^texts is .*; it must be a sequence of texts that"):
        multispin.one_pass(engine, texts)


@pytest.mark.parametrize("model", [None, 5, "embedded", Path("model")])
def test_a_verifier_takes_a_model_and_no_name(model):
    with pytest.raises(multispin.InputError, match=r"^model is .*; it must be a model of transformers"):
        multispin.Verifier(model, 1, 64)


@pytest.mark.parametrize("name", [None, 5, b"x", "x" * 5000, Path("/nowhere/model"), ""])
def test_what_names_no_model_is_refused(name, tiny_folder):
    calls = (
        multispin.load_model,
        multispin.load_tokenizer,
        lambda target: multispin.load_drafter("q8", target or "", 64),
        lambda spec: multispin.load_drafter(spec, tiny_folder, 64),
    )
    for load in calls:
        with pytest.raises(multispin.InputError) as refused:
            load(name)
        assert len(str(refused.value)) < 600


def test_a_model_may_be_named_by_a_path(tiny_folder):
    drafter, _ = multispin.load_drafter(Path(tiny_folder), Path(tiny_folder), 64)
    assert drafter.draft([1, 2], 3, multispin.SamplingParams())


@pytest.mark.parametrize("length", [None, 0, 1.5, "64"])
def test_a_drafter_has_a_whole_number_of_places(length, tiny_folder):
    with pytest.raises(multispin.InputError, match="max_length is"):
        multispin.load_drafter("q8", tiny_folder, length)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        *(({name: "1"}, f"{name} = '1' is no number") for name in ("temperature", "top_p", "min_p")),
        *(({name: 1.5}, f"{name} = 1.5 is no whole number") for name in ("top_k", "seed", "prompt_tokens")),
        ({"logit_bias": {1: 2.0}}, "is no sequence of pairs"),
        ({"logit_bias": None}, "is no sequence of pairs"),
    ],
)
def test_parameters_of_another_type_are_refused(asked, reason):
    with pytest.raises(multispin.InputError, match=reason):
        multispin.SamplingParams(**asked)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        *(({"port": port}, "port is ") for port in (70_000, -1, None, 1.5)),
        ({"host": ""}, "host is empty"),
        ({"host": None}, "host is None"),
        ({"credential": 5}, "credential is 5"),
        ({"credential": ""}, "credential is empty: name a secret, or leave it out"),
    ],
)
def test_an_edge_is_refused_before_it_begins(tiny_folder, asked, reason):
    async def run_it():
        async with multispin.run_edge(tiny_folder, **asked):
            pytest.fail("it runs")

    with pytest.raises(multispin.InputError, match=reason):
        asyncio.run(run_it())


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"url": 5}, "url is 5"),
        ({"prompt": None}, "prompt is None"),
        ({"credential": ""}, "credential is empty: name a secret, or leave it out"),
        ({"prompt": "\udcff"}, "prompt is not UTF-8 text"),
        ({"name": "\udcff"}, "name is not UTF-8 text"),
        ({"name": ""}, "name is empty"),
        ({"name": "x" * 81}, "name has 81 characters, over the limit of 80"),
        ({"max_tokens": "9"}, "max_tokens is '9'"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"min_tokens": None}, "min_tokens is None"),
        ({"stops": "abc"}, "stops is 'abc'; it must be a sequence of texts"),
        ({"stops": [5]}, r"stops\[0\] is 5"),
        ({"rule": "best"}, "rule is 'best'"),
        ({"params": 5}, "params is 5"),
    ],
)
def test_a_device_is_refused_before_it_connects(asked, reason):
    with pytest.raises(multispin.InputError, match=reason):
        asyncio.run(multispin.generate(**{"url": "ws://127.0.0.1:9", "prompt": "x"} | asked))
