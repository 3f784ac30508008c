"""Fixed points of update rules on tabular policies, by hand, by brute force and by following the gradient."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from align.testbed.theory.fixed_points import (
    Tree,
    advantage_tilt,
    fixed_point,
    kl,
    leaf_logprobs,
    nearest_tilt,
    optimum,
    payoff_of,
    regret,
    sequence_mod,
    solve,
    token_mod,
)
from align.testbed.theory.group_advantages import GroupAdvantages, Groups

W = (0.3, 0.7)


def draw(seed: int = 0, *, words: int = 3, length: int = 2, prompts: int = 2, objectives: int = 2) -> Tree:
    """A random tree world of responses of exactly `length` words, with rewards of uneven scales over prompts."""
    rng = np.random.default_rng(seed)
    logref = tuple(np.log(rng.dirichlet(np.ones(words), size=(prompts, words**d))) for d in range(length))
    rewards = [np.zeros((prompts, words**d, words, objectives)) for d in range(length)]
    scale = np.exp(rng.normal(size=(prompts, 1, 1, objectives)) * 0.5)
    rewards[-1] = rng.normal(size=rewards[-1].shape) * scale
    return Tree(logref, tuple(rewards), words)


def test_leaves_by_hand() -> None:
    """Two words, two tokens: the four responses in order, and the inverse of flattening."""
    logref = (np.log([[[0.2, 0.8]]]), np.log([[[0.5, 0.5], [0.1, 0.9]]]))
    rewards = (np.zeros((1, 1, 2, 1)), np.arange(4.0).reshape(1, 2, 2, 1))
    tree = Tree(logref, rewards, 2)
    assert np.exp(tree.leaf_logref) == pytest.approx(np.array([[0.1, 0.1, 0.08, 0.72]]))
    assert tree.leaf_rewards[..., 0].tolist() == [[0, 1, 2, 3]]
    assert tree.levels(tree.leaf_rewards[..., 0])[1] == pytest.approx(rewards[1][..., 0])


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("scale", ["none", "group", "batch"])
def test_with_the_kl_in_the_reward_every_scale_ends_at_the_tilted_reference(length: int, scale: str) -> None:
    """ref exp(w.r / beta) / Z, leaf by leaf; `group` and `batch` scale a reward that is constant there."""
    tree, beta = draw(1, length=length), 0.4
    found = fixed_point(tree, weights=W, beta=beta, scale=scale, kl="reward")
    law = np.exp(tree.leaf_logref + tree.leaf_rewards @ np.array(W) / beta)
    law /= law.sum(-1, keepdims=True)
    assert np.exp(found.leaf_logp) == pytest.approx(law, abs=1e-12)
    assert found.leaf_logp == pytest.approx(np.log(law), abs=1e-10)
    penalised = tree.leaf_rewards @ np.array(W) - beta * (found.leaf_logp - tree.leaf_logref)
    assert np.ptp(penalised, axis=-1).max() < 1e-10  # nothing is left to scale
    assert regret(tree, found.leaf_logp, weights=W, beta=beta) == pytest.approx(0, abs=1e-12)


def surrogate_gradient(tree: Tree, found, *, advantage: np.ndarray, beta: float, place: str) -> float:
    """Largest |gradient| of the expected loss by autograd, per reached token: TRL's terms over all leaves.

    loss = - sum_y p(y) A(y) sum_t ratio_t + beta sum_y p(y) sum_t k_t, with ratio_t = exp(logp_t - logp_t.detach()) and
    k_t = (exp(d) - d - 1), times ratio_t when corrected; d = log ref_t - log p_t. Nothing here is the module's algebra.
    """
    logits = [torch.tensor(level, requires_grad=True) for level in found.conditionals]
    logp = [level.log_softmax(-1) for level in logits]
    prompts, words, depth = logp[0].shape[0], tree.branching, len(logp)
    loss = torch.zeros((), dtype=torch.float64)
    mass = [torch.zeros_like(level) for level in logp]
    for x in range(prompts):
        for leaf, response in enumerate(itertools.product(range(words), repeat=depth)):
            node, tokens, refs, slots = 0, [], [], []
            for d, word in enumerate(response):
                tokens.append(logp[d][x, node, word])
                refs.append(tree.logref[d][x, node, word])
                slots.append((d, node, word))
                node = node * words + word
            tokens_T, refs_T = torch.stack(tokens), torch.tensor(np.array(refs))
            p = tokens_T.sum().exp().detach()
            for d, n, word in slots:
                mass[d][x, n, word] += p
            ratio_T = (tokens_T - tokens_T.detach()).exp()
            gap_T = refs_T - tokens_T
            k_T = gap_T.exp() - gap_T - 1
            if place == "token":
                k_T = k_T * ratio_T
            loss = loss - p * advantage[x, leaf] * ratio_T.sum()
            if place == "loss":
                exact = tokens_T.sum().exp() * (tokens_T.sum() - refs_T.sum())
                loss = loss + beta * exact
            else:
                loss = loss + beta * p * k_T.sum()
    loss.backward()
    return max(float((level.grad / m).abs().max()) for level, m in zip(logits, mass, strict=True))


@pytest.mark.parametrize("place", ["loss", "token", "token_k3"])
@pytest.mark.parametrize("scale", ["none", "group", "batch", "gdpo"])
def test_the_gradient_of_trls_loss_vanishes_there(place: str, scale: str) -> None:
    tree, beta = draw(2), 1.5
    found = fixed_point(tree, weights=W, beta=beta, scale=scale, kl=place)
    assert found.residual < 1e-9
    p, r, w = np.exp(found.leaf_logp), tree.leaf_rewards, np.array(W)
    centred = r - np.einsum("pm,pmk->pk", p, r)[:, None]
    spread = lambda x: np.sqrt(np.einsum("pm,pm->p", p, x**2))[:, None]  # noqa: E731
    advantage = centred @ w
    if scale == "group":
        advantage = advantage / (spread(advantage) + 1e-4)
    elif scale == "batch":
        total = r @ w
        mean = (p * total).sum() / 2
        advantage = advantage / (np.sqrt((p * (total - mean) ** 2).sum() / 2) + 1e-4)
    elif scale == "gdpo":
        z = np.stack([centred[..., k] / (spread(centred[..., k]) + 1e-4) for k in range(2)], axis=-1) @ w
        advantage = z / (np.sqrt((p * z**2).sum() / 2) + 1e-4)
    size = np.abs(advantage).max()
    assert surrogate_gradient(tree, found, advantage=advantage, beta=beta, place=place) < 1e-7 * size
    other = {"loss": "token", "token": "token_k3", "token_k3": "loss"}[place]
    assert surrogate_gradient(tree, found, advantage=advantage, beta=beta, place=other) > 1e-3
    assert surrogate_gradient(tree, found, advantage=-advantage, beta=beta, place=place) > 1e-3


@pytest.mark.parametrize("scale", ["none", "group", "gdpo"])
def test_following_the_expected_gradient_ends_at_the_fixed_point(scale: str) -> None:
    """20,000 small steps of plain gradient ascent on logits, one prompt, one token: the training run itself."""
    tree, beta = draw(3, words=4, length=1, prompts=1), 1.5
    ref, r, w = np.exp(tree.logref[0][0, 0]), tree.rewards[0][0, 0], np.array(W)
    logits = np.log(ref)
    for _ in range(20_000):
        p = np.exp(logits - logits.max())
        p /= p.sum()
        centred = r - p @ r
        if scale == "gdpo":
            centred = centred / (np.sqrt(p @ centred**2) + 1e-4)
        advantage = centred @ w
        if scale != "none":
            advantage = advantage / (np.sqrt(p @ advantage**2) + 1e-4)
        gap = np.log(p / ref)
        logits = logits + 0.1 * p * (advantage - beta * (gap - p @ gap))
    found = fixed_point(tree, weights=W, beta=beta, scale=scale, kl="loss")
    assert np.exp(found.leaf_logp[0]) == pytest.approx(p, abs=1e-6)


def test_gdpo_is_an_optimum_of_other_weights_on_each_prompt_and_of_none_over_prompts() -> None:
    """log p/ref = sum_k c_k r_k + const, c_k = w_k / ((sigma_k(p) + eps) (batch_std + eps) beta)."""
    tree, beta = draw(4, prompts=3), 2.0
    found = fixed_point(tree, weights=W, beta=beta, scale="gdpo", kl="loss")
    p, r = np.exp(found.leaf_logp), tree.leaf_rewards
    mean = np.einsum("pm,pmk->pk", p, r)
    sigma = np.sqrt(np.einsum("pm,pmk->pk", p, (r - mean[:, None]) ** 2))
    z = ((r - mean[:, None]) / (sigma[:, None] + 1e-4)) @ np.array(W)
    batch = math.sqrt(float((p * z**2).sum()) / 3)
    c = np.array(W) / ((sigma + 1e-4) * (batch + 1e-4) * beta)
    constant = found.leaf_logp - tree.leaf_logref - np.einsum("pmk,pk->pm", r, c)
    assert np.ptp(constant, axis=-1).max() < 1e-8
    assert found.tilt / beta == pytest.approx(c, rel=1e-8)
    ratio = c[:, 0] / c[:, 1]
    assert ratio.max() / ratio.min() > 1.2
    _, far = nearest_tilt(tree, found.leaf_logp, directions=np.eye(2))
    assert far > 1e-3  # of no weights at any beta
    for prompt in range(3):
        alone = Tree(*(tuple(x[prompt : prompt + 1] for x in part) for part in (tree.logref, tree.rewards)), 3)
        tilt, near = nearest_tilt(alone, found.leaf_logp[prompt : prompt + 1], directions=np.eye(2))
        assert near == pytest.approx(0, abs=1e-10) and tilt == pytest.approx(c[prompt], rel=1e-4)
        _, asked = nearest_tilt(alone, found.leaf_logp[prompt : prompt + 1], directions=np.array([W]))
        assert asked > 1e-4  # but of the asked weights at no beta


def test_gdpo_does_not_see_the_scale_of_a_reward() -> None:
    tree = draw(5)
    louder = Tree(tree.logref, tuple(r * np.array([1.0, 100.0]) for r in tree.rewards), tree.branching)
    law, scaled = (fixed_point(t, weights=W, beta=2.0, scale="gdpo", kl="loss").leaf_logp for t in (tree, louder))
    assert np.exp(scaled) == pytest.approx(np.exp(law), abs=1e-3)  # up to TRL's 1e-4 beside the deviation
    plain = [fixed_point(t, weights=W, beta=2.0, kl="loss").leaf_logp for t in (tree, louder)]
    assert np.abs(np.exp(plain[0]) - np.exp(plain[1])).max() > 0.2


def test_one_hot_weights_make_gdpo_group_scaling() -> None:
    tree = draw(6, prompts=1)
    a, b = (fixed_point(tree, weights=(1.0, 0.0), beta=2.0, scale=s, kl="loss").leaf_logp for s in ("gdpo", "group"))
    assert np.exp(a) == pytest.approx(np.exp(b), abs=1e-3)  # z-scored twice: a second 1e-4


def test_group_scaling_of_one_prompt_is_the_same_weights_at_another_beta() -> None:
    tree, beta = draw(7, prompts=1), 1.0
    found = fixed_point(tree, weights=W, beta=beta, scale="group", kl="loss")
    p = np.exp(found.leaf_logp)
    total = tree.leaf_rewards @ np.array(W)
    sigma = math.sqrt(float((p * (total - (p * total).sum()) ** 2).sum()))
    other = optimum(tree, weights=W, beta=beta * (sigma + 1e-4))
    assert found.leaf_logp == pytest.approx(leaf_logprobs(tree, other), abs=1e-8)
    assert abs(sigma - 1) > 0.05
    two = draw(7, prompts=2)
    pooled = fixed_point(two, weights=W, beta=beta, scale="group", kl="loss")
    assert nearest_tilt(two, pooled.leaf_logp, directions=np.array([W]))[1] > 1e-4  # two prompts, two betas


def test_a_three_objective_world() -> None:
    """K = 3, and K = 2 when the third weight is 0."""
    tree = draw(8, objectives=3)
    two = Tree(tree.logref, tuple(r[..., :2] for r in tree.rewards), tree.branching)
    for scale in ("none", "group", "batch", "gdpo"):
        a = fixed_point(tree, weights=(*W, 0.0), beta=2.0, scale=scale, kl="token").leaf_logp
        b = fixed_point(two, weights=W, beta=2.0, scale=scale, kl="token").leaf_logp
        assert a == pytest.approx(b, abs=1e-7)
        assert fixed_point(tree, weights=(0.2, 0.3, 0.5), beta=2.0, scale=scale, kl="loss").residual < 1e-9


def test_grpo_kl_is_exact_for_one_token_and_not_for_two() -> None:
    one, two = draw(9, length=1), draw(9, length=2)
    star = leaf_logprobs(one, optimum(one, weights=W, beta=0.5))
    assert fixed_point(one, weights=W, beta=0.5, kl="token").leaf_logp == pytest.approx(star, abs=1e-10)
    found = fixed_point(two, weights=W, beta=0.5, kl="token").leaf_logp
    assert regret(two, found, weights=W, beta=0.5) > 1e-3


def test_grpo_kl_on_two_tokens_by_hand() -> None:
    """ref uniform over two words; "aa" earns log 3, all else 0; beta 1.

    After "a": p(a) = 3/4, mean value 3/4 log 3, so p(first = a) = 3^.75 / (3^.75 + 1). The optimum: soft value log 2,
    so 2 / 3; both with 3/4 behind it.
    """
    reward = np.zeros((1, 2, 2, 1))
    reward[0, 0, 0, 0] = math.log(3)
    half = (np.log(np.full((1, 1, 2), 0.5)), np.log(np.full((1, 2, 2), 0.5)))
    tree = Tree(half, (np.zeros((1, 1, 2, 1)), reward), 2)
    token = np.exp(fixed_point(tree, weights=(1.0,), beta=1.0, kl="token").conditionals[0][0, 0, 0])
    assert token == pytest.approx(3**0.75 / (3**0.75 + 1), abs=1e-12) and token == pytest.approx(0.695, abs=1e-3)
    assert np.exp(optimum(tree, weights=(1.0,), beta=1.0)[0][0, 0, 0]) == pytest.approx(2 / 3, abs=1e-12)


def test_uncorrected_k3_is_a_forward_kl() -> None:
    """One token, ref (1/2, 1/2), rewards (1, 0), beta 1: 1 = .5 / (lam - 1) + .5 / lam, lam = 1 + 1 / sqrt 2.

    p = (.5 sqrt 2, 1 - .5 sqrt 2) = (.7071, .2929), where the reverse KL gives sigmoid(1) = .7311.
    """
    tree = Tree((np.log(np.full((1, 1, 2), 0.5)),), (np.array([1.0, 0.0]).reshape(1, 1, 2, 1),), 2)
    p = np.exp(fixed_point(tree, weights=(1.0,), beta=1.0, kl="token_k3").leaf_logp[0])
    assert p == pytest.approx([math.sqrt(0.5), 1 - math.sqrt(0.5)], abs=1e-12)
    assert np.exp(optimum(tree, weights=(1.0,), beta=1.0)[0][0, 0, 0]) == pytest.approx(1 / (1 + math.exp(-1)))


@pytest.mark.parametrize("beta", [1e-3, 0.1, 10.0])
def test_the_forward_kl_solver_at_its_ends(beta: float) -> None:
    """Tiny reference masses, ties of the best, impossible slots: masses sum to 1 and p (lambda - Q) = beta ref."""
    ref = np.array([[[1e-14, 0.3, 0.3, 0.4 - 1e-14, 0.0]]])
    q = np.array([[[1.0, 0.5, 0.5, -2.0, 3.0]]])
    with np.errstate(divide="ignore"):
        logref = np.log(ref)
    (logp,) = solve(Tree((logref,), (q[..., None],), 5), (q,), beta=beta, kl="token_k3")
    p = np.exp(logp[0, 0])
    assert p.sum() == pytest.approx(1, abs=1e-12) and p[4] == 0
    lam = beta * ref[0, 0, :4] / p[:4] + q[0, 0, :4]
    assert lam == pytest.approx(lam[1], rel=1e-9)


def test_finite_groups_by_brute_force() -> None:
    """E[A | y] over every ordered group of three from four arms, with a loop over TRL's formula."""
    rng = np.random.default_rng(10)
    rewards, mass, w = rng.normal(size=(4, 2)), rng.dirichlet(np.ones(4)), np.array(W)
    for scale in ("none", "group", "gdpo"):
        expected, square = np.zeros(4), 0.0
        for own in range(4):
            for others in itertools.product(range(4), repeat=2):
                group = rewards[[own, *others]]
                if scale == "gdpo":
                    z = (group - group.mean(0)) / (group.std(0, ddof=1) + 1e-4) @ w
                else:
                    total = group @ w
                    z = total - total.mean()
                    if scale == "group":
                        z = z / (total.std(ddof=1) + 1e-4)
                expected[own] += mass[list(others)].prod() * z[0]
                square += mass[own] * mass[list(others)].prod() * z[0] ** 2
        found, found_square = GroupAdvantages(rewards, weights=w, scale=scale, groups=Groups(3))(mass)
        assert found == pytest.approx(expected, abs=1e-10) and found_square == pytest.approx(square, abs=1e-10)


