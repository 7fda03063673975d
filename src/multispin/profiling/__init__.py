"""Measures what the controller needs to know of a machine and its models: drafting speed, latency and acceptance."""

from multispin.profiling.acceptance import Following, Rate, follow, hazards, rate_of
from multispin.profiling.latency import BatchTiming, LatencyFit, drafting_times, fit_latency, measure_latency

__all__ = [
    "BatchTiming",
    "Following",
    "LatencyFit",
    "Rate",
    "drafting_times",
    "fit_latency",
    "follow",
    "hazards",
    "measure_latency",
    "rate_of",
]
