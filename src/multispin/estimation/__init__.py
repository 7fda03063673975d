"""Estimators of what a run shows: acceptance, draft speed, link, verification."""

from multispin.estimation.acceptance import AcceptanceEstimator
from multispin.estimation.link import LinkEstimator
from multispin.estimation.round_trip import RoundTripEstimator
from multispin.estimation.speed import DraftSpeedEstimator
from multispin.estimation.verification import VerificationEstimator

__all__ = ["AcceptanceEstimator", "DraftSpeedEstimator", "LinkEstimator", "RoundTripEstimator", "VerificationEstimator"]
