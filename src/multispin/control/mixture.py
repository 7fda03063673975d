"""Some devices draft, and the edge serves the other sessions meanwhile: a search for the best such mixture.

A period is a device phase of φ seconds (grants, drafts and uploads of the devices that draft, round trips included) and
one joint pass of everybody. In the phase the edge makes m passes of P seconds for the *others*, whom no device drafts
for, each with the edge's own drafts if it has any. The edge drafts for the joint pass in the phase, too:

  period = max(φ, m P + S) + T_ver(everybody),   S the drafting of the edge for one pass, P = S + T_ver(the others).

A device that drafts gives E[N_k] tokens a period, one of the others m + 1 times those of a pass. At a price of time the
sessions separate, but share the band, which gets a price of its own, and the passes in the phase, whose time is priced
by what they make. Each session takes what is worth most to it at these prices. The search tries prices and
phases, scores what follows by the formula above, and then improves it session by session. It proves nothing: tests
compare it with brute force.
"""

from dataclasses import dataclass

import numpy as np

from multispin.control.edge import LEAST_OF_PLAIN, EdgeTables
from multispin.control.exact.relaxation import price_by_worth
from multispin.control.goodput import Floats, Ints, Mask
from multispin.control.latency import fed_tokens, verification_s
from multispin.control.problem import Problem
from multispin.control.rate import least_upload_s, needed_share
from multispin.control.scenario import Scenario

_PHASES = 10
"""Device phases that are tried for each guess of what the edge makes meanwhile."""
_FEW = 12
"""Up to this many sessions, every start is improved; beyond, only the best one: the others end up hardly better."""
_GUESSES = 2
"""Starts whose prices are the first guesses, the best ones."""
_PRICE_STEPS = 5
"""Steps of the search for the band's price: the choices are improved one by one afterwards, so a rough price does."""
_ROUNDS = 2
"""How often the guess is taken from what was found, and the phases are tried again."""
_SWEEPS = 12
"""How often all sessions are gone through in search of an improvement, at most."""
_ENTRIES = 150_000
"""Most entries [candidates, sessions] that the sweeps may work through together: what bounds a search's time."""
_AT_ONCE = 30_000
"""Entries of one sweep, about; of many sessions it tries some at a time."""
_CHANGES = (-2, -1, 1, 2)
_STARVES = -1e12
"""Value of a mixture in which some session has less than its least goodput."""


@dataclass(frozen=True, eq=False)
class Mixture:
    """A choice for everybody, scored.

    Args:
        lengths: draft lengths of the devices, [K] tokens; 0 where no device drafts.
        edge_lengths: draft lengths of the edge in each pass of the others, [K] tokens.
        tokens: expected tokens of a period, [K].
        phase_s: length of the device phase, φ [s].
        period_s: duration of a period [s].
        extra_passes: number of extra passes, m.
        value: the objective to maximise.
    """

    lengths: Ints
    edge_lengths: Ints
    tokens: Floats
    phase_s: float
    period_s: float
    extra_passes: int
    value: float


@dataclass(frozen=True, eq=False)
class _ScoredCandidates:
    """Candidates scored, [N]."""

    value: Floats
    phase_s: Floats
    period_s: Floats
    extra: Floats


