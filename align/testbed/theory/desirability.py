"""What KTO optimises on pairs taken apart: the policy that its expected loss leads to from the reference, solved.

A pair's winner is desirable and its loser is not, each with the weight 1 that is TRL's default. In expectation over
pairs the loss (Ethayarajh et al. 2024, equation 7) is, up to a constant,

    - sum_y c_y sigmoid(b (log(pi(y) / ref(y)) - z)),   c_y = P(y wins its pair) - P(y loses its pair),

with b KTO's beta and z >= 0 its batch estimate of the KL, without gradient: the mean of log(pi / ref) over the batch's
prompts with the replies of other rows. c_y knows how often a reply wins, and not by how much, and b sets no price of
KL: the optimum is no `ref exp(w.r / beta)`. Replies that lose more than they win (c_y < 0) end at probability 0. With
b > 1 the sigmoid is not concave in pi / ref and there may be several optima; this is the one that small steps reach.
Legend: P prompts, R well-formed replies, M leaves.
"""

from __future__ import annotations

import numpy as np

STEPS = 2000
FAR = 0.05  # the largest change of a log-probability that still counts in one step
GONE = 1e-8  # probability below which a reply no longer counts
LEAST = 1e-30


def couples(logp: np.ndarray) -> np.ndarray:
    """(..., R, R) probability that a and b are the two different replies drawn, in either order, of logp (..., R)."""
    p = np.exp(logp)
    first = p[..., :, None] * p[..., None, :] / (1 - p[..., :, None])  # a, then b of what is left
    both = first + np.swapaxes(first, -1, -2)
    return np.asarray(both * (1 - np.eye(p.shape[-1])))


def net_wins(logref: np.ndarray, total: np.ndarray, *, tau: float) -> np.ndarray:
    """(..., R) c: of a pair drawn of the reference, P(y wins it) - P(y loses it), where labels have temperature tau.

    total (..., R): what the annotator values, w.r.
    """
    margins = (total[..., :, None] - total[..., None, :]) / tau
    return np.asarray((couples(logref) * np.tanh(margins / 2)).sum(-1))  # sigmoid(m) - sigmoid(-m)


def kto(logref: np.ndarray, total: np.ndarray, *, beta: float, tau: float, steps: int = STEPS) -> np.ndarray:
    """(P, R) log-probabilities where natural-gradient steps on the expected loss end; beta is KTO's own, in nats^-1."""
    wins, seen = net_wins(logref, total, tau=tau), couples(logref).sum(-1) / 2  # half of a pair's rows each
    others = np.broadcast_to(seen.mean(-2, keepdims=True), seen.shape)  # a reply under another row's prompt
    logp = logref.copy()
    for _ in range(steps):
        ratio = logp - logref
        z = max(float((others * ratio).sum(-1).mean()), 0.0)
        push = beta * (ratio - z)
        slope = wins * beta / (4 * np.cosh(np.clip(push, -300, 300) / 2) ** 2)  # of the loss in log pi(y), negated
        p = np.exp(logp)
        change = slope / np.maximum(p, LEAST)
        change = change - (p * change).sum(-1, keepdims=True)
        largest = np.abs(np.where(p > GONE, change, 0.0)).max(-1, keepdims=True)
        logp = logp + np.clip(FAR * change / np.maximum(largest, LEAST), -FAR, FAR) * np.minimum(1, largest / FAR)
        logp = np.maximum(logp, np.log(LEAST))
        logp = logp - np.log(np.exp(logp).sum(-1, keepdims=True))
    return logp
