"""vLLM as the engine: the same five calls as the embedded verifier, on any number of GPUs and hosts.

It knows slots, texts and outcomes, and nothing of vLLM's inside (`vllm_internals`), rounds and devices.

A slot is one vLLM request, which holds the slot's text and waits while no draft comes for it. A draft is verified by
one step of vLLM, and the request goes on with the tokens that this step emits. A slot whose text differs from its
request's (a new text, a rollback, a lost request) gets a new request; vLLM's prefix cache serves what was read
before. Chunks of a prompt are read by requests that end at once, so that they ride along with the others' drafts, and
leave their keys and values in the prefix cache.

vLLM begins a request by reading a text and emitting a token, without a draft. So a new request that has a draft reads
all but the newest token, and is forced to emit that one; its draft is then verified like all others. This costs one
more step of the engine. A new request without a draft needs no such step: the token that it emits is wanted.
"""

import contextlib
import os
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig

from multispin.errors import InputError
from multispin.models.loading import DTYPES, resolve
from multispin.models.references import USUAL_MAX_LENGTH
from multispin.models.vllm_options import check_installed
from multispin.speculation import Evidence, Finding, Outcome, Rejection, Rule, SamplingParams, judge
from multispin.speculation.engine import Failure, Feed, SlotTable, check_slots

if TYPE_CHECKING:
    from multispin.models.vllm_internals import Core

MAX_PROMPT_TOKENS_PER_STEP = 2048
"""Most prompt tokens that vLLM reads in one step. The rest is read in the next step, for which everybody waits."""
CPU_BLOCK_TOKENS = 32
"""Tokens per block of vLLM's cache on a CPU, instead of its default of 128: less is read again when a session moves."""
NOT_BUILT = frozenset({"presence_penalty", "frequency_penalty", "repetition_penalty", "grammar", "logprobs"})
"""`SamplingParams.features` that are refused, since a rule in vLLM's workers sees neither the text nor a grammar."""


@dataclass(frozen=True)
class _Decree:
    """A rule that emits a given token."""

    token: int

    def __call__(self, rows: torch.Tensor) -> tuple[list[int], None]:
        return [self.token], None


@dataclass(frozen=True, eq=False)
class _Judge:
    """The rule of one draft, applied where the logits are.

    Attributes:
        base: tokens committed when the draft began.
        drafted: drafted ids that vLLM verifies: the whole draft.
        evidence: evidence that came with the draft.
        params: the request's sampling parameters.

    """

    base: int
    drafted: Sequence[int]
    evidence: Evidence | None
    params: SamplingParams

    def __call__(self, rows: torch.Tensor) -> tuple[list[int], Finding | None]:
        rows = rows[: len(self.drafted) + 1]
        finding = judge(self.drafted, self.evidence, rows, self.base, self.params)
        if isinstance(finding, Outcome):
            return [*self.drafted[: finding.accepted], finding.next_token], None
        if isinstance(finding, Rejection):
            finding = replace(finding, distribution=finding.distribution.cpu())  # it leaves the worker
        # The next token is not known yet. Whatever vLLM goes on with will be replaced by it.
        return [*self.drafted[: finding.accepted], 0], finding


@dataclass
class _Slot:
    """A session: what counts as cached, and vLLM's request that goes on from some text."""

    text: list[int] = field(default_factory=list)
    request: str | None = None
    held: list[int] = field(default_factory=list)  # the request's text, the newest token included


