"""What a trained policy says of its trainer: the explanation whose exact fixed point lies nearest, or that none does.

Evidence: the policy trained as asked; the same at a larger beta (a KL that is missing or has the wrong sign looks like
a small beta until beta is changed); the same on a part of the budget (unfinished training looks like a large beta until
the budget is changed). Distances are KL(policy || fixed point) in nats, prompts averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from align.testbed.theory.fixed_points import Tree, kl, nearest_tilt
from align.testbed.theory.hypotheses import LIBRARY, Asked, Hypothesis, log_normalise, right, tilted

SMOOTHING = 1e-3  # of the reference mixed into a fixed point, which may give replies no probability at all
STILL = 1e-3  # nats from the reference: no training to speak of
EXPLAINS = 0.6  # share of a policy's distance from the reference that an explanation must account for
BETTER = 0.05  # share of that distance by which a fitted explanation must beat those without anything to fit
CLEAN = 0.02  # the same share where the fitted one leaves a quarter at most of the distance
NEARLY = 0.01  # share by which unfinished training may lie farther than another explanation
APART = 0.3  # share of the distance between two fixed points by which the better one must win
HEAT = 0.1  # the same against an optimum that explains too little
SAME_BETA = 1.2  # a beta within this factor of the asked one is the asked one
EARLY = 0.9  # share of the tilt that was asked for, up to which a policy that still moves may have too little KL to pay
FREE = 0.8  # KL at the larger beta over KL as asked, equal budgets: from here on the KL is not charged
IDENTICAL = 0.05  # share of the KL by which policies at two betas may differ where beta has no effect
RIGHT = 0.9  # share that the optimum must account for to be called right
NOISE = 0.25  # efficiency below which a policy did not move along the reward


@dataclass(frozen=True)
class Trained:
    """A policy's (P, M) exact leaf log-probabilities, and what its trainer was asked for.

    Everything but the regret is of replies that are well formed: of the others no trainer on pairs learns anything.
    """

    asked: Asked
    logp: np.ndarray

    @cached_property
    def ref(self) -> np.ndarray:
        """(P, R) the reference on well-formed replies."""
        return self.asked.formed(self.asked.tree.leaf_logref)

    @cached_property
    def policy(self) -> np.ndarray:
        """(P, R) the policy on well-formed replies."""
        return self.asked.formed(self.logp)

    @property
    def malformed(self) -> float:
        """The policy's probability of a malformed reply."""
        return float(1 - np.exp(self.logp[:, self.asked.replies]).sum(-1).mean())

    @cached_property
    def moved(self) -> float:
        """KL(policy || ref) in nats."""
        return float(kl(self.policy, self.ref).mean())

    def distance(self, other: np.ndarray) -> float:
        """KL(policy || other (P, M)), smoothed, in nats."""
        smooth = np.logaddexp(self.asked.formed(other) + np.log1p(-SMOOTHING), self.ref + np.log(SMOOTHING))
        return float(kl(self.policy, smooth).mean())

    @property
    def regret(self) -> float:
        """J* - J at the asked weights and beta, malformed replies included."""
        return regret_of(self.logp, self.asked)

    @property
    def efficiency(self) -> float:
        """The gain in w.r over the largest one that any policy of the same KL has: 1 for a tilt, 0 for noise."""
        total = self.asked.total[:, self.asked.replies]
        low, high = 0.0, 60.0 / self.asked.beta
        for _ in range(60):
            middle = (low + high) / 2
            best = log_normalise(self.ref + middle * total)
            low, high = (middle, high) if kl(best, self.ref).mean() < self.moved else (low, middle)
        values = [float((np.exp(p) * total).sum(-1).mean()) for p in (self.policy, best, self.ref)]
        return (values[0] - values[2]) / max(values[1] - values[2], 1e-12)


def regret_of(logp: np.ndarray, asked: Asked) -> float:
    """beta KL(policy || pi*_w), which is J* - J."""
    return float(asked.beta * kl(logp, right(asked)).mean())


@dataclass(frozen=True)
class Explanation:
    """One candidate with its (P, M) fixed point, and how far the policy lies from it."""

    name: str
    fault: str
    says: str
    policy: np.ndarray
    distance: float
    rank: float = 0.0  # the same with the distance at the larger beta added: noisier, and tells more faults apart
    parameters: int = 0
    factor: float = 1.0  # w.r / beta is tilted by it
    ratio: float = 0.0  # its KL at the larger beta over its KL as asked; 0 where that was not tried


