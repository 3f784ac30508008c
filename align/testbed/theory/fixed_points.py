"""What an update rule optimises: the fixed point of its exact expected update on a tabular tree policy, solved.

A tabular policy has free logits at every node of a response tree. Its update is in expectation
`sum_y p(y) A(y) grad log p(y) - beta grad KL`; where that vanishes, training has nothing left to do. With the
sequence's KL the fixed point is `log p/ref = A / beta + const`; the rules differ in the advantage A (Shao et al. 2024
for GRPO, Liu et al. 2026 for GDPO; standard deviations plus 1e-4 as in TRL) and in the KL:

- reward: inside the reward, before any scaling (RLOO; GRPO with a sequence-KL reward). A scaling of the one sum then
  only stretches a zero: the fixed point is pi*_w.
- loss: the exact gradient of beta KL(pi || ref) beside the scaled advantage.
- token: GRPO's per-token penalty with TRL's `use_bias_correction_kl` (its default): reverse KL at each prefix, blind to
  how a token changes the prefixes after it. Backward induction with the mean value where the optimum has the soft one.
- token_k3: the same without that correction. The expected gradient of `exp(d) - d - 1`, d = log ref - log p, is that of
  the *forward* KL(ref || p) at each prefix: `p = beta ref / (lambda - Q)`, not exponential even for one token.

Loss types that divide by each response's own length ("grpo") have another fixed point where lengths differ; the
default "dapo" has not. Legend: leading axes `...` are independent problems, the last of them the P prompts of one
batch; n nodes of a depth, S slots of a node, M leaves, K objectives, D directions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from align.testbed.theory.group_advantages import EPS, GroupAdvantages, Groups

Levels = tuple[np.ndarray, ...]  # one array per depth
Rule = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

SCALES = ("none", "group", "batch", "gdpo")
KLS = ("reward", "loss", "token", "token_k3")


@dataclass(frozen=True)
class Tree:
    """Response trees of one shape: logref[d] (..., n, S) log-probabilities of the slots of each node at depth d, and
    rewards[d] (..., n, S, K) of ending there.

    At every depth but the last the first `branching` slots lead on (their rewards are not read): slot a of node i is
    node `i * branching + a` of the next depth. All other slots end the response.
    """

    logref: Levels
    rewards: Levels
    branching: int

    @property
    def objectives(self) -> int:
        return self.rewards[0].shape[-1]

    def flat(self, levels: Sequence[np.ndarray]) -> np.ndarray:
        """(..., M) of the leaves' entries, by depth, node and slot."""
        last = len(levels) - 1
        parts = [x if d == last else x[..., self.branching :] for d, x in enumerate(levels)]
        return np.concatenate([x.reshape(*x.shape[:-2], -1) for x in parts], axis=-1)

    def levels(self, flat: np.ndarray) -> Levels:
        """The inverse of `flat`; zero where a slot leads on."""
        out, start = [], 0
        for d, table in enumerate(self.logref):
            lead = 0 if d == len(self.logref) - 1 else self.branching
            nodes, width = table.shape[-2], table.shape[-1] - lead
            level = np.zeros((*flat.shape[:-1], nodes, table.shape[-1]))
            level[..., lead:] = flat[..., start : start + nodes * width].reshape(*flat.shape[:-1], nodes, width)
            out.append(level)
            start += nodes * width
        return tuple(out)

    @cached_property
    def leaf_rewards(self) -> np.ndarray:
        """(..., M, K)."""
        return np.stack([self.flat([r[..., k] for r in self.rewards]) for k in range(self.objectives)], axis=-1)

    @cached_property
    def leaf_logref(self) -> np.ndarray:
        """(..., M) log-probability of each leaf under the reference."""
        return leaf_logprobs(self, self.logref)


def leaf_logprobs(tree: Tree, logp: Levels) -> np.ndarray:
    """(..., M) log-probability of each leaf from the nodes' conditionals, by the chain rule."""
    reach, out = np.zeros((*logp[0].shape[:-1], 1)), []
    for d, table in enumerate(logp):
        joint = table + reach
        out.append(joint)
        if d < len(logp) - 1:
            reach = joint[..., : tree.branching].reshape(*joint.shape[:-2], -1, 1)
    return tree.flat(out)