def test_drawn_groups_agree_with_enumerated_ones() -> None:
    """20,000 seeded draws against the multisets: within 5 standard errors (|A| below 2.5, so .09)."""
    rng = np.random.default_rng(11)
    rewards, mass, w = rng.normal(size=(6, 2)), rng.dirichlet(np.ones(6)), np.array(W)
    exact = GroupAdvantages(rewards, weights=w, scale="gdpo", groups=Groups(8))(mass)
    wide = np.concatenate([rewards, rng.normal(size=(60, 2))])  # too many to enumerate; the new ones have no mass
    drawn = GroupAdvantages(wide, weights=w, scale="gdpo", groups=Groups(8, draws=20_000, seed=0))(
        np.append(mass, np.zeros(60))
    )
    assert drawn[0][:6] == pytest.approx(exact[0], abs=0.09) and drawn[1] == pytest.approx(exact[1], abs=0.05)
    with pytest.raises(ValueError, match="give draws"):
        GroupAdvantages(wide, weights=w, scale="gdpo", groups=Groups(8))
    with pytest.raises(ValueError, match="at least two"):
        Groups(1)


def test_a_group_that_holds_its_own_mean_shrinks_the_advantage() -> None:
    """Unscaled in groups of G with the KL in the loss: the optimum of beta G / (G - 1), as the mean includes y."""
    tree = draw(12, words=3, length=1)
    for group in (2, 4):
        found = fixed_point(tree, weights=W, beta=0.6, kl="loss", groups=Groups(group))
        star = leaf_logprobs(tree, optimum(tree, weights=W, beta=0.6 * group / (group - 1)))
        assert found.leaf_logp == pytest.approx(star, abs=1e-7)


