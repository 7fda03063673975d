"""What may be accepted, and what does a draft cost on the air? Pure functions over ids and logits."""

from multispin.speculation.codec import bits_per_id, pack_ids, unpack_ids
from multispin.speculation.evidence import ID_RULES, Evidence, Finding, judge
from multispin.speculation.gumbel_max import gumbel_argmax
from multispin.speculation.laws import FlooredLaw, LawFormat, TruncatedLaw, draft_token, target_law, truncate
from multispin.speculation.noise import derive_seed, gumbel_numpy, gumbel_torch, uniform_numpy, uniform_torch
from multispin.speculation.payload import (
    Rule,
    bits_per_token,
    downlink_bits_per_rejection,
    framing_bits,
    pack_laws,
    pack_offer,
    pack_scalars,
    unpack_laws,
    unpack_offer,
    unpack_scalars,
    uplink_bits_per_rejection,
)
from multispin.speculation.rejection import (
    Offer,
    Rejection,
    possible_after,
    resolve_down,
    resolve_up,
    verify_floored,
    verify_laws,
    verify_scalars,
)
from multispin.speculation.rules import Outcome, accept_matching, verify_draft
from multispin.speculation.sampling import SamplingParams, draw, truncated_logits

__all__ = [
    "ID_RULES",
    "Evidence",
    "Finding",
    "FlooredLaw",
    "LawFormat",
    "Offer",
    "Outcome",
    "Rejection",
    "Rule",
    "SamplingParams",
    "TruncatedLaw",
    "accept_matching",
    "bits_per_id",
    "bits_per_token",
    "derive_seed",
    "downlink_bits_per_rejection",
    "draft_token",
    "draw",
    "framing_bits",
    "gumbel_argmax",
    "gumbel_numpy",
    "gumbel_torch",
    "judge",
    "pack_ids",
    "pack_laws",
    "pack_offer",
    "pack_scalars",
    "possible_after",
    "resolve_down",
    "resolve_up",
    "target_law",
    "truncate",
    "truncated_logits",
    "uniform_numpy",
    "uniform_torch",
    "unpack_ids",
    "unpack_laws",
    "unpack_offer",
    "unpack_scalars",
    "uplink_bits_per_rejection",
    "verify_draft",
    "verify_floored",
    "verify_laws",
    "verify_scalars",
]
