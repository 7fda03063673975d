"""What may be accepted, and what does a draft cost on the air? Pure functions over ids and logits."""

from multispin.speculation.codec import bits_per_id, pack_ids, unpack_ids
from multispin.speculation.noise import derive_seed, gumbel_numpy, gumbel_torch, uniform_numpy, uniform_torch
from multispin.speculation.rules import Outcome, accept_matching, verify_draft
from multispin.speculation.sampling import SamplingParams, draw, truncated_logits

__all__ = [
    "Outcome",
    "SamplingParams",
    "accept_matching",
    "bits_per_id",
    "derive_seed",
    "draw",
    "gumbel_numpy",
    "gumbel_torch",
    "pack_ids",
    "truncated_logits",
    "uniform_numpy",
    "uniform_torch",
    "unpack_ids",
    "verify_draft",
]