def test_large_groups_approach_the_limit() -> None:
    tree = draw(13, words=3, length=1, prompts=2)
    for scale in ("group", "batch", "gdpo"):
        limit = np.exp(fixed_point(tree, weights=W, beta=2.0, scale=scale, kl="loss").leaf_logp)
        gaps = []
        for group in (4, 16, 64, 256):
            found = fixed_point(tree, weights=W, beta=2.0, scale=scale, kl="loss", groups=Groups(group))
            assert found.residual < 1e-9
            gaps.append(float(np.abs(np.exp(found.leaf_logp) - limit).max()))
        assert gaps == sorted(gaps, reverse=True) and gaps[-1] < 0.05 * gaps[0]


def test_impossible_rules_are_refused() -> None:
    tree = draw(0)
    for wrong in ({"scale": "layer"}, {"kl": "nowhere"}, {"weights": (1.0,)}):
        with pytest.raises(ValueError, match="no rule"):
            fixed_point(tree, **{"weights": W, "beta": 1.0, **wrong})
    with pytest.raises(ValueError, match="z-score the KL"):
        fixed_point(tree, weights=W, beta=1.0, scale="gdpo", kl="reward")


def specialists(tree: Tree, beta: float):
    return [optimum(tree, weights=e, beta=beta) for e in np.eye(tree.objectives)]


