"""Training: it learns, and a run that was killed equals one that was not."""

import json
import time

import pytest
import torch
from tests.cli.started import Started

from multispin.cli.main import run
from multispin.distillation import DistilOrder, distil
from multispin.distillation.corpus import Shard, Writer, write_corpus
from multispin.distillation.training import Batches, Recipe, Trainer
from multispin.errors import InputError
from multispin.models.distilled import carve, load_student
from multispin.models.draft_source import load_drafter
from multispin.models.loading import load_model
from multispin.models.tokenizer import load_tokenizer
from multispin.speculation import SamplingParams


@pytest.fixture(scope="module")
def shards(tiny_folder, tmp_path_factory):
    pen = Writer(load_model(tiny_folder), load_tokenizer(tiny_folder), 16)
    folder = tmp_path_factory.mktemp("corpus")
    return [path for path, _ in write_corpus(pen, folder, 0, 6000)]


def trainer(tiny_folder, shards, **options):
    model = load_model(tiny_folder)
    ids = torch.arange(0, 257, 2)
    student = carve(model, (1,), ids)
    recipe = Recipe(**{"steps": 40, "batch": 16, "positions": 128, "learning_rate": 5e-3, **options})
    return Trainer(student, model.get_output_embeddings().weight, ids, recipe, shards, "cpu")


@torch.inference_mode()
def acceptance_rate(pupil, tiny_folder, shard):
    """Mean of Σ min(p, q) over the answers of a shard and the student's vocabulary."""
    rows = load_model(tiny_folder).get_output_embeddings().weight[::2]
    met, count = 0.0, 0
    for row in range(len(shard.ends)):
        begin, end = int(shard.begins[row]), int(shard.ends[row])
        ours = pupil.student.model(input_ids=shard.tokens[row : row + 1, : end - 1]).last_hidden_state[0, begin - 1 :]
        p, q = (torch.softmax(s.float() @ rows.T, -1) for s in (shard.states[row, begin - 1 : end - 1], ours))
        met, count = met + float(torch.minimum(p, q).sum()), count + len(p)
    return met / count


def test_a_student_learns_and_only_its_own_weights_move(tiny_folder, shards, tmp_path):
    pupil = trainer(tiny_folder, shards[:-1])
    unseen = Shard.load(shards[-1])
    fixed = {n: p.clone() for n, p in pupil.student.named_parameters() if not p.requires_grad}
    before = acceptance_rate(pupil, tiny_folder, unseen)
    losses = []
    pupil.run(tmp_path / "c.pt", lambda step, loss, step_s: losses.append(loss))
    after = acceptance_rate(pupil, tiny_folder, unseen)
    assert len(losses) == 40
    assert after > before + 0.1
    assert fixed
    assert all(torch.equal(fixed[n], p) for n, p in pupil.student.named_parameters() if n in fixed)


def test_the_last_steps_reduce_the_total_variation():
    """What is shown as loss falls there at once, as it is another one; progress says so."""
    recipe = Recipe(steps=10, variation_share=0.3)
    assert [recipe.by_variation(step) for step in range(10)] == [False] * 7 + [True] * 3


