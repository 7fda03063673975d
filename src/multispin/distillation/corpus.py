"""The text that a drafter learns from: what the target itself writes, with the target's final hidden states.

A corpus is a folder of shards. Each shard depends only on the target, the seed and its own number. So an interrupted
run continues where it stopped, and a longer corpus begins with the shards of a shorter one. The hidden states cost
nothing extra, because the target computes them to draw the next token. They hold its whole distribution: the output
embeddings turn them into logits.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from multispin.distillation.prompts import training_prompts
from multispin.errors import InputError
from multispin.models.cached import CachedModel
from multispin.models.distilled import fingerprint
from multispin.models.packable import PackedModel
from multispin.models.references import writing
from multispin.models.tokenizer import Tokenizer
from multispin.outside import json_value, read_file
from multispin.speculation import SamplingParams
from multispin.speculation.engine import Feed

TEMPERATURES = (0.0, 0.7, 1.0, 1.0)
"""Temperatures of the sequences of a shard, in turn: greedy text, and text at the temperatures that people use."""
SEQUENCES_PER_SHARD = 128
"""Sequences that a CPU writes at once."""
GPU_SEQUENCES_PER_SHARD = 512
"""Sequences that a GPU writes at once: its passes take hardly longer for them."""
_PREFILL_TOKENS = 512  # prompt tokens read in one forward pass, …
_PREFILL = 8  # … by a CPU at most this many prompts
MAX_PROMPT_TOKENS = 128
INVENTED_PROMPT_TOKENS = 64
CORPUS_FILE = "corpus.json"
"""File beside the shards that says what they depend on."""
_ASK = SamplingParams()


@dataclass(frozen=True)
class Shard:
    """Some sequences of the target.

    Attributes:
        tokens: token ids, shape [N, T], int64, padded with zeros.
        states: the target's final hidden state at each token but the last, shape [N, T, H], bfloat16.
        begins: position at which each answer begins, shape [N].
        ends: number of tokens of each sequence, shape [N].

    """

    tokens: torch.Tensor
    states: torch.Tensor
    begins: torch.Tensor
    ends: torch.Tensor

    @property
    def generated(self) -> int:
        """Tokens of all answers."""
        return int((self.ends - self.begins).sum())

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        part = path.with_suffix(".part")
        with writing(path):
            save_file({name: getattr(self, name).contiguous() for name in ("tokens", "states", "begins", "ends")}, part)
            part.rename(path)

    @classmethod
    def load(cls, path: Path) -> "Shard":
        """Read one that `save` wrote; InputError if it is damaged."""
        try:
            return cls(**load_file(path))
        except (SafetensorError, TypeError) as error:
            raise InputError(f"{path} is damaged: remove it, and it is written again") from error


class Writer:
    """Lets the target write, many sequences in one batch.

    Args:
        model: the target, in float32 or bfloat16; a model of transformers' or a `PackedModel`.
        tokenizer: tokenizer of the target, with or without a chat template.
        answer_tokens: length of the longest answer [tokens].
        prompts: user messages to answer; default None: those of the bundled templates.
        prompt_tokens: longest prompt [tokens]; longer ones are cut; default `MAX_PROMPT_TOKENS`.
        tell: called with every forward pass of a batch, with the tokens of answers that the batch has so far, and a
            sentence about what the target does beside writing answers, or "". Default: nobody is told.

    """

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        answer_tokens: int,
        prompts: Sequence[str] | None = None,
        prompt_tokens: int = MAX_PROMPT_TOKENS,
        tell: Callable[[int, str], None] = lambda *_: None,
    ) -> None:
        self._tell = tell
        self._prompts = prompts
        self._prompt_tokens = prompt_tokens
        self._length = prompt_tokens + answer_tokens
        packed = model if isinstance(model, PackedModel) else PackedModel.of(model)
        self._device = packed.device
        self.sequences = SEQUENCES_PER_SHARD if self._device.type == "cpu" else GPU_SEQUENCES_PER_SHARD
        self._target = CachedModel(packed, self.sequences, self._length)
        self._tokenizer = tokenizer
        self._answer_tokens = answer_tokens
        self.identity = {
            "target": fingerprint(packed.model),
            "answer_tokens": answer_tokens,
            "prompt_tokens": prompt_tokens,
            "prompts": None if prompts is None else digest(prompts),
            **({} if self.sequences == SEQUENCES_PER_SHARD else {"sequences": self.sequences}),
        }

    def shard(self, seed: int, number: int) -> Shard:
        """Write shard `number`: half of the prompts drawn from the set, half invented by the target (if it chats).

        A chat model invents a user's message when it is given the beginning of one (Xu et al., "Magpie",
        arXiv 2406.08464).
        """
        generator = np.random.default_rng([seed, number])
        noise = self.noise(int(generator.integers(2**62)))
        count = self.sequences
        if self._prompts is None:
            messages = training_prompts(count, generator)
        else:
            messages = [self._prompts[k] for k in generator.integers(len(self._prompts), size=count)]
        prompts = [self._tokenizer.encode_chat(text) for text in messages]
        invented = self._invent(count // 2, noise)
        prompts = [*invented, *prompts[len(invented) :]]
        order = generator.permutation(count)
        prompts = [prompts[k] for k in order]
        temperatures = [TEMPERATURES[k % len(TEMPERATURES)] for k in range(count)]
        return self.write(prompts, temperatures, noise)

    def noise(self, seed: int) -> torch.Generator:
        """Random numbers for `write`, where it draws."""
        return torch.Generator(self._device).manual_seed(seed)

    def write(self, prompts: Sequence[list[int]], temperatures: Sequence[float], noise: torch.Generator) -> Shard:
        """Answer up to `sequences` prompts, each at its own temperature."""
        prompts = [prompt[: self._prompt_tokens] for prompt in prompts]
        texts, states = self._write(
            prompts, temperatures, self._answer_tokens, noise, lambda drawn, _: self._tell(drawn, "")
        )
        return _shard(texts, [len(prompt) for prompt in prompts], states)

    def read(self, texts: Sequence[list[int]]) -> Shard:
        """Read up to `sequences` given texts; all but their first token counts as answer."""
        texts = [text[: self._length] for text in texts]
        slots = [self._target.open() for _ in texts]
        states = self._no_states(len(texts))
        self._prefill(slots, texts, list(range(len(texts))), states)
        for slot in slots:
            self._target.close(slot)
        return _shard(texts, [1] * len(texts), states)

    def _invent(self, count: int, noise: torch.Generator) -> list[list[int]]:
        frame = self._tokenizer.chat_frame()
        if frame is None:
            return []
        before, after = frame
        temperatures = [1.0] * count
        texts, _ = self._write(
            [list(before)] * count,
            temperatures,
            INVENTED_PROMPT_TOKENS,
            noise,
            lambda _, longest: self._tell(
                0, f"the target invents {count} prompts: {longest} of {INVENTED_PROMPT_TOKENS} tokens"
            ),
        )
        stops = set(self._tokenizer.stop_ids)
        messages = [[token for token in text[len(before) :] if token not in stops] for text in texts]
        return [[*before, *message, *after] for message in messages if message]

    def _write(
        self,
        prompts: Sequence[list[int]],
        temperatures: Sequence[float],
        limit: int,
        noise: torch.Generator,
        tell: Callable[[int, int], None],
    ) -> tuple[list[list[int]], torch.Tensor]:
        """Continue all prompts until a stop id or `limit` tokens; returns texts and final hidden states.

        `tell` hears how many tokens were drawn for all of them, and for the longest one.
        """
        stops = set(self._tokenizer.stop_ids)
        texts = [list(prompt) for prompt in prompts]
        slots = [self._target.open() for _ in texts]
        states = self._no_states(len(texts))
        running = list(range(len(texts)))
        room = [min(limit, self._length - len(prompt)) for prompt in prompts]
        self._prefill(slots, texts, running, states)
        drawn_tokens = longest = 0
        while running:
            tell(drawn_tokens, longest)
            drawn_tokens, longest = drawn_tokens + len(running), longest + 1
            logits = self._feed(
                [Feed(slots[k], len(texts[k]) - 1, texts[k][-1:], _ASK) for k in running], running, states
            )
            drawn = _sample(logits, torch.tensor([temperatures[k] for k in running]), noise)
            for k, token in zip(running, drawn, strict=True):
                texts[k].append(token)
            running = [k for k in running if texts[k][-1] not in stops and len(texts[k]) - len(prompts[k]) < room[k]]
        for slot in slots:
            self._target.close(slot)
        return texts, states

    def _no_states(self, count: int) -> torch.Tensor:
        shape = (count, self._length, self._target.hidden_size)
        return torch.zeros(shape, dtype=torch.bfloat16, device=self._device)

    def _prefill(self, slots: list[int], texts: Sequence[list[int]], rows: list[int], states: torch.Tensor) -> None:
        """Feed all but the last token of every text."""
        some: list[int] = []
        for index, k in enumerate(rows):
            count = sum(len(texts[other]) - 1 for other in some) + len(texts[k]) - 1
            if some and (count > _PREFILL_TOKENS or (self._device.type == "cpu" and len(some) == _PREFILL)):
                self._tell(0, f"the target has read {index - len(some)} of {len(rows)} texts")
                self._feed([Feed(slots[k], 0, texts[k][:-1], None) for k in some], some, states)
                some = []
            if len(texts[k]) > 1:
                some.append(k)
        if some:
            self._feed([Feed(slots[k], 0, texts[k][:-1], None) for k in some], some, states)

    def _feed(self, feeds: list[Feed], rows: list[int], states: torch.Tensor) -> torch.Tensor:
        logits, hidden = self._target.forward_states(feeds)
        lines = [row for row, feed in zip(rows, feeds, strict=True) for _ in feed.tokens]
        places = [feed.start + index for feed in feeds for index in range(len(feed.tokens))]
        at = torch.tensor([lines, places]).to(states.device)
        states[at[0], at[1]] = hidden.to(torch.bfloat16)
        return logits


def _shard(texts: Sequence[list[int]], begins: Sequence[int], states: torch.Tensor) -> Shard:
    ends = torch.tensor([len(text) for text in texts])
    longest = int(ends.max())
    tokens = torch.zeros(len(texts), longest, dtype=torch.int64)
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text)] = torch.tensor(text)
    return Shard(tokens, states[:, :longest].cpu(), torch.tensor(begins), ends)


def _sample(logits: torch.Tensor, temperatures: torch.Tensor, noise: torch.Generator) -> list[int]:
    """One token per row of [N, V], at its own temperature, by inversion of the cumulative distribution."""
    if logits.device.type != "cpu":
        return _sample_there(logits, temperatures, noise)
    rows = logits.float()
    greedy = rows.argmax(-1)
    cumulative = torch.softmax(rows / temperatures.clamp(min=1e-3)[:, None], -1).cumsum(-1)
    drawn = torch.searchsorted(cumulative, cumulative[:, -1:] * torch.rand(len(rows), 1, generator=noise))[:, 0]
    return [int(t) for t in torch.where(temperatures > 0, drawn.clamp(max=rows.shape[-1] - 1), greedy)]


def _sample_there(logits: torch.Tensor, temperatures: torch.Tensor, noise: torch.Generator) -> list[int]:
    """`_sample` on a GPU: the largest of p / E with E exponential has probability p."""
    heat = temperatures.to(logits.device)[:, None]
    chance = torch.softmax(logits.float() / heat.clamp(min=1e-3), -1)
    drawn = (chance / torch.empty_like(chance).exponential_(generator=noise)).argmax(-1)
    found: list[int] = torch.where(heat[:, 0] > 0, drawn, logits.argmax(-1)).tolist()
    return found


def write_corpus(
    writer: Writer, folder: Path, seed: int, tokens: int, texts: Sequence[list[int]] = ()
) -> Iterator[tuple[Path, int]]:
    """Make shards until they hold `tokens` tokens, given texts first; finished shards are found and kept.

    Args:
        writer: lets the target write.
        folder: folder of the shards; it is made if it does not exist.
        seed: seed of all shards.
        tokens: tokens of answers and given texts together.
        texts: given texts as token ids, beside what the target writes; default none.

    Yields:
        The file of each shard, and the number of tokens so far.

    Raises:
        InputError: the folder holds another target's text, or text made with another seed or from other prompts.

    """
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, {**writer.identity, "seed": seed, "texts": digest(texts) if texts else None})
    total = 0
    given = [list(texts[at : at + writer.sequences]) for at in range(0, len(texts), writer.sequences)]
    for number in itertools.count():
        if total >= tokens and number > 0:
            return
        path = folder / f"shard-{number:05d}.safetensors"
        if path.exists():
            shard = Shard.load(path)
        else:
            shard = writer.read(given[number]) if number < len(given) else writer.shard(seed, number)
            shard.save(path)
        total += shard.generated
        yield path, total


def _claim(folder: Path, identity: dict[str, Any]) -> None:
    """Write down what the shards of a new folder depend on; refuse a folder that depends on something else."""
    path = folder / CORPUS_FILE
    if not path.exists() and not any(folder.glob("shard-*")):
        part = path.with_suffix(".part")
        part.write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")
        part.replace(path)
        return
    try:
        found = json_value(read_file(path), str(path))
    except InputError:
        found = None
    if not isinstance(found, dict):
        raise InputError(f"{path} does not say what the corpus was made from: choose another folder")
    other = [key for key in identity if found.get(key) != identity[key]]
    if other:
        what = " and ".join(f"{'other' if key.endswith('s') else 'another'} {key.replace('_', ' ')}" for key in other)
        raise InputError(f"the corpus in {folder} was made with {what}: choose another folder")


def digest(parts: Sequence[Any]) -> str:
    """Name of some values, by which they are recognised: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()[:16]