@pytest.mark.parametrize("length", [1, 3])
def test_sequence_mod_is_the_optimum(length: int) -> None:
    tree, beta = draw(14, length=length, objectives=3), 0.3
    w = (0.2, 0.3, 0.5)
    star = leaf_logprobs(tree, optimum(tree, weights=w, beta=beta))
    mixed = sequence_mod([leaf_logprobs(tree, s) for s in specialists(tree, beta)], weights=w)
    assert np.exp(mixed) == pytest.approx(np.exp(star), abs=1e-12)
    token = leaf_logprobs(tree, token_mod(specialists(tree, beta), weights=w))
    if length == 1:
        assert np.exp(token) == pytest.approx(np.exp(star), abs=1e-12)
    else:
        assert kl(token, star).min() > 1e-3
    for k in range(3):
        one = token_mod(specialists(tree, beta), weights=np.eye(3)[k])
        assert leaf_logprobs(tree, one) == pytest.approx(leaf_logprobs(tree, specialists(tree, beta)[k]), abs=1e-12)


def test_token_mod_by_hand_on_two_tokens() -> None:
    """ref uniform, beta 1, w = (.5, .5). After "a": r_1 = (log 3, 0), r_2 = (0, log 3); after "b" both 0.

    Specialists: after "a" (3/4, 1/4) and (1/4, 3/4), first token 2 : 1 in both. Products: first token 2/3, then 1/2
    each. The optimum: w.r = log 3 / 2 for both words after "a", so first token sqrt 3 / (sqrt 3 + 1) = .634.
    """
    half = (np.log(np.full((1, 1, 2), 0.5)), np.log(np.full((1, 2, 2), 0.5)))
    reward = np.zeros((1, 2, 2, 2))
    reward[0, 0, 0, 0] = reward[0, 0, 1, 1] = math.log(3)
    tree = Tree(half, (np.zeros((1, 1, 2, 2)), reward), 2)
    token = leaf_logprobs(tree, token_mod(specialists(tree, 1.0), weights=(0.5, 0.5)))
    assert np.exp(token[0]) == pytest.approx([1 / 3, 1 / 3, 1 / 6, 1 / 6], abs=1e-12)
    first = math.sqrt(3) / (math.sqrt(3) + 1)
    star = np.exp(leaf_logprobs(tree, optimum(tree, weights=(0.5, 0.5), beta=1.0))[0])
    assert star == pytest.approx([first / 2, first / 2, (1 - first) / 2, (1 - first) / 2], abs=1e-12)


