"""The paper's baselines, and the two heuristics that practitioners know."""

import numpy as np

from multispin.control.goodput import Floats, Ints
from multispin.control.problem import Problem
from multispin.control.uniform import candidates, common_length
from multispin.errors import InputError

FIXED_LENGTH = 8
"""Draft length of the paper's Fixed BW&L."""


def next_length(previous: int, drafted: int, accepted: int, *, longest: int) -> int:
    """The +2/−1 rule: two more tokens after a draft that was accepted whole, one fewer otherwise.

    It knows neither times nor bandwidth. A pure function, so that a simulator may hold the state. A round without a
    draft changes nothing.

    Args:
        previous: length that the device was told last [tokens].
        drafted: tokens that it drafted.
        accepted: tokens of the draft that the server accepted.
        longest: greatest length to return; the least is 1.

    Source: the "heuristic" assistant-token schedule of transformers' assisted generation
    (`AssistedCandidateGenerator.update_candidate_strategy`).
    """
    if not 0 <= accepted <= drafted:
        raise InputError(f"accepted is {accepted}; it must be in [0, {drafted}], the tokens drafted")
    if drafted == 0:
        return min(max(previous, 1), longest)
    return min(max(previous + 2 if accepted == drafted else previous - 1, 1), longest)


def equal_shares(problem: Problem, lengths: Ints) -> Floats:
    """B/K for every device that drafts, K counting the devices that are able to; in shares of B, shape of `lengths`.

    Args:
        problem: the scenario in numbers.
        lengths: draft lengths [tokens], [..., K]; a device with 0 gets no band.
    """
    return np.where(lengths > 0, 1.0 / _sharers(problem), 0.0)


def fixed(problem: Problem) -> Ints:
    """L = 8 for everybody, within each device's limits; bands are equal. Source: arXiv 2606.04581, Fixed BW&L."""
    return np.asarray(common_length(problem, np.array([FIXED_LENGTH]))[0])


def goodput_argmax(problem: Problem) -> Ints:
    """The common length with the greatest expected goodput under equal bands, clipped per device, [K].

    The rule of vLLM's dynamic speculation: estimate goodput for every proposed length and take the argmax, for the
    batch as a whole. Here it knows each device's own acceptance and the radio, which the original has no notion of.

    Source: SmartSpec / TurboSpec, arXiv 2406.14066, goodput = accepted tokens / batch execution time.
    """
    options = candidates(problem)
    latency = _equal_draft_s(problem, options).max(axis=-1)
    scores = (problem.expected(options) @ problem.weight) / (latency + problem.verification_s(options))
    return np.asarray(options[int(np.argmax(scores))])


def uniform_bandwidth(problem: Problem) -> Ints:
    """Best lengths [K] when every device has the same band: exact.

    With equal bands device k needs θ_k per token, T_k + K a_k where the rate is linear in the band, so the drafting
    time is one of the K·L_max values l·θ_k. Sorted by time, the running sum of gains gives the best goodput for each
    of them. A cost c per verified token enters as a price τ·c per token, τ the goodput itself: Dinkelbach's iteration
    on τ. For a padded batch the same is done below each common cap on the length.

    Source: arXiv 2606.04581, Uni-BW; the exact sweep is ours.
    """
    caps = np.arange(problem.shortest.max(), problem.longest.max() + 1)
    if not (problem.padded and problem.per_token_s > 0):
        caps = caps[-1:]
    best: Ints = common_length(problem, caps[-1:])[0]
    best_score = -np.inf
    for cap in caps:
        lengths = _sweep(problem, np.minimum(problem.longest, cap))
        score = _equal_goodput(problem, lengths)
        if score > best_score:
            best, best_score = lengths, score
    return best


def single_device(problem: Problem) -> tuple[int, int]:
    """The paper's P2P-SPIN: index of the device to serve alone with the whole band, and its draft length.

    `problem` holds the verification time of a batch of one. The device with the greatest goodput is
    served, which flatters this baseline; the paper does not say which one it serves.

    Source: arXiv 2606.04581, P2P-SPIN.
    """
    rows = np.arange(problem.tokens.shape[0])[:, None]
    time = problem.busy_s(rows) + rows * problem.upload_s + problem.fixed_s + problem.per_token_s * (rows + 1)
    if problem.after_s is not None:
        time = time + problem.after_s
    score = problem.weight * problem.tokens / time
    score[(rows < problem.shortest) | (rows > problem.longest)] = -np.inf
    length, device = np.unravel_index(int(np.argmax(score)), score.shape)
    return int(device), int(length)


def centralized(problem: Problem, draft_seconds_per_token: float) -> Ints:
    """The paper's Cen-SPIN: the server drafts for all in one batch, no uplink; best common length, clipped, [K].

    Args:
        problem: the scenario in numbers.
        draft_seconds_per_token: time of one drafting step of the server for the whole batch [s].

    Source: arXiv 2606.04581, Cen-SPIN.
    """
    options = candidates(problem)
    time = options.max(axis=-1) * draft_seconds_per_token + problem.verification_s(options)
    return np.asarray(options[int(np.argmax((problem.expected(options) @ problem.weight) / time))])


def _sharers(problem: Problem) -> int:
    return max(1, int((problem.longest > 0).sum()))


def _equal_draft_s(problem: Problem, lengths: Ints) -> Floats:
    """Time until drafts of these lengths [..., K] are there under equal bands [s]."""
    latency = lengths * problem.token_latency(1.0 / _sharers(problem))
    if problem.round_trip_s is None:
        return np.asarray(latency)
    return np.asarray(latency + np.where(lengths > 0, problem.round_trip_s, 0.0))


def _equal_goodput(problem: Problem, lengths: Ints) -> float:
    time = _equal_draft_s(problem, lengths).max() + float(problem.verification_s(lengths))
    return float(problem.expected(lengths) @ problem.weight) / float(time)


def _sweep(problem: Problem, longest: Ints) -> Ints:
    """Best lengths under equal bands and these caps, the verification time not depending on the longest draft."""
    shortest = problem.shortest
    base = float(_equal_draft_s(problem, shortest).max())
    rows = np.arange(1, problem.tokens.shape[0])[:, None]
    optional = (rows > shortest) & (rows <= longest)
    least = np.arange(problem.tokens.shape[0])[:, None] < shortest
    packed = 0.0 if problem.padded else problem.per_token_s
    own_s = packed * np.arange(len(problem.tokens))[:, None] + (0.0 if problem.after_s is None else problem.after_s)
    time = np.maximum(_equal_draft_s(problem, rows), base)
    lengths = shortest
    rate = _equal_goodput(problem, lengths)
    for _ in range(50):
        # A draft is longer only if it is worth more than every shorter one, verification time and all.
        worth = problem.tokens * problem.weight - rate * own_s
        best_yet = np.maximum.accumulate(np.where(least, -np.inf, worth), axis=0)
        with np.errstate(invalid="ignore"):
            more = np.where(optional, np.diff(best_yet, axis=0), 0.0)
        chosen = more > 0
        when, what = time[chosen], more[chosen]
        order = np.argsort(when, kind="stable")
        ends = when[order]
        scores = np.cumsum(what[order]) - rate * ends
        if len(scores) == 0:
            break
        best = int(np.argmax(scores))
        proposal = np.where(chosen & (time <= ends[best]), rows, shortest).max(axis=0)
        proposed_rate = _equal_goodput(problem, proposal)
        if proposed_rate <= rate * (1.0 + 1e-14):
            break
        lengths, rate = proposal, proposed_rate
    return np.asarray(lengths)
