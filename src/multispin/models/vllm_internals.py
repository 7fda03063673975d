"""Everything that touches the inside of vLLM: a scheduler that takes drafts from outside, and control of sampling.

vLLM verifies drafts that it makes itself. Here they come from devices, so three of its parts are replaced or wrapped,
each at the interface that vLLM offers for it: a proposer that proposes nothing (`speculative_config`), a scheduler that
takes each request's draft from a table and does not run requests without one (`scheduler_cls`), and, in every worker,
access to the logits before they are sampled (`worker_extension_cls`, which puts itself in front of the sampler).

The last one applies rules that vLLM does not have: a rule looks at a request's rows of logits and names the tokens to
emit; the rows are then changed so that these have the largest logits, and vLLM, which decodes greedily, accepts the
draft as far as it agrees. vLLM's caches, counts and outputs are not changed.

vLLM does not promise to keep these interfaces, so only versions on which the tests have run are accepted.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
import vllm
from vllm.engine.arg_utils import EngineArgs
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.core.kv_cache_utils import get_max_concurrency_for_kv_cache_config
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.executor import Executor
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from multispin.errors import InputError
from multispin.speculation import SamplingParams as OwnParams
from multispin.speculation import draw_after

OLDEST, NEWEST = (0, 32), (0, 32)
"""The versions of vLLM (major, minor) on which the tests in tests/vllm have run."""

OWNED = frozenset(
    {
        "async_scheduling",
        "dtype",
        "logits_processors",
        "max_model_len",
        "max_num_seqs",
        "model",
        "scheduler_cls",
        "skip_tokenizer_init",
        "speculative_config",
        "worker_extension_cls",
    }
)
"""Options of vLLM that this project sets itself."""

Judge = Callable[[torch.Tensor], tuple[Sequence[int], Any]]
"""A rule, applied to one request's rows of logits [rows, V]. It returns the tokens that come out, at most one per row
and from the first row on, and what else it found, or None. It is sent to the workers, so it can be pickled."""

_NOT_FINITE = "the model's logits are not finite numbers"


def check_vllm_version(version: str) -> None:
    """InputError unless this version of vLLM is one whose inside is known."""
    parts = version.split(".")
    if not OLDEST <= (int(parts[0]), int(parts[1])) <= NEWEST:
        raise InputError(
            f"vLLM {version} is installed, and only {_dotted(OLDEST)} … {_dotted(NEWEST)} is known to work: install "
            f"one of these (pip install 'vllm=={_dotted(NEWEST)}.*'), or use the embedded engine"
        )


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


class SilentProposer:
    """A proposer for vLLM that proposes nothing: the drafts come from elsewhere."""

    def __init__(self, config: Any) -> None:
        del config

    def load_model(self, *_: Any) -> None:
        """Do nothing: there is no model."""

    def propose(self, sampled: Sequence[Sequence[int]], *_: Any, **__: Any) -> list[list[int]]:
        """An empty draft for each request of the batch."""
        return [[] for _ in sampled]


class DraftScheduler(Scheduler):  # type: ignore[misc]
    """vLLM's scheduler, told from outside which requests run in the next step and with which drafts.

    Attributes:
        drafts: drafts by request; a running request that is not in it keeps its cache and waits.

    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.running: list[Any]
        self.drafts: Mapping[str, Sequence[int]] = {}
        # Else a request of which one token is left to read would be padded with a draft of nonsense.
        self.num_spec_tokens = 0

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """One step's work."""
        held = [request for request in self.running if request.request_id not in self.drafts]
        self.running = [request for request in self.running if request.request_id in self.drafts]
        for request in self.running:
            request.spec_token_ids = list(self.drafts[request.request_id])
        output = super().schedule(*args, **kwargs)
        self.running = [*self.running, *held]
        return output


class WorkerRules:
    """Calls to each worker process of vLLM beside vLLM's own."""

    model_runner: Any

    def multispin_install(self) -> None:
        """Stand in front of the sampler, where there is one (only the last stage of a pipeline samples)."""
        if hasattr(self.model_runner, "rejection_sampler"):
            self.model_runner.rejection_sampler = _RuledSampler(self.model_runner)

    def multispin_rules(self, rules: Mapping[str, Judge]) -> None:
        """The rules of the requests from the next step on; vLLM's own greedy one for those that are not named."""
        if hasattr(self.model_runner, "rejection_sampler"):
            self.model_runner.rejection_sampler.rules = rules
            self.model_runner.rejection_sampler.findings = {}

    def multispin_findings(self) -> Mapping[str, Any]:
        """Results of the rules since the rules were last set, by request."""
        sampler = getattr(self.model_runner, "rejection_sampler", None)
        return sampler.findings if sampler is not None else {}