def test_nearest_tilt_finds_its_own_optimum_and_minimises() -> None:
    tree = draw(15, prompts=3)
    logp = leaf_logprobs(tree, solve(tree, payoff_of(tree, np.array([0.7, 1.9])), beta=1.0, kl="reward"))
    tilt, far = nearest_tilt(tree, logp, directions=np.eye(2))
    assert tilt == pytest.approx([0.7, 1.9], abs=1e-6) and far == pytest.approx(0, abs=1e-12)
    rng = np.random.default_rng(0)
    other = np.log(rng.dirichlet(np.ones(9), size=3))
    tilt, far = nearest_tilt(tree, other, directions=np.array([W]))
    assert tilt == pytest.approx(tilt @ np.array(W) / np.dot(W, W) * np.array(W))
    for factor in (0.9, 1.1):
        near = leaf_logprobs(tree, solve(tree, payoff_of(tree, tilt * factor), beta=1.0, kl="reward"))
        assert kl(other, near).mean() > far


def test_advantage_tilts_of_the_reference_by_hand() -> None:
    """One prompt, two equal responses of rewards (0, 0) and (2, 4): deviations 1 and 2, of w.r .5 + .5: 1.5."""
    reward = np.array([[0.0, 0.0], [2.0, 4.0]]).reshape(1, 1, 2, 2)
    tree = Tree((np.log(np.full((1, 1, 2), 0.5)),), (reward,), 2)
    half = np.array([0.5, 0.5])
    scales, at = ("none", "group", "gdpo"), tree.leaf_logref
    tilt = {s: advantage_tilt(tree, at, weights=half, scale=s, eps=0.0)[0] for s in scales}
    assert tilt["none"] == pytest.approx([0.5, 0.5])
    assert tilt["group"] == pytest.approx([1 / 3, 1 / 3])
    assert tilt["gdpo"] == pytest.approx([0.5, 0.25])  # z-scores agree, so their mean has deviation 1
