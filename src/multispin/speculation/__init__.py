"""Acceptance rules, and the bits that a draft costs on the air. Pure functions over ids and logits.

Importing this room loads no torch: its modules name `torch.Tensor` in annotations only (under `TYPE_CHECKING`), and the
few functions that make tensors import torch when they are called. A device that drafts nothing, or by prompt lookup,
never loads it. Rooms above that handle ids, messages and plans stay as light.
"""

from typing import TYPE_CHECKING

from multispin.lazily import lazily

if TYPE_CHECKING:
    from multispin.speculation.codec import bits_per_id, pack_ids, unpack_ids
    from multispin.speculation.distributions import (
        DistributionFormat,
        FlooredDistribution,
        TruncatedDistribution,
        certain_distribution,
        draft_token,
        target_distribution,
        truncate,
    )
    from multispin.speculation.drafter import BatchDrafter, DraftAsk, Drafter, NoDrafter, PromptLookupDrafter
    from multispin.speculation.engine import Engine, Failure, Feed, SlotsTakenError, SlotTable
    from multispin.speculation.evidence import (
        ID_RULES,
        Evidence,
        Finding,
        Judged,
        judge,
        judge_together,
        pack_draft,
        rule_for,
        unpack_draft,
    )
    from multispin.speculation.grammar import AheadMatcher, Follower, Grammars, Matcher, masked, masks_along
    from multispin.speculation.gumbel_max import gumbel_argmax, gumbel_argmax_rows
    from multispin.speculation.noise import derive_seed, gumbel_numpy, gumbel_torch, uniform_numpy, uniform_torch
    from multispin.speculation.payload import (
        bits_per_token,
        downlink_bits_per_rejection,
        framing_bits,
        pack_distributions,
        pack_offer,
        pack_scalars,
        unpack_distributions,
        unpack_offer,
        unpack_scalars,
        uplink_bits_per_rejection,
    )
    from multispin.speculation.penalties import draw_after, penalised, shaped_after
    from multispin.speculation.rejection import (
        Offer,
        Rejection,
        possible_after,
        resolve_down,
        resolve_up,
        verify_distributions,
        verify_floored,
        verify_scalars,
    )
    from multispin.speculation.rule import Rule
    from multispin.speculation.rules import Outcome, accept_matching, verify_draft
    from multispin.speculation.sampling import SamplingParams, draw, largest, shaped, truncated_logits
    from multispin.speculation.scoring import MAX_LOGPROBS, Score, scores
    from multispin.speculation.stopping import check_stop_strings
    from multispin.speculation.text import TextStream, text_of

__all__ = [
    "ID_RULES",
    "MAX_LOGPROBS",
    "AheadMatcher",
    "BatchDrafter",
    "DistributionFormat",
    "DraftAsk",
    "Drafter",
    "Engine",
    "Evidence",
    "Failure",
    "Feed",
    "Finding",
    "FlooredDistribution",
    "Follower",
    "Grammars",
    "Judged",
    "Matcher",
    "NoDrafter",
    "Offer",
    "Outcome",
    "PromptLookupDrafter",
    "Rejection",
    "Rule",
    "SamplingParams",
    "Score",
    "SlotTable",
    "SlotsTakenError",
    "TextStream",
    "TruncatedDistribution",
    "accept_matching",
    "bits_per_id",
    "bits_per_token",
    "certain_distribution",
    "check_stop_strings",
    "derive_seed",
    "downlink_bits_per_rejection",
    "draft_token",
    "draw",
    "draw_after",
    "framing_bits",
    "gumbel_argmax",
    "gumbel_argmax_rows",
    "gumbel_numpy",
    "gumbel_torch",
    "judge",
    "judge_together",
    "largest",
    "masked",
    "masks_along",
    "pack_distributions",
    "pack_draft",
    "pack_ids",
    "pack_offer",
    "pack_scalars",
    "penalised",
    "possible_after",
    "resolve_down",
    "resolve_up",
    "rule_for",
    "scores",
    "shaped",
    "shaped_after",
    "target_distribution",
    "text_of",
    "truncate",
    "truncated_logits",
    "uniform_numpy",
    "uniform_torch",
    "unpack_distributions",
    "unpack_draft",
    "unpack_ids",
    "unpack_offer",
    "unpack_scalars",
    "uplink_bits_per_rejection",
    "verify_distributions",
    "verify_draft",
    "verify_floored",
    "verify_scalars",
]

__getattr__ = lazily(
    __name__,
    {
        "codec": ("bits_per_id", "pack_ids", "unpack_ids"),
        "distributions": (
            "DistributionFormat",
            "FlooredDistribution",
            "TruncatedDistribution",
            "certain_distribution",
            "draft_token",
            "target_distribution",
            "truncate",
        ),
        "drafter": ("BatchDrafter", "DraftAsk", "Drafter", "NoDrafter", "PromptLookupDrafter"),
        "engine": ("Engine", "Failure", "Feed", "SlotsTakenError", "SlotTable"),
        "evidence": (
            "ID_RULES",
            "Evidence",
            "Finding",
            "Judged",
            "judge",
            "judge_together",
            "pack_draft",
            "rule_for",
            "unpack_draft",
        ),
        "grammar": ("AheadMatcher", "Follower", "Grammars", "Matcher", "masked", "masks_along"),
        "gumbel_max": ("gumbel_argmax", "gumbel_argmax_rows"),
        "noise": ("derive_seed", "gumbel_numpy", "gumbel_torch", "uniform_numpy", "uniform_torch"),
        "payload": (
            "bits_per_token",
            "downlink_bits_per_rejection",
            "framing_bits",
            "pack_distributions",
            "pack_offer",
            "pack_scalars",
            "unpack_distributions",
            "unpack_offer",
            "unpack_scalars",
            "uplink_bits_per_rejection",
        ),
        "penalties": ("draw_after", "penalised", "shaped_after"),
        "rejection": (
            "Offer",
            "Rejection",
            "possible_after",
            "resolve_down",
            "resolve_up",
            "verify_distributions",
            "verify_floored",
            "verify_scalars",
        ),
        "rule": ("Rule",),
        "rules": ("Outcome", "accept_matching", "verify_draft"),
        "sampling": ("SamplingParams", "draw", "largest", "shaped", "truncated_logits"),
        "scoring": ("MAX_LOGPROBS", "Score", "scores"),
        "stopping": ("check_stop_strings",),
        "text": ("TextStream", "text_of"),
    },
)