class VllmEngine(SlotTable):
    """An `Engine` that runs in vLLM. `load` starts vLLM and makes one.

    Args:
        core: vLLM, running, with room for `slots` texts.
        slots: sessions that fit at once.
        max_length: prompt and generated tokens per session.
        max_draft: the longest draft that will come [tokens].
        longest_chunk: most prompt tokens that a pass takes beside full drafts of all sessions.

    """

    joins = True
    lacks = NOT_BUILT

    def __init__(self, core: "Core", slots: int, max_length: int, max_draft: int, longest_chunk: int) -> None:
        super().__init__(slots)
        self.longest_chunk = longest_chunk
        self._core, self._max_length, self._max_draft = core, max_length, max_draft
        self._vocabulary_size = core.vocabulary_size
        self._open: dict[int, _Slot] = {}
        # Requests to end before the next step: `close` comes while another thread verifies, and vLLM knows one thread.
        self._left: deque[str] = deque()

    @classmethod
    def load(
        cls,
        reference: str,
        slots: int,
        max_length: int | None = None,
        dtype: str = "float32",
        max_draft: int = 16,
        options: Mapping[str, Any] | None = None,
    ) -> "VllmEngine":
        """Start vLLM with a model; InputError if it cannot serve it, or its cache is too small for all slots.

        Args:
            reference: Hub id, folder, GGUF file or 'embedded'.
            slots: sessions that fit at once.
            max_length: prompt and generated tokens per session; by default 1024, or less if the model knows less.
            dtype: number type of weights and cache; default "float32".
            max_draft: the longest draft that will come [tokens]; default 16.
            options: further arguments of vLLM's engine, e.g. {"tensor_parallel_size": 8}; default None.
        """
        check_slots(slots)
        source, config = _known(reference, dtype)
        # vLLM ends a request that reaches its limit, so it is told of one token more than will ever come.
        known = int(getattr(config, "max_position_embeddings", USUAL_MAX_LENGTH + 1)) - 1
        length = min(USUAL_MAX_LENGTH, known) if max_length is None else max_length
        if not 1 <= length <= known:
            raise InputError(
                f"max_length = {max_length} is outside 1 … {known}: this model knows {known + 1} positions, and vLLM "
                "needs one of them"
            )
        # A step must have room for everybody's draft and for prompts, or vLLM would cut some of them.
        drafts = slots * (max_draft + 1)
        step = max(MAX_PROMPT_TOKENS_PER_STEP, 2 * drafts)
        chosen = _options(options, {"max_num_batched_tokens": step})
        _size_cache(config, dtype, slots, length + max_draft + 2, chosen)
        from multispin.models.vllm_internals import Core

        with _told_in_a_sentence(reference):
            core = Core.start(source, dtype, slots, length + 1, max_draft, chosen)
        if (fits := core.concurrency) < slots:
            core.shutdown()
            raise InputError(
                f"vLLM's cache has room for {fits:.1f} texts of {length} tokens and not "
                f"for {slots}: write fewer or shorter texts at once, or give it more memory (vLLM's option "
                "gpu_memory_utilization=0.95, or kv_cache_memory_bytes on a CPU)"
            )
        return cls(core, slots, length, max_draft, max(1, int(chosen["max_num_batched_tokens"]) - drafts))

    @property
    def max_length(self) -> int:
        """Prompt and generated tokens that a session may have."""
        return self._max_length

    @property
    def vocabulary_size(self) -> int:
        """Number of logits per row."""
        return self._vocabulary_size

    @property
    def rules(self) -> frozenset[Rule]:
        """All of them."""
        return frozenset(Rule)

    @property
    def cache_bytes(self) -> int:
        """Memory of vLLM's key-value cache in each of its workers, fixed at start."""
        return self._core.cache_bytes

    def open(self) -> int:
        """Take a slot; raises SlotsTakenError when none is free."""
        slot = super().open()
        self._open[slot] = _Slot()
        return slot

    def close(self, slot: int) -> None:
        """Give a slot back; may be called while another thread verifies other slots."""
        super().close(slot)
        self._leave(self._open.pop(slot))

    def commit(self, slot: int, length: int) -> None:
        """Keep the first `length` cached positions of `slot` and forget the rest."""
        super().commit(slot, length)
        state = self._open[slot]
        state.text = state.text[:length]

    def verify(self, feeds: Sequence[Feed]) -> list[Finding | Failure | None]:
        """Run all feeds: prompts and drafts in one step, and before it what newcomers with a draft must read.

        InputError if a logit is not a finite number.
        """
        self._check(feeds)
        left = []
        while self._left:
            left.append(self._left.popleft())
        for feed in feeds:
            state = self._open[feed.slot]
            if state.request is not None and (feed.params is None or state.held != _told(state, feed)):
                left.append(state.request)
                state.request = None
        self._core.drop(left)
        self._read_ahead([feed for feed in feeds if _verified(feed)])
        named: dict[str, Feed] = {}
        drafts: dict[str, Sequence[int]] = {}
        rules: dict[str, _Judge] = {}
        for feed in feeds:
            state, draft = self._open[feed.slot], _verified(feed)
            if feed.params is None:
                name = self._core.add([*state.text[: feed.start], *feed.tokens], once=True)
            else:
                if state.request is None:  # a newcomer without a draft
                    state.held = _told(state, feed)
                    state.request = self._core.add(state.held)
                name = state.request
                if not _is_argmax(feed.params):
                    rules[name] = _Judge(feed.newest + 1, draft, _evidence(feed, len(draft)), feed.params)
            named[name], drafts[name] = feed, draft
        emitted = self._core.run(drafts, rules)
        asks = any(feed.evidence is not None and feed.evidence.rule is not Rule.REJECTION for feed in feeds)
        found = self._core.findings() if asks else {}
        return [self._settle(feed, emitted[name], found.get(name)) for name, feed in named.items()]

    def shutdown(self) -> None:
        """Give back vLLM's workers and their memory; the engine cannot be used any more."""
        self._core.shutdown()

    def _read_ahead(self, feeds: Sequence[Feed]) -> None:
        """Give each of these slots a request that has read its text, if it has none: a draft can follow only then."""
        decrees: dict[str, _Decree] = {}
        for feed in feeds:
            state = self._open[feed.slot]
            if state.request is None:
                state.held = _told(state, feed)
                state.request = self._core.add(state.held[:-1])
                decrees[state.request] = _Decree(state.held[-1])
        self._core.run(dict.fromkeys(decrees, ()), decrees)

    def _settle(self, feed: Feed, emitted: Sequence[int], found: Finding | None) -> Finding | None:
        state = self._open[feed.slot]
        state.text = [*state.text[: feed.start], *feed.tokens]
        self.take([feed])
        if feed.params is None:
            return None
        state.held = [*state.held, *emitted]
        if state.request is not None and not self._core.alive(state.request):
            state.request = None
        return found or Outcome(len(emitted) - 1, emitted[-1])

    def _leave(self, state: _Slot) -> None:
        if state.request is not None:
            self._left.append(state.request)
            state.request = None

    def _check(self, feeds: Sequence[Feed]) -> None:
        self.check(feeds, self._max_length, self._vocabulary_size)
        for feed in feeds:
            if feed.params is not None and len(feed.draft) > self._max_draft:
                raise ValueError(f"a draft of {len(feed.draft)} is longer than {self._max_draft}, the limit")