class MixtureSearch:
    """One search. The scenario's devices are in their first modes, and send by frequency division.

    Args:
        scenario: the site as it is known.
        problem: the same in numbers.
        fair: maximise Σ w_k log goodput_k rather than Σ w_k goodput_k.
        equal_bands: each device that drafts gets an equal share of the band; default False.
        edge: tables of the edge's drafts, if they have been made already; default None.
    """

    def __init__(
        self,
        scenario: Scenario,
        problem: Problem,
        *,
        fair: bool,
        equal_bands: bool = False,
        edge: EdgeTables | None = None,
    ) -> None:
        self.problem = problem
        self.fair = fair
        self.equal_bands = equal_bands
        self.edge = edge or EdgeTables(scenario)
        self.weight = problem.weight
        self.least = problem.minimum_goodput
        verifier, drafter = scenario.verifier, scenario.edge_drafter
        self._fixed_s, self._per_device_s = verifier.fixed_s, verifier.per_device_s
        self._per_token_s, self._padded = verifier.per_token_s, verifier.padded
        self._step_s, self._step_device_s = (0.0, 0.0) if drafter is None else (drafter.fixed_s, drafter.per_device_s)
        # Worth of a device's draft, and of a pass with a draft of the edge, by length.
        own, of_edge = (np.log(t) if fair else t for t in (problem.tokens, self.edge.tokens))
        self._own_worth, self._edge_worth = own * self.weight, of_edge * self.weight
        self._own_worth[0] = 0.0
        self._devices = np.arange(problem.size)
        length = np.arange(problem.reach)[:, None]
        self._options = (length == 0) | (length >= np.maximum(problem.shortest, 1)) & (length <= problem.longest)
        plain_s = verification_s(*(self._fixed_s, self._per_device_s, self._per_token_s), problem.size, problem.size)
        # What a drafting session keeps beside extra passes, unless least goodputs are given or the policy is fair.
        self._least_per_s = LEAST_OF_PLAIN / plain_s
        self.best: Mixture | None = None
        self._left = _ENTRIES
        self._usual_drafts: dict[bytes, Ints] = {}  # by the set of the others, which often recurs
        self._improved: set[bytes] = set()  # choices that sweeps have begun with

    def score(self, lengths: Ints, edge_lengths: Ints) -> _ScoredCandidates:
        """Period and value of drafts of the devices and of the edge, both [N, K], with the best m for each.

        Args:
            lengths: drafts of the devices [tokens], [N, K]; 0 where no device drafts.
            edge_lengths: drafts of the edge in each pass of the others [tokens], [N, K]; no matter where a device
                drafts.
        """
        problem = self.problem
        drafting = lengths > 0
        edge_lengths = np.where(drafting, 0, edge_lengths)
        others = (~drafting).sum(axis=-1)
        phase = self.phase_s(lengths)
        edge_s = self._step_s * edge_lengths.max(axis=-1) + self._step_device_s * edge_lengths.sum(axis=-1)
        fed = edge_lengths.sum(axis=-1) + others
        if self._padded:
            fed = others * (edge_lengths.max(axis=-1) + 1)
        pass_s = edge_s + verification_s(self._fixed_s, self._per_device_s, self._per_token_s, others, fed)
        joint_s = problem.fixed_s + self._per_token_s * fed_tokens(lengths + edge_lengths, self._padded)
        if problem.after_s is not None:
            joint_s = joint_s + problem.after_s[lengths, self._devices].sum(axis=-1)
        mixed = (others > 0) & drafting.any(axis=-1)
        fitting = np.where(mixed, np.maximum(np.floor((phase - edge_s) / np.where(mixed, pass_s, 1.0)), 0.0), 0.0)
        # One pass more than fits makes the devices' drafts wait for its end, and may pay all the same.
        extra = np.stack([fitting, np.where(mixed, fitting + 1.0, fitting)])
        period = np.maximum(phase, extra * pass_s + edge_s) + joint_s
        value = self._value(lengths, edge_lengths, extra, period)
        more = value[1] > value[0]
        value, period, extra = (np.where(more, each[1], each[0]) for each in (value, period, extra))
        if not self.fair and not problem.constrained:
            # The sum would gain by serving the others only, where sessions cost the engine much and a device is slow.
            least = self._least_per_s * period[..., None]
            starves = (drafting & (problem.tokens[lengths, self._devices] < least)).any(axis=-1) & (extra > 0)
            value = np.where(starves, np.minimum(value, _STARVES), value)
        return _ScoredCandidates(value, phase, period, extra)

    def _tokens(self, lengths: Ints, edge_lengths: Ints, extra: Floats) -> Floats:
        """Expected tokens of a period with `extra` passes, [N, K]."""
        of_edge = (extra + 1.0)[..., None] * self.edge.tokens[edge_lengths, self._devices]
        return np.asarray(np.where(lengths > 0, self.problem.tokens[lengths, self._devices], of_edge))

    def _value(self, lengths: Ints, edge_lengths: Ints, extra: Floats, period_s: Floats) -> Floats:
        """The objective, [..., N] like extra passes and period; far below everything if a least goodput is missed.

        Without least goodputs, sums over the sessions of drafts [N, K] are made once for all numbers of passes.
        """
        if self.problem.constrained:
            rates = self._tokens(lengths, edge_lengths, extra) / period_s[..., None]
            value = (np.log(rates) if self.fair else rates) @ self.weight
            asked = self.least > 0
            met = (rates[..., asked] / self.least[asked]).min(axis=-1)
            return np.where(met >= 1.0 - 1e-9, value, -1e15 * (1.0 - met))
        own = self._own_worth[lengths, self._devices].sum(axis=-1)
        others = np.where(lengths > 0, 0.0, self._edge_worth[edge_lengths, self._devices]).sum(axis=-1)
        if not self.fair:
            return np.asarray((own + (extra + 1.0) * others) / period_s)
        weight = np.where(lengths > 0, 0.0, self.weight).sum(axis=-1)
        return np.asarray(own + others + weight * np.log(extra + 1.0) - self.weight.sum() * np.log(period_s))

    def phase_s(self, lengths: Ints) -> Floats:
        """φ of drafts of the devices, [N, K] → [N] [s]."""
        problem = self.problem
        if not self.equal_bands:
            return problem.draft_time(lengths)
        drafting = lengths > 0
        share = np.where(drafting, 1.0 / np.maximum(drafting.sum(axis=-1, keepdims=True), 1), 0.0)
        return np.asarray((problem.busy_s(lengths) + problem.upload_time(lengths, share)).max(axis=-1))

    def offer(self, lengths: Ints, edge_lengths: Ints) -> Mixture:
        """The best of these candidates, which is kept if it beats what is known.

        Args:
            lengths: drafts of the devices [tokens], [N, K]; 0 where no device drafts.
            edge_lengths: drafts of the edge in each pass of the others [tokens], [N, K]; no matter where a device
                drafts.
        """
        return self._keep(self.score(lengths, edge_lengths), lengths, edge_lengths)

    def _keep(self, scored: _ScoredCandidates, lengths: Ints, edge_lengths: Ints) -> Mixture:
        n = int(np.argmax(scored.value))
        found = Mixture(
            lengths=lengths[n],
            edge_lengths=np.where(lengths[n] > 0, 0, edge_lengths[n]),
            tokens=self._tokens(lengths[n], edge_lengths[n], scored.extra[n]),
            phase_s=float(scored.phase_s[n]),
            period_s=float(scored.period_s[n]),
            extra_passes=int(scored.extra[n]),
            value=float(scored.value[n]),
        )
        if self.best is None or found.value > self.best.value:
            self.best = found
        return found

    def search(self, starts: list[tuple[Ints, Ints]], *, warm: bool = False) -> Mixture:
        """The best mixture that is found.

        Args:
            starts: choices to begin with, as drafts of the devices and of the edge, [K] each.
            warm: whether the last of them is nearly the answer, so that little else need be tried; default False.
        """
        begun = [self.offer(lengths[None], edge_lengths[None]) for lengths, edge_lengths in starts]
        assert self.best is not None
        if not warm:
            guesses = sorted(begun, key=lambda mixture: -mixture.value)[:_GUESSES]
            tried: list[Mixture] = []
            for _ in range(_ROUNDS):
                for guess in guesses:
                    if not any(guess is each for each in tried):
                        self._phases(guess)
                tried, guesses = guesses, [self.best]
        else:
            self._phases(self.best)  # to leave a device out may pay now, and changes the others' drafts
        for start in (self.best, *begun) if not warm and self.problem.size <= _FEW else (self.best,):
            self._improve(start)
        return self.best

    def _prices(self, guess: Mixture) -> tuple[float, float, Ints]:
        """Price of a second of the period, duration of a pass of the others, and their drafts [K], near a guess."""
        assert self.best is not None
        weight = float(self.weight.sum())
        rates = self.best.tokens / self.best.period_s
        price = weight / guess.period_s if self.fair else float(self.weight @ rates)
        others = guess.lengths == 0
        edge_lengths = self._usual(others)
        if not others.any():
            others = ~others
        return price, self.edge.pass_s(np.where(others, edge_lengths, 0), members=others), edge_lengths

    def _usual(self, others: Mask) -> Ints:
        """Drafts of the edge that are best for passes of the others, or of everybody if there are none, [K]."""
        key = others.tobytes()
        if key not in self._usual_drafts:
            members = others if others.any() else ~others
            self._usual_drafts[key] = self.edge.best_lengths(fair=self.fair, members=members)
        return self._usual_drafts[key]

    def _phases(self, guess: Mixture) -> None:
        """Try phases φ: at each, every session takes what is worth most to it at the prices near the guess."""
        problem, weight = self.problem, self.weight
        price, pass_s, edge_lengths = self._prices(guess)
        able = problem.longest > 0
        if not able.any():
            return
        quickest = (problem.busy_s(np.maximum(problem.shortest, 1)) + problem.upload_s)[able].min()
        longest = float(problem.draft_time(problem.longest))
        phases = np.geomspace(quickest, max(longest, quickest * 1.01), _PHASES)
        if guess.phase_s > 0:
            phases = np.concatenate([phases, guess.phase_s * np.array([0.7, 0.85, 1.0, 1.2, 1.5])])
        passes = phases / pass_s  # taken as any number of passes here, and as a whole one in the score
        of_edge = self.edge.tokens[edge_lengths, self._devices]
        own_s = self._per_device_s + self._per_token_s * (edge_lengths + 1) + self._step_device_s * edge_lengths
        others = guess.lengths == 0
        if self.fair:
            gain = weight * np.log((passes[:, None] + 1.0) * of_edge)
            pass_price = float(weight[others].sum()) * passes / (passes + 1.0) / pass_s
        else:
            gain = weight * (passes[:, None] + 1.0) * of_edge
            pass_price = float((weight * of_edge)[others].sum()) / pass_s * passes
        served = gain - pass_price[:, None] * own_s - price * self._per_token_s * edge_lengths
        length = np.arange(problem.reach)[:, None]
        worth = (np.log(problem.tokens[: problem.reach]) if self.fair else problem.tokens[: problem.reach]) * weight
        worth = worth - price * (0.0 if self._padded else self._per_token_s) * length
        if problem.after_s is not None:
            worth = worth - price * problem.after_s[: problem.reach]
        upload = length * problem.upload_s
        room = phases[:, None] - (problem.busy_s(length) + least_upload_s(upload, problem.snr))[:, None, :]
        open_ = self._options[:, None, :] & (room > 0) & (length > 0)[:, None, :]
        with np.errstate(all="ignore"):
            cost = np.where(open_, needed_share(upload[:, None, :], np.where(room > 0, room, 1.0), problem.snr)[0], 0.0)
        options = np.where(open_, worth[:, None, :], -np.inf)
        options[0] = served
        chosen = price_by_worth(options, cost, np.zeros(len(phases)), steps=_PRICE_STEPS)[1]
        drafts = np.broadcast_to(edge_lengths, chosen.shape)
        if edge_lengths.any():
            chosen, drafts = np.concatenate([chosen, chosen]), np.concatenate([drafts, np.zeros_like(chosen)])
        self.offer(chosen, drafts)

    def _improve(self, start: Mixture) -> None:
        """Change one session's choice, or the edge's drafts for all of the others, while that helps."""
        size = self.problem.size
        best = start
        # With many sessions, a part of them is tried at a time.
        parts = max(1, -(-(9 * size * size) // _AT_ONCE))
        in_vain = 0
        for sweep in range(_SWEEPS * parts):
            if parts == 1 and self._known(best):
                return
            tried = np.arange(sweep % parts, size, parts)
            drafting = best.lengths > 0
            usual = self._usual(~drafting)
            device, value = self._changes(best.lengths, tried)
            rows = len(device)
            changed = np.repeat(best.lengths[None], rows, axis=0)
            changed[np.arange(rows), device] = value
            # A session that no longer drafts gets nothing of the edge, or what the edge would draft for it.
            drafts = np.where(drafting, 0, best.edge_lengths)
            helped = changed[(changed[np.arange(rows), device] == 0) & (usual[device] > 0)]
            alone = np.zeros((len(tried), size), dtype=np.int64)
            alone[np.arange(len(tried)), tried] = 1
            of_edge = np.stack([usual, usual - 1, drafts - 1, drafts + 1, 0 * usual])
            lengths = np.concatenate([changed, helped, np.repeat(best.lengths[None], 5 + len(tried), axis=0)])
            edge_lengths = np.concatenate(
                [
                    np.repeat(drafts[None], rows, axis=0),
                    np.repeat(np.where(drafting, usual, best.edge_lengths)[None], len(helped), axis=0),
                    of_edge,
                    drafts + alone,
                ]
            )
            rows += len(helped)
            if self._left < lengths.size:
                return
            self._left -= lengths.size
            edge_lengths = np.clip(edge_lengths, 0, self.edge.longest)
            scored = self.score(lengths, edge_lengths)
            found = self._keep(scored, lengths, edge_lengths)
            # All changes that help alone, made together: often better still, and many steps in one.
            helps = np.flatnonzero(scored.value[:rows] > best.value)
            if len(helps) > 1:
                lengths, edge_lengths = self._together(best, lengths[helps], edge_lengths[helps], scored.value[helps])
                found = max(found, self.offer(lengths, edge_lengths), key=lambda mixture: mixture.value)
            if found.value > best.value + 1e-12 * abs(best.value):
                best, in_vain = found, 0
            else:
                in_vain += 1
                if in_vain == parts:
                    return

    def _changes(self, lengths: Ints, tried: Ints) -> tuple[Ints, Ints]:
        """Changes of one session's draft that are worth a try: whose, and its new length, [N] each.

        Args:
            lengths: drafts of the devices, [K].
            tried: sessions whose changes are tried.
        """
        own = np.flatnonzero(lengths)
        known = np.sort(lengths[own])
        typical = np.array([1, known[0], known[len(known) // 2], known[-1]] if len(own) else [1, 2, 4, 8])
        reach, most = self.problem.reach, max(_CHANGES)
        wanted = np.zeros((reach + 2 * most, self.problem.size), dtype=bool)  # lengths from −most on
        wanted[typical[typical < reach] + most] = True
        wanted[:, own] = False
        for change in _CHANGES:
            wanted[lengths[own] + (change + most), own] = True
        wanted[most, own] = True
        wanted[lengths + most, self._devices] = False
        device, value = np.nonzero((wanted[most : reach + most] & self._options)[:, tried].T)
        return tried[device], value

    def _known(self, choice: Mixture) -> bool:
        """Whether a sweep of everybody has begun with this choice before: it would find the same again."""
        key = choice.lengths.tobytes() + choice.edge_lengths.tobytes()
        if key in self._improved:
            return True
        self._improved.add(key)
        return False

    @staticmethod
    def _together(best: Mixture, lengths: Ints, edge_lengths: Ints, values: Floats) -> tuple[Ints, Ints]:
        """A choice with all the changes to it that candidates [N, K] make; the better ones win, [1, K]."""
        all_lengths, all_edge = best.lengths.copy(), best.edge_lengths.copy()
        for n in np.argsort(values):
            changed = lengths[n] != best.lengths
            all_lengths[changed], all_edge[changed] = lengths[n, changed], edge_lengths[n, changed]
        return all_lengths[None], all_edge[None]