@dataclass(frozen=True)
class Diagnosis:
    """A verdict in words with its numbers; `kind` is right, fault, unfinished, learned nothing, or cannot tell.

    wrong: the regret of the fixed point that the trainer optimises. unfinished: the rest of the regret. distance: KL to
    that fixed point in nats. explained: the share of the policy's distance from the reference that it accounts for.
    acts_at: the tilt t of `ref exp(t.r)` nearest to the policy, as weights over the asked beta.
    """

    kind: str
    fault: str | None
    explanation: str | None
    words: str
    regret: float
    regret_reference: float
    wrong: float | None
    unfinished: float | None
    distance: float | None
    explained: float | None
    acts_at: tuple[float, ...]
    kl: float
    malformed: float
    kl_ratio: float | None
    runner_up: str | None
    runner_up_distance: float | None


def fitted(run: Trained) -> list[Explanation]:
    """The explanations with something to fit, fewest parameters first: another beta, and other weights."""
    w = np.array(run.asked.weights)
    found = []
    for f in np.concatenate([-np.geomspace(5, 0.1, 24), np.geomspace(0.02, 50, 120)]).tolist():
        policy = tilted(run.asked, f * w / run.asked.beta)
        says = "weighs the KL by another beta than asked"
        found.append(Explanation("another beta", "another beta", says, policy, run.distance(policy), 0.0, 1, f))
    policy = tilted(run.asked, weights_of(run) / run.asked.beta)
    says = "optimises another trade-off than its weights say"
    free = Explanation("another trade-off", "another trade-off", says, policy, run.distance(policy), 0.0, len(w))
    return [min(found, key=lambda e: e.distance), free]


def weights_of(one: Trained) -> np.ndarray:
    """(K,) the weights over the asked beta whose optimum lies nearest to the policy."""
    rewards = one.asked.tree.leaf_rewards[:, one.asked.replies]
    flat = Tree((one.ref[:, None],), (rewards[:, None],), 0)
    tilt, _ = nearest_tilt(flat, one.policy, directions=np.eye(rewards.shape[-1]))
    return np.asarray(one.asked.beta * tilt.reshape(-1, tilt.shape[-1])[0])


def explanations(run: Trained, library: Sequence[Hypothesis], *, probe: Trained | None = None) -> list[Explanation]:
    """Every explanation without anything to fit, the nearest first (at both betas together).

    A policy at the larger beta of which no explanation accounts for `EXPLAINS` is noise, and ranks nothing: little was
    asked of it, and a trainer on few pairs learns their labels' errors instead.
    """
    found = []
    for one in library:
        policy = one.policy(run.asked)
        distance = run.distance(policy)
        rank, ratio = distance, 0.0
        if probe is not None:
            larger = one.policy(probe.asked)
            rank += probe.distance(larger)
            ratio = Trained(probe.asked, larger).moved / max(Trained(run.asked, policy).moved, 1e-12)
        found.append(Explanation(one.name, one.fault, one.says, policy, distance, rank, ratio=ratio))
    if probe is not None and min(e.rank - e.distance for e in found) > (1 - EXPLAINS) * probe.moved:
        found = [replace(e, rank=e.distance) for e in found]
    return sorted(found, key=lambda e: e.rank)


def diagnose(
    run: Trained, *, probe: Trained | None = None, short: Trained | None = None,
    library: Sequence[Hypothesis] = LIBRARY,
) -> Diagnosis:  # fmt: skip
    """The verdict on a trainer from its policy, one on less budget (`short`), and one at a larger beta (`probe`) on
    the same lesser budget: what the two differ in is beta's doing alone.
    """
    moved = run.moved  # nothing is fitted to the others, which are trained too little
    seen = _Seen(run, probe, short)
    if run.moved < STILL:
        return seen.verdict("learned nothing", None, "learned nothing: the policy is the reference")
    fixed = explanations(run, library, probe=probe)
    best, free = fixed[0], fitted(run)
    for one in free:  # fewest parameters first
        gain = best.distance - one.distance
        if gain > BETTER * moved or (gain > CLEAN * moved and one.distance < best.distance / 4):
            best = one
    beta = free[0]
    if seen.moving and 0 < beta.factor < 1 / SAME_BETA and beta.distance <= best.distance + NEARLY * moved:
        best = beta  # another beta is what unfinished training looks like, and so does the batch's scale
    explained = 1 - best.distance / moved
    if abs(run.efficiency) >= NOISE and seen.ratio > FREE and (best.parameters or best.ratio <= FREE):
        if seen.moving and 0 < beta.factor < EARLY:  # so early a right trainer has not met the KL yet
            words = f"cannot tell: {beta.factor:.0%} of the way at most, {TOO_EARLY}"
            return seen.verdict("cannot tell", None, words)
        if best.parameters or explained < EXPLAINS:
            paid = not seen.same
            return seen.verdict("fault", None, SIGN if paid else NO_KL, fault="sign of the KL" if paid else "no KL")
        return seen.verdict("cannot tell", best, f"cannot tell: one that {best.says} would end there, {UNCHARGED}")
    if explained < EXPLAINS:
        return _unexplained(seen, best, explained)
    if best.parameters:
        return _fitted_verdict(seen, best)
    for rival in (one for one in fixed if one.fault != best.fault):
        apart = Trained(run.asked, best.policy).distance(rival.policy)
        # the optimum is everybody's neighbour, and where it explains too little it may be named only at a dead heat
        least = HEAT if rival.fault == "right" and 1 - rival.distance / moved < RIGHT else APART
        if rival.rank - best.rank < least * apart:
            words = f"cannot tell whether it {best.says}, or {rival.says}; give it more budget"
            return seen.verdict("cannot tell", best, words, rival=rival)
    second = next((one for one in fixed if one.fault != best.fault), None)
    if best.fault != "right":
        return seen.verdict("fault", best, f"wrong: {best.says}", rival=second)
    if explained < RIGHT:
        words = f"cannot tell: the asked optimum is nearest, and accounts for {explained:.0%} only of what it learned"
        return seen.verdict("cannot tell", best, words, rival=second)
    return seen.verdict("right", best, f"right: {best.says}", rival=second)