@pytest.mark.long
def test_a_resumed_run_equals_an_uninterrupted_one(tiny_folder, shards, tmp_path):
    whole = trainer(tiny_folder, shards, steps=20)
    whole.run(tmp_path / "whole.pt", lambda *_: None)

    class KilledError(Exception):
        pass

    def kill(step, loss, step_s):
        if step == 15:  # before it is saved
            raise KilledError

    first = trainer(tiny_folder, shards, steps=20)
    with pytest.raises(KilledError):
        first.run(tmp_path / "part.pt", kill, period_s=0.0)
    second, steps = trainer(tiny_folder, shards, steps=20), []
    second.run(tmp_path / "part.pt", lambda step, *_: steps.append(step))
    assert steps == list(range(15, 21))
    for one, other in zip(whole.student.parameters(), second.student.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_checkpoint_of_another_recipe_is_refused(tiny_folder, shards, tmp_path):
    trainer(tiny_folder, shards, steps=2).run(tmp_path / "c.pt", lambda *_: None)
    with pytest.raises(InputError, match="another recipe"):
        trainer(tiny_folder, shards, steps=3).run(tmp_path / "c.pt", lambda *_: None)


def test_files_that_are_damaged_or_cannot_be_written_are_one_sentence(tiny_folder, shards, tmp_path):
    shard = Shard.load(shards[0])

    def taught(checkpoint):
        trainer(tiny_folder, shards, steps=1).run(checkpoint, lambda *_: None)

    for save, name in ((taught, "c.pt"), (shard.save, "shard.safetensors")):
        with pytest.raises(InputError, match="cannot be written"):
            save(tmp_path / "nowhere" / name)
    for load, name in ((taught, "c.pt"), (Shard.load, "shard.safetensors")):
        for content in (b"", b"half of", shards[0].read_bytes()[:100]):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(InputError, match=f"{name} is damaged: remove it"):
                load(tmp_path / name)


def test_every_sequence_is_met_once_in_an_epoch(shards):
    batches = Batches(shards, 64, seed=1, pool_shards=2)
    sequences = sum(len(Shard.load(path).ends) for path in shards)
    met = [
        (tuple(shard.tokens[row].tolist()), int(shard.begins[row]))
        for step in range(sequences // 64)
        for shard, row, _ in batches.batch(step)
    ]
    assert len(met) == sequences
    every = [
        (tuple(shard.tokens[row].tolist()), int(shard.begins[row]))
        for shard in map(Shard.load, shards)
        for row in range(len(shard.ends))
    ]
    assert sorted(met) == sorted(every)


@pytest.mark.long
def test_a_qwen_target_gets_a_drafter_that_drafts_for_it(qwen_folder, tmp_path):
    """From target to folder to drafting; it is accepted more often than one that was hardly taught."""

    def made(steps):
        recipe = Recipe(steps=steps, batch=16, positions=128, learning_rate=5e-3)
        return DistilOrder(
            *(qwen_folder, 1, tmp_path / str(steps), recipe),
            corpus=tmp_path / "corpus", tokens=6000, answer_tokens=16, vocabulary=200, evaluation_tokens=8,
        )  # fmt: skip

    hardly, taught = (
        distil(made(steps), {}, lambda _: None).results["all"]["rejection"]["acceptance_rate"] for steps in (1, 60)
    )
    assert taught > hardly + 0.1
    ids = load_student(tmp_path / "60", load_model(qwen_folder)).lm_head.ids
    drafter, tokenizer = load_drafter(str(tmp_path / "60"), qwen_folder, 64)
    drafted = drafter.draft(tokenizer.encode_chat("Why is the sky blue?")[-20:], 8, SamplingParams())
    assert len(drafted) == 8
    assert set(drafted) <= set(ids.tolist())


@pytest.mark.processes
def test_the_command_is_killed_and_resumed(tiny_folder, tmp_path, capsys):
    """The real command on a tiny target: killed as a process, started again, and equal to a run without a break."""

    def arguments(out):
        return [
            *("distill", "--target", tiny_folder, "--out", str(tmp_path / out)),
            *("--layers", "1", "--steps", "60", "--tokens", "3000", "--answer-tokens", "12", "--vocabulary", "128"),
            *("--batch", "8", "--positions", "64", "--storage", "bfloat16", "--threads", "1", "--json"),
        ]

    def made(out):
        assert run(arguments(out)) == 0
        return json.loads(capsys.readouterr().out)

    with Started(*arguments("killed")) as process:
        deadline = time.monotonic() + 200
        while len(list((tmp_path / "killed" / "corpus").glob("shard-*.safetensors"))) < 2:
            assert process.returncode is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    card = made("killed")
    assert card["layers"] == [1]
    assert card["results"]["all"]["rejection"]["acceptance_rate"] > 0
    whole = made("whole")
    weights = [(tmp_path / out / "weights.safetensors").read_bytes() for out in ("killed", "whole")]
    assert weights[0] == weights[1]
    assert whole["results"] == card["results"]
    assert sorted(path.name for path in (tmp_path / "whole").iterdir()) == ["drafter.json", "weights.safetensors"]


@pytest.mark.parametrize("numbers", [torch.float32, torch.bfloat16])
def test_training_above_frozen_layers_is_training_the_whole(shards, tiny_folder, tmp_path, numbers):
    """The states below are computed once; the model above them gives what the whole student gives."""
    model = load_model(tiny_folder)
    ids = torch.arange(257)
    student = carve(model, (0, 1), ids, frozen=1)
    below = {name: value.clone() for name, value in student.model.layers[0].named_parameters()}
    recipe = Recipe(steps=3, batch=4, positions=32)
    *whole, pupil = (
        Trainer(student, model.get_output_embeddings().weight, ids, recipe, shards, "cpu", frozen, dtype=dtype)
        for frozen, dtype in ((0, torch.float32), (0, numbers), (1, numbers))
    )
    with torch.no_grad():
        (exact, _), (ours, aim), (through, same_aim) = (
            each.states(each.batches.batch(0), 10_000, torch.Generator().manual_seed(0)) for each in (*whole, pupil)
        )
    assert len(through) == 4 * 16  # all answers
    assert torch.equal(ours, exact) == (numbers == torch.float32)
    assert torch.equal(aim, same_aim)
    assert torch.allclose(through.float(), ours.float(), atol=0.05)
    pupil.run(tmp_path / "c.pt", lambda *_: None)
    assert all(torch.equal(below[name], value) for name, value in student.model.layers[0].named_parameters())
    assert not any(p.requires_grad for p in student.model.layers[0].parameters())
