"""Drafting, verifying and committing by hand: texts in the slots of an engine, pass by pass, without a server."""

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from multispin.checks import shown, whole
from multispin.errors import InputError
from multispin.speculation.drafter import Drafter
from multispin.speculation.engine import Engine, Feed
from multispin.speculation.rules import Outcome
from multispin.speculation.sampling import SamplingParams


@dataclass(eq=False)
class Text:
    """A text that is being written in one slot of an engine. `open_text` makes one.

    Attributes:
        slot: the engine's slot that holds it.
        tokens: committed ids, the prompt first.
        prompt_tokens: how many of them are the prompt.
        drafter: drafter of its next tokens.
        params: how the target's next token is drawn.
        max_tokens: longest text after the prompt.
        stop_ids: ids that end the text; the first of them is its last token.
        drafted: tokens drafted so far.
        accepted: how many of them the target accepted.

    """

    slot: int
    tokens: list[int]
    prompt_tokens: int
    drafter: Drafter
    params: SamplingParams
    max_tokens: int
    stop_ids: frozenset[int]
    drafted: int = field(default=0, init=False)
    accepted: int = field(default=0, init=False)

    @property
    def generated(self) -> list[int]:
        """The ids after the prompt."""
        return self.tokens[self.prompt_tokens :]

    @property
    def finished(self) -> bool:
        """Whether the text ends here: at a stop id, or at its greatest length."""
        return len(self.generated) >= self.max_tokens or bool(self.generated and self.tokens[-1] in self.stop_ids)


def open_text(
    engine: Engine,
    prompt: Sequence[int],
    drafter: Drafter,
    params: SamplingParams | None = None,
    max_tokens: int = 256,
    stop_ids: Iterable[int] = (),
) -> Text:
    """Take a slot of the engine and read a prompt.

    Args:
        engine: verification engine that runs the target model.
        prompt: ids of the prompt, at least one.
        drafter: drafter of the next tokens.
        params: how the target's next token is drawn; default: greedy.
        max_tokens: longest text after the prompt; default 256.
        stop_ids: ids that end the text; default: none.

    Raises:
        InputError: the prompt, its ids or its length cannot be used, or all slots are taken.

    """
    require_engine(engine)
    _check_methods("drafter", drafter, "a Drafter, which load_drafter loads", ("prepare", "draft"))
    if params is not None and not isinstance(params, SamplingParams):
        raise InputError(f"params is {shown(params)}; it must be SamplingParams")
    prompt, stop_ids = _ids("prompt", prompt), _ids("stop_ids", stop_ids)
    whole("max_tokens", max_tokens, 0, 2**31 - 1)
    if not prompt:
        raise InputError("the prompt is empty: it needs at least one token")
    if min(prompt) < 0 or max(prompt) >= engine.vocabulary_size:
        raise InputError(f"the prompt has an id outside of the target's 0 … {engine.vocabulary_size - 1}")
    if len(prompt) + max_tokens > engine.max_length:
        raise InputError(
            f"{len(prompt)} prompt tokens and max_tokens = {max_tokens} exceed the engine's max_length = "
            f"{engine.max_length}"
        )
    params = replace(params or SamplingParams(), prompt_tokens=len(prompt))
    text = Text(engine.open(), prompt, len(prompt), drafter, params, max_tokens, frozenset(stop_ids))
    try:
        if len(prompt) > 1:
            engine.verify([Feed(text.slot, 0, text.tokens[:-1], None)])
        drafter.prepare(text.tokens)
    except BaseException:
        engine.close(text.slot)
        raise
    return text


def _ids(name: str, given: Iterable[int]) -> list[int]:
    """Token ids as a list; they may stand in an array or a tensor."""
    try:
        return [operator.index(each) for each in given]
    except TypeError:
        raise InputError(f"{name} is {shown(given)}; it must be token ids, which a tokenizer makes of text") from None


def one_pass(engine: Engine, texts: Sequence[Text], draft_length: int = 4) -> list[Outcome]:
    """Draft, verify and commit once: every unfinished text grows by one token or more.

    Each drafter proposes up to `draft_length` tokens. The target reads all drafts in one forward pass. In each draft
    the tokens before the first wrong one are accepted, and one token of the target follows them. The result is the
    target's own text, whatever was drafted: its argmax at temperature 0, a function of the seed above.

    Args:
        engine: verification engine that runs the target model.
        texts: texts that `open_text` began with this engine; finished ones are left as they are.
        draft_length: most tokens to draft for each, 0 for none; default 4.

    Returns:
        For each unfinished text, how many drafted tokens were accepted and which token followed.

    """
    require_engine(engine)
    if not isinstance(texts, Sequence) or not all(isinstance(each, Text) for each in texts):
        raise InputError(f"texts is {shown(texts)}; it must be a sequence of texts that open_text began")
    whole("draft_length", draft_length, 0, 2**31 - 1)
    running = [text for text in texts if not text.finished]
    drafts = []
    for text in running:
        room = text.max_tokens - len(text.generated) - 1  # the target's own token takes a place too
        drafts.append(text.drafter.draft(text.tokens, min(draft_length, room), text.params))
    feeds = [
        Feed(text.slot, len(text.tokens) - 1, [text.tokens[-1], *draft], text.params, None, text.tokens)
        for text, draft in zip(running, drafts, strict=True)
    ]
    outcomes = []
    for text, draft, outcome in zip(running, drafts, engine.verify(feeds) if feeds else [], strict=True):
        assert isinstance(outcome, Outcome)  # a draft of ids alone is decided at once
        new = [*draft[: outcome.accepted], outcome.next_token]
        end = next((place for place, token in enumerate(new, start=1) if token in text.stop_ids), len(new))
        text.tokens += new[:end]
        text.drafted += len(draft)
        text.accepted += outcome.accepted
        engine.commit(text.slot, len(text.tokens) - 1)
        outcomes.append(outcome)
    return outcomes


def require_engine(engine: object) -> None:
    """InputError unless it is an engine."""
    _check_methods("engine", engine, "an Engine, such as a Verifier", ("open", "verify", "commit", "close"))


def _check_methods(name: str, given: object, wanted: str, methods: Sequence[str]) -> None:
    """InputError unless this object, and not only its class, has these methods."""
    if isinstance(given, type) or not all(callable(getattr(given, method, None)) for method in methods):
        raise InputError(f"{name} is {shown(given)}; it must be {wanted}")