SIGN = "wrong: it is paid for the KL to the reference, which does not fall with beta (its sign is flipped)"
NO_KL = "wrong: it does not charge the KL to the reference: four times beta ends at the same policy"
TOO_EARLY = "and still moving: whether it charges the KL cannot be seen yet; give it more budget"
UNCHARGED = "but four times beta did not hold it back: the KL is not charged, or shows later; give it more budget"
SHUFFLED = "wrong: it moves, but not along the reward, as if each reply had the reward of another sample"


def _unexplained(seen: _Seen, best: Explanation, explained: float) -> Diagnosis:
    if abs(seen.run.efficiency) < NOISE:
        return seen.verdict("fault", None, SHUFFLED, fault="reward of another sample")
    share = max(explained, 0.0)
    words = f"cannot tell: the nearest explanation ({best.name}) accounts for {share:.0%} of what it learned"
    return seen.verdict("cannot tell", best, words)


def _fitted_verdict(seen: _Seen, best: Explanation) -> Diagnosis:
    if best.name == "another trade-off":
        at = ", ".join(f"{x:.2f}" for x in weights_of(seen.run))
        return seen.verdict("fault", best, f"wrong: it {best.says}: it acts at ({at}) over the asked beta")
    factor = best.factor
    if factor < 0:
        return seen.verdict("fault", best, "wrong: it makes the reward small", fault="sign of the reward")
    if 1 / SAME_BETA <= factor <= SAME_BETA:
        return seen.verdict("right", best, f"right, at beta x {1 / factor:.2f}", fault="right")
    if factor < 1 and seen.moving:
        way = f"{factor:.0%} of the way to the asked optimum, or near that of a larger beta"
        words = f"unfinished: still moving, {way}; give it more budget"
        return seen.verdict("unfinished", best, words, fault="unfinished")
    return seen.verdict("fault", best, f"wrong: it {best.says}: beta x {1 / factor:.2f}")


@dataclass(frozen=True)
class _Seen:
    """What there is to go by."""

    run: Trained
    probe: Trained | None
    short: Trained | None

    @property
    def ratio(self) -> float:
        """KL at the larger beta over KL at the asked one; 0 where it was not tried."""
        if self.probe is None:
            return 0.0
        return self.probe.moved / max((self.short or self.run).moved, 1e-12)

    @property
    def same(self) -> bool:
        """Whether another beta gave the same policy."""
        short = self.short or self.run
        return self.probe is not None and short.distance(self.probe.logp) < IDENTICAL * short.moved

    @property
    def moving(self) -> bool:
        """Whether the last part of the budget still moved the policy away from the reference."""
        return self.short is not None and self.short.moved < 0.9 * self.run.moved

    def verdict(
        self, kind: str, best: Explanation | None, words: str, *, fault: str | None = None,
        rival: Explanation | None = None,
    ) -> Diagnosis:  # fmt: skip
        run = self.run
        # an unfinished trainer optimises the asked J, and a right one has no other fixed point than its optimum
        target = None if best is None else right(run.asked) if kind in ("right", "unfinished") else best.policy
        wrong = None if target is None else max(regret_of(target, run.asked), 0.0)
        return Diagnosis(
            kind=kind, fault=fault or (best.fault if best else None), explanation=best.name if best else None,
            words=words, regret=run.regret, regret_reference=regret_of(run.asked.tree.leaf_logref, run.asked),
            wrong=wrong, unfinished=None if wrong is None else run.regret - wrong,
            distance=None if target is None else run.distance(target),
            explained=None if best is None else 1 - best.distance / max(run.moved, 1e-12),
            acts_at=tuple(weights_of(run).tolist()), kl=run.moved, kl_ratio=self.ratio or None,
            malformed=run.malformed, runner_up=rival.name if rival else None,
            runner_up_distance=rival.distance if rival else None,
        )  # fmt: skip