def decode_by_vllm(
    reference: str,
    requests: Sequence[tuple[Sequence[int], SamplingParams]],
    max_tokens: int,
    stop_ids: Collection[int] = (),
    dtype: str = "float32",
    options: Mapping[str, Any] | None = None,
) -> list[list[int]]:
    """Plain decoding by vLLM, one request at a time: the counterpart of `decode_alone` of the embedded verifier.

    It shares nothing with `VllmEngine` but vLLM's model and how a token is drawn: no drafts, vLLM's own scheduler and
    sampler, and its documented way for requests to draw their tokens themselves.

    Args:
        reference: Hub id, folder, GGUF file or 'embedded'.
        requests: prompt and sampling parameters of each.
        max_tokens: where a text ends that has not met a stop id; a stop id is included.
        stop_ids: ids that end the text; by default none.
        dtype: number type of weights and cache; default "float32".
        options: further arguments of vLLM's engine, as for the engine that is compared; default None.
    """
    source, config = _known(reference, dtype)
    longest = max(len(prompt) for prompt, _ in requests) + max_tokens + 1
    chosen = _options(options, {})
    _size_cache(config, dtype, 1, longest, chosen)
    from multispin.models.vllm_internals import decode_plainly

    with _told_in_a_sentence(reference):
        named = [(prompt, None if _is_argmax(params) else params) for prompt, params in requests]
        return decode_plainly(source, dtype, longest, chosen, named, max_tokens, stop_ids)