def _log_normalise(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(normalised logits, log of their sum); subtracting the largest first keeps the mass at 1 whatever their size."""
    top = logits.max(-1, keepdims=True)
    shifted = logits - top
    total = np.log(np.exp(shifted).sum(-1, keepdims=True))
    return shifted - total, (top + total)[..., 0]


def _soft(beta: float) -> Rule:
    """pi*: `p ~ ref exp(Q / beta)`, value beta log sum."""

    def rule(logref: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logp, total = _log_normalise(logref + q / beta)
        return logp, beta * total

    return rule


def _reverse(beta: float) -> Rule:
    """Per-token reverse KL: the same conditional, but the value of a node is the mean of Q: no KL is passed up."""

    def rule(logref: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logp, _ = _log_normalise(logref + q / beta)
        return logp, (np.exp(logp) * q).sum(-1)

    return rule


def _forward(beta: float) -> Rule:
    """Per-token forward KL: `p = beta ref / (lambda - Q)`, lambda such that p sums to 1, by Newton steps on 1 / sum."""

    def rule(logref: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ref = np.exp(logref)
        top = np.where(ref > 0, q, -np.inf).max(-1, keepdims=True)
        gap = np.where(ref > 0, top - q, 1.0)
        low = beta * np.where((gap == 0) & (ref > 0), ref, 0).sum(-1, keepdims=True)  # lambda - top, bracketed
        high, u = np.full_like(low, beta), low
        for _ in range(200):
            share = beta * ref / (u + gap)
            total = share.sum(-1, keepdims=True)
            slope = (share / (u + gap)).sum(-1, keepdims=True)  # -d total / du
            step = np.clip(u + (total - 1) * total / slope, low, high)
            done = (np.abs(step - u) <= 1e-14 * u).all()
            u = step
            if done:
                break
        p = beta * ref / (u + gap)
        p = p / p.sum(-1, keepdims=True)
        with np.errstate(divide="ignore"):
            return np.log(p), (p * q).sum(-1)

    return rule


RULES: dict[str, Callable[[float], Rule]] = {"reward": _soft, "loss": _soft, "token": _reverse, "token_k3": _forward}


def solve(tree: Tree, payoff: Levels, *, beta: float, kl: str) -> Levels:
    """Conditionals of the fixed point for given leaf payoffs (..., n, S): the advantage up to a constant. Bottom up."""
    rule, out, value = RULES[kl](beta), [], None
    for d in reversed(range(len(tree.logref))):
        q = payoff[d]
        if value is not None:
            q = q.copy()
            q[..., : tree.branching] = value.reshape(*q.shape[:-1], tree.branching)
        logp, value = rule(tree.logref[d], q)
        out.append(logp)
    return tuple(reversed(out))


def optimum(tree: Tree, *, weights: Sequence[float], beta: float) -> Levels:
    """Conditionals of pi*_w on every prompt."""
    return solve(tree, payoff_of(tree, np.asarray(weights, float)), beta=beta, kl="reward")


def payoff_of(tree: Tree, tilt: np.ndarray) -> Levels:
    """`sum_k tilt_k r_k` of every slot; tilt (K,) or (..., K), one per problem."""
    return tuple(np.einsum("...nsk,...k->...ns", r, tilt) for r in tree.rewards)


def moments(p: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of x (..., M) under p (..., M)."""
    mean = (p * x).sum(-1)
    return mean, (p * (x - mean[..., None]) ** 2).sum(-1)


def advantage_tilt(tree: Tree, logp: np.ndarray, *, weights: np.ndarray, scale: str, eps: float = EPS) -> np.ndarray:
    """(..., K): A = sum_k tilt_k r_k + const in the limit of large groups and batches, at the policy of leaves `logp`.

    none: w. group: w / (sd of w.r on the prompt). batch: w / (sd of w.r over the batch, the prompts' means included).
    gdpo: w_k / (sd of r_k on the prompt), all over the batch's sd of that sum (`normalize_then_sum`).
    """
    p, r = np.exp(logp), tree.leaf_rewards
    if scale == "gdpo":
        sd = np.stack([np.sqrt(moments(p, r[..., k])[1]) for k in range(tree.objectives)], axis=-1)
        tilt = weights / (sd + eps)
        _, spread = moments(p, np.einsum("...mk,...k->...m", r, tilt))
        return tilt / (np.sqrt(spread.mean(-1))[..., None, None] + eps)
    mean, variance = moments(p, r @ weights)
    if scale == "group":
        return weights / (np.sqrt(variance)[..., None] + eps)
    if scale == "batch":
        total = variance.mean(-1) + mean.var(-1)
        return np.broadcast_to(weights / (np.sqrt(total)[..., None, None] + eps), (*mean.shape, len(weights)))
    return np.broadcast_to(weights, (*mean.shape, len(weights)))


@dataclass(frozen=True)
class FixedPoint:
    """A solved rule: the policy's conditionals, its leaves' log-probabilities (..., M), the tilt (..., K) with
    `log p/ref = tilt.r / beta + const` where the KL is the sequence's and groups are large (else None), the largest
    relative change that one more update of the advantage would make, and how many updates were made.
    """

    conditionals: Levels
    leaf_logp: np.ndarray
    tilt: np.ndarray | None
    residual: float
    iterations: int


def fixed_point(
    tree: Tree,
    *,
    weights: Sequence[float],
    beta: float,
    scale: str = "none",
    kl: str = "reward",
    groups: Groups | None = None,
    tolerance: float = 1e-10,
    max_iterations: int = 20_000,
) -> FixedPoint:
    """The fixed point that an infinitely slow training run reaches from the reference.

    `advantage <- advantage + (A(p) - advantage) / 4` with p solved for the advantage: the exact expected
    natural-gradient step. `groups` replaces the limit of large groups by groups of a size (see `GroupAdvantages`; the
    batch stays large). ValueError on an unknown rule, and for gdpo with the KL in the reward, which TRL would
    z-score as one more objective. Where `max_iterations` do not suffice, the residual says so.
    """
    w = np.asarray(weights, float)
    if scale not in SCALES or kl not in KLS or len(w) != tree.objectives or tree.logref[0].ndim < 3:
        raise ValueError(f"no rule scale={scale!r}, kl={kl!r} for {len(w)} weights and {tree.objectives} objectives")
    if kl == "reward":
        if scale == "gdpo":
            raise ValueError("gdpo with the KL as a reward would z-score the KL; its KL stands in the loss")
        conditionals = optimum(tree, weights=weights, beta=beta)
        tilt = np.broadcast_to(w, (*tree.logref[0].shape[:-2], len(w)))
        return FixedPoint(conditionals, leaf_logprobs(tree, conditionals), tilt, 0.0, 0)
    if groups is not None:
        return _finite(tree, w, beta, scale, kl, groups, tolerance, max_iterations)
    tilt, residual, step = np.zeros((*tree.logref[0].shape[:-2], len(w))), np.inf, 0
    while True:
        conditionals = solve(tree, payoff_of(tree, tilt), beta=beta, kl=kl)
        leaf_logp = leaf_logprobs(tree, conditionals)
        target = advantage_tilt(tree, leaf_logp, weights=w, scale=scale)
        residual = float((np.abs(target - tilt) / (1 + np.abs(target))).max())
        if residual <= tolerance or step == max_iterations:
            break
        tilt = target if scale == "none" else tilt + (target - tilt) / 4
        step += 1
    return FixedPoint(conditionals, leaf_logp, tilt if kl == "loss" else None, residual, step)


def _finite(
    tree: Tree, w: np.ndarray, beta: float, scale: str, kl: str, groups: Groups, tolerance: float, max_iterations: int
) -> FixedPoint:  # fmt: skip
    """`fixed_point` in groups of finite size: the advantage is a table over reward classes, not a tilt."""
    lead = tree.logref[0].shape[:-2]
    flat_rewards = tree.leaf_rewards.reshape(-1, *tree.leaf_rewards.shape[-2:])
    classes, index = [], []
    for r in flat_rewards:
        rows, inverse = np.unique(np.round(r, 12), axis=0, return_inverse=True)
        classes.append(GroupAdvantages(rows, weights=w, scale=scale, groups=groups))
        index.append(inverse.ravel())

    def target_of(leaf_logp: np.ndarray) -> np.ndarray:
        p = np.exp(leaf_logp).reshape(len(classes), -1)
        found, squares = [], []
        for table, inverse, mass in zip(classes, index, p, strict=True):
            a_C, square = table(np.bincount(inverse, weights=mass, minlength=len(table.rewards)))
            found.append(a_C[inverse])
            squares.append(square)
        target = np.stack(found).reshape(leaf_logp.shape)
        if scale == "gdpo":
            target = target / (np.sqrt(np.reshape(squares, lead).mean(-1))[..., None, None] + EPS)
        elif scale == "batch":
            mean, variance = moments(np.exp(leaf_logp), tree.leaf_rewards @ w)
            target = target / (np.sqrt(variance.mean(-1) + mean.var(-1))[..., None, None] + EPS)
        return target

    return of_advantages(tree, target_of, beta=beta, kl=kl, tolerance=tolerance, max_iterations=max_iterations)


def of_advantages(
    tree: Tree, target_of: Callable[[np.ndarray], np.ndarray], *, beta: float, kl: str, part: float = 1 / 4,
    tolerance: float, max_iterations: int,
) -> FixedPoint:  # fmt: skip
    """The fixed point where no tilt of the rewards is known: of `target_of`, from (..., M) leaf log-probabilities to
    (..., M) advantages. Each step goes `part` of the way to them; a constant on a prompt is no difference.
    """
    advantage, step = np.zeros(tree.leaf_rewards.shape[:-1]), 0
    while True:
        conditionals = solve(tree, tree.levels(advantage), beta=beta, kl=kl)
        leaf_logp = leaf_logprobs(tree, conditionals)
        target = target_of(leaf_logp)
        centred = target - advantage
        centred = centred - centred.mean(-1, keepdims=True)
        residual = float(np.abs(centred).max() / (1 + np.abs(target).max()))
        if residual <= tolerance or step == max_iterations:
            return FixedPoint(conditionals, leaf_logp, None, residual, step)
        advantage = advantage + part * (target - advantage)
        step += 1


def sequence_mod(logp_K: Sequence[np.ndarray], *, weights: Sequence[float]) -> np.ndarray:
    """(..., M) normalised product `prod_k p_k^{w_k}` over whole responses (Shi et al. 2024): pi*_w of optimal p_k."""
    used = [w * p for w, p in zip(weights, logp_K, strict=True) if w]
    return _log_normalise(np.sum(used, axis=0))[0]


def token_mod(logp_K: Sequence[Levels], *, weights: Sequence[float]) -> Levels:
    """The product as it is decoded: next-token distributions multiplied and normalised at every prefix."""
    used = [(w, levels) for w, levels in zip(weights, logp_K, strict=True) if w]
    mixed = [np.sum([w * levels[d] for w, levels in used], axis=0) for d in range(len(used[0][1]))]
    return tuple(_log_normalise(level)[0] for level in mixed)


def kl(logp: np.ndarray, logq: np.ndarray) -> np.ndarray:
    """(...,) KL(p || q) over leaves, in nats."""
    p = np.exp(logp)
    return (p * np.where(p > 0, logp - logq, 0.0)).sum(-1)


def regret(tree: Tree, logp: np.ndarray, *, weights: Sequence[float], beta: float) -> np.ndarray:
    """(...,) J*_w - J_w = beta KL(p || pi*_w) of each problem, prompts averaged: the last leading axis is gone."""
    star = leaf_logprobs(tree, optimum(tree, weights=weights, beta=beta))
    return beta * kl(logp, star).mean(-1)


def nearest_tilt(tree: Tree, logp: np.ndarray, *, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The optimum of one tilt in the span of `directions` (D, K) that lies nearest, for all prompts of a batch at once.

    Minimises over t (D,) the prompts' mean `KL(p || ref e^{(t @ directions).r} / Z)`, which is convex, by damped Newton
    steps. Returns (tilt (..., K), KL (...,) in nats). With one direction w: the asked weights at the best beta. With
    the identity: any weights at any beta. Where the infimum is at infinity (deterministic p) the last step is kept.
    """
    p, features = np.exp(logp), np.einsum("...mk,dk->...md", tree.leaf_rewards, directions)
    wanted, ref = np.einsum("...m,...md->...d", p, features), tree.leaf_logref
    entropy = kl(logp, ref)
    t = np.zeros((*logp.shape[:-2], len(directions)))

    def value(t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        q, total = _log_normalise(ref + np.einsum("...pmd,...d->...pm", features, t))
        return (entropy - np.einsum("...pd,...d->...p", wanted, t) + total).mean(-1), q

    best, q = value(t)
    for _ in range(100):
        law = np.exp(q)
        mean = np.einsum("...pm,...pmd->...pd", law, features)
        second = np.einsum("...pm,...pmd,...pme->...pde", law, features, features)
        hessian = (second - mean[..., :, None] * mean[..., None, :]).mean(-3) + 1e-12 * np.eye(len(directions))
        step = np.linalg.solve(hessian, (wanted - mean).mean(-2)[..., None])[..., 0]
        factor = np.ones(best.shape)
        for _ in range(40):
            tried, q_tried = value(t + factor[..., None] * step)
            worse = ~(tried <= best)
            if not worse.any():
                break
            factor = np.where(worse, factor / 2, factor)
        factor = np.where(worse, 0.0, factor)
        t = t + factor[..., None] * step
        change = best
        best, q = value(t)
        if np.abs(change - best).max() < 1e-14:
            break
    return t @ directions, best