class _RuledSampler:
    """vLLM's sampler behind logits that say what the requests' rules emit."""

    def __init__(self, runner: Any) -> None:
        self.rules: Mapping[str, Judge] = {}
        self.findings: dict[str, Any] = {}
        self._runner = runner
        self._sampler = runner.rejection_sampler

    def __call__(self, metadata: Any, draft_probs: Any, logits: torch.Tensor, sampling: Any) -> Any:
        if not bool(logits.amax(-1).isfinite().all()):  # any NaN makes the largest of its row NaN
            raise InputError(
                f"{_NOT_FINITE}: its weights are damaged, or {logits.dtype} is too narrow for it (try float32)"
            )
        rows: list[int] = []
        tokens: list[int] = []
        first = 0
        for request, drafted in zip(self._runner.input_batch.req_ids, metadata.num_draft_tokens, strict=True):
            rule = self.rules.get(request)
            if rule is not None:
                emitted, found = rule(logits[first : first + drafted + 1])
                if found is not None:
                    self.findings[request] = found
                rows += range(first, first + len(emitted))
                tokens += emitted
            first += drafted + 1
        if rows:
            logits[rows] = -torch.inf
            logits[rows, tokens] = 0.0
        return self._sampler(metadata, draft_probs, logits, sampling)


class DrawnProcessor(AdapterLogitsProcessor):  # type: ignore[misc]
    """vLLM's own way to have a say in plain decoding: requests that name sampling parameters emit their own draw."""

    def is_argmax_invariant(self) -> bool:
        """No: the largest logit is what it decides."""
        return False

    def new_req_logits_processor(self, params: Any) -> Any:
        """The processor of one request; None for one that names no sampling parameters of ours."""
        own: OwnParams | None = (params.extra_args or {}).get("multispin_params")
        if own is None:
            return None

        def emit(prompt: Sequence[int], output: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
            token = draw_after(logits[None], prompt, output, own)
            logits.fill_(-torch.inf)
            logits[token] = 0.0
            return logits

        return emit


def decode_plainly(
    model: str,
    dtype: str,
    max_length: int,
    options: Mapping[str, Any],
    requests: Sequence[tuple[Sequence[int], OwnParams | None]],
    max_tokens: int,
    stop_ids: Collection[int],
) -> list[list[int]]:
    """Plain decoding by vLLM, one request at a time: its own scheduler and sampler, no speculation.

    Args:
        model: folder or Hub id.
        dtype: number type of weights and cache.
        max_length: tokens that a request may have.
        options: further arguments of vLLM's engine by name.
        requests: prompt and sampling parameters of each; None for vLLM's own greedy decoding.
        max_tokens: most tokens of each text; one that meets a stop id ends with it.
        stop_ids: ids that end a text.

    """
    check_vllm_version(vllm.__version__)
    config = EngineArgs(
        model=model,
        dtype=dtype,
        max_num_seqs=1,
        max_model_len=max_length,
        skip_tokenizer_init=True,
        logits_processors=[f"{__name__}:{DrawnProcessor.__qualname__}"],
        **options,
    ).create_engine_config()
    llm = LLMEngine(config, Executor.get_class(config), log_stats=False, multiprocess_mode=False)
    texts: list[list[int]] = []
    for prompt, own in requests:
        params = SamplingParams(
            temperature=0.0,
            max_tokens=max_tokens,
            ignore_eos=True,
            stop_token_ids=list(stop_ids),
            detokenize=False,
            extra_args=None if own is None else {"multispin_params": own},
        )
        llm.add_request(str(len(texts)), {"prompt_token_ids": list(prompt)}, params)
        outputs = []
        while llm.has_unfinished_requests():
            outputs += llm.step()
        texts.append(list(outputs[-1].outputs[0].token_ids))
    llm.engine_core.shutdown()
    return texts


class Core:
    """One vLLM engine in this process (its workers may be others): requests in, steps, tokens out.

    Args:
        llm: vLLM's engine, as `start` makes it.

    """

    def __init__(self, llm: LLMEngine) -> None:
        self._llm = llm
        self._scheduler: DraftScheduler = llm.engine_core.engine_core.scheduler
        self._params = SamplingParams(
            temperature=0.0, max_tokens=None, ignore_eos=True, detokenize=False, output_kind=RequestOutputKind.DELTA
        )
        self._once = self._params.clone()
        self._once.max_tokens = 1
        self._names: dict[str, str] = {}  # ours: vLLM's own
        self._next = 0

    @classmethod
    def start(
        cls, model: str, dtype: str, slots: int, max_length: int, max_draft: int, options: Mapping[str, Any]
    ) -> "Core":
        """Start vLLM's engine with its workers, and put this project's rules in front of their samplers.

        Args:
            model: folder or Hub id.
            dtype: number type of weights and cache.
            slots: number of requests at once.
            max_length: tokens that a request may have.
            max_draft: length of the longest draft [tokens].
            options: further arguments of vLLM's engine by name; those in `OWNED` are refused.
        """
        check_vllm_version(vllm.__version__)
        config = EngineArgs(
            model=model,
            dtype=dtype,
            max_num_seqs=slots,
            max_model_len=max_length,
            skip_tokenizer_init=True,
            async_scheduling=False,
            scheduler_cls=DraftScheduler,
            worker_extension_cls=f"{__name__}.{WorkerRules.__qualname__}",
            speculative_config={
                "method": "custom_class",
                "model": f"{__name__}.{SilentProposer.__qualname__}",
                "num_speculative_tokens": max_draft,
            },
            **options,
        ).create_engine_config()
        # In this process, whatever the environment says: the scheduler must be at hand.
        llm = LLMEngine(config, Executor.get_class(config), log_stats=False, multiprocess_mode=False)
        llm.collective_rpc("multispin_install")
        return cls(llm)

    @property
    def concurrency(self) -> float:
        """Requests of full length for which there is room in the cache."""
        return float(get_max_concurrency_for_kv_cache_config(self._llm.vllm_config, self._scheduler.kv_cache_config))

    @property
    def cache_bytes(self) -> int:
        """Memory of the key-value cache in each worker, fixed at start."""
        return sum(int(tensor.size) for tensor in self._scheduler.kv_cache_config.kv_cache_tensors)

    @property
    def vocabulary_size(self) -> int:
        """Number of logits per row."""
        return int(self._llm.model_config.get_vocab_size())

    def add(self, tokens: Sequence[int], once: bool = False) -> str:
        """A new request, read from the next step on; with `once` it ends with its first token."""
        name, self._next = str(self._next), self._next + 1
        params = self._once if once else self._params
        self._names[name] = self._llm.add_request(name, {"prompt_token_ids": list(tokens)}, params.clone())
        return name

    def drop(self, names: Sequence[str]) -> None:
        """End requests; what they have cached stays for others that begin alike, until the room is needed."""
        own = [self._names.pop(name) for name in names if name in self._names]
        self._llm.abort_request(own, internal=True)

    def run(self, drafts: Mapping[str, Sequence[int]], rules: Mapping[str, Judge]) -> dict[str, list[int]]:
        """Step until each of the named requests has emitted once: its accepted draft and one more token.

        InputError if a logit is not a finite number; the engine cannot be used after that.
        """
        if not drafts:
            return {}
        # OpenMP keeps the number of threads for each calling thread, and torch tells a new one only when asked for it.
        # vLLM's attention on a CPU counts the threads before torch has told, and fails where these numbers differ.
        torch.get_num_threads()
        self._llm.collective_rpc("multispin_rules", args=({self._names[name]: rule for name, rule in rules.items()},))
        waiting = dict(drafts)
        emitted: dict[str, list[int]] = {}
        while waiting:
            self._scheduler.drafts = {self._names[name]: draft for name, draft in waiting.items()}
            for output in self._step():
                tokens = output.outputs[0].token_ids
                if tokens:
                    emitted[output.request_id] = list(tokens)
                    del waiting[output.request_id]
                if output.finished:
                    self._names.pop(output.request_id, None)
        return emitted

    def _step(self) -> Sequence[Any]:
        try:
            return list(self._llm.step())
        except RuntimeError as error:  # of what is raised in a worker's own process, the words come back
            if _NOT_FINITE in (words := str(error)):
                raise InputError(words[words.index(_NOT_FINITE) :].partition("', please")[0]) from error
            raise

    def findings(self) -> dict[str, Any]:
        """Results of the rules of the last run beside the tokens that came out, by request."""
        found: Mapping[str, Any] = next(iter(filter(None, self._llm.collective_rpc("multispin_findings"))), {})
        return {name: found[own] for name, own in self._names.items() if own in found}

    def alive(self, name: str) -> bool:
        """Whether vLLM still holds this request: it ends one that has grown to the full length."""
        return name in self._names

    def shutdown(self) -> None:
        """Give back the workers and their memory."""
        self._llm.engine_core.shutdown()


def on_cpu() -> bool:
    """Whether this build of vLLM computes on the CPU."""
    return bool(current_platform.is_cpu())


def option_names() -> frozenset[str]:
    """The names of all options that may be passed through to vLLM."""
    return frozenset(EngineArgs.__dataclass_fields__) - OWNED