def _told(state: _Slot, feed: Feed) -> list[int]:
    """The slot's text up to the newest token, as this feed tells it."""
    return [*state.text[: feed.start], *feed.tokens[: feed.context + 1]]


def _verified(feed: Feed) -> Sequence[int]:
    """The part of the feed's draft that vLLM verifies.

    That is all of it, but behind a text of one token: vLLM has nothing to read before that one, and answers without.
    """
    return feed.draft if feed.params is not None and feed.newest else ()


def _is_argmax(params: SamplingParams) -> bool:
    """Whether the draw is the plain argmax of the logits, which vLLM takes by itself."""
    return params.greedy and not params.logit_bias and not params.withheld


def _evidence(feed: Feed, drafted: int) -> Evidence | None:
    """The feed's evidence for a draft of this many tokens: for all of its tokens, or for none."""
    if feed.evidence is None or drafted:
        return feed.evidence
    return replace(feed.evidence, distributions=(), weights=())


def vllm_version() -> str:
    """Version of the installed vLLM, for records."""
    _import_vllm()
    import vllm

    return str(vllm.__version__)


def _import_vllm() -> None:
    """Import vLLM, after the environment says how it should behave in a process of ours; InputError if it fails."""
    check_installed()
    quiet = {
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # other processes of this machine need cores too
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the scheduler must be at hand, and one worker needs no process
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # standard output belongs to --json
        "VLLM_NO_USAGE_STATS": "1",
    }
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    try:
        import multispin.models.vllm_internals  # noqa: F401
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"this vLLM cannot be used ({_sentence(error)}): see docs/vllm.md for versions and installation"
        ) from error


def _known(reference: str, dtype: str) -> tuple[str, Any]:
    """The model's folder or Hub id, and its configuration; vLLM is imported."""
    if dtype not in DTYPES:
        raise InputError(f"dtype = {dtype!r} is not one of {', '.join(DTYPES)}")
    _import_vllm()
    source = resolve(reference)
    with _told_in_a_sentence(reference):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    return source, config.get_text_config()


@contextlib.contextmanager
def _told_in_a_sentence(reference: str) -> Iterator[None]:
    """Turn the errors of vLLM and transformers about a bad model or option into an InputError."""
    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
        raise InputError(f"vLLM cannot serve {reference}: {_sentence(error)}") from error


def _options(chosen: Mapping[str, Any] | None, usual: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a person chose, checked by name, over what is usual here."""
    from multispin.models.vllm_internals import option_names

    for name in chosen or {}:
        if name not in option_names():
            raise InputError(f"there is no option {name!r} of vLLM's engine, or multispin sets it itself")
    return {"use_tqdm_on_load": False, **usual, **(chosen or {})}  # no bar among a command's own lines


def _size_cache(config: Any, dtype: str, slots: int, length: int, options: dict[str, Any]) -> None:
    """On a CPU, make the cache as large as these slots need: vLLM's default is a share of all memory."""
    from multispin.models.vllm_internals import on_cpu

    if on_cpu():
        if options.get("tensor_parallel_size", 1) * options.get("pipeline_parallel_size", 1) == 1:
            # A worker of its own would wait in a busy loop, on the cores that the drafters need.
            options.setdefault("distributed_executor_backend", "uni")
        options.setdefault("enforce_eager", True)  # its compiled form takes minutes to make
        block = options.setdefault("block_size", CPU_BLOCK_TOKENS)
        tokens = (slots + 1) * -(-length // block) * block
        options.setdefault("kv_cache_memory_bytes", tokens * _bytes_per_token(config, dtype))


def _bytes_per_token(config: Any, dtype: str) -> int:
    """Bytes of the key-value cache per token, with a tenth to spare. Only the default of a CPU uses it."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(1.1 * 2 * config.num_hidden_layers * heads * width * DTYPES[dtype].itemsize) + 1


def _sentence(error: BaseException) -> str:
    """The line of a long message that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Errors of its configuration begin with a count and a name.
    return (next((line for line in lines if "rror" in line and len(line) > 40), lines[0]) if lines else repr(error))[
        :300
    ]
