"""PPO's formulae by hand and its update against the exact policy gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from align.engines.on_policy.actor_critic import ActorCritic
from align.engines.on_policy.rollouts import Rollouts, draw, read, rollouts
from align.functional.policy_gradient import beyond_clip, clipped_policy_loss, gae, token_rewards, value_loss, whiten
from align.methods import ppo
from align.models import load_model
from align.models.sampling import Drawn, plain_sampling
from align.preferences import Weights
from factories.made_ppo import END, SETTINGS, enumerated, make_trainer
from factories.tiny_bandit import (
    BETA,
    PROMPT_ROWS,
    PROMPTS,
    WORDS,
    fit,
    make_reference,
    make_tokenizer,
)

NAN = math.nan


@pytest.fixture(scope="module")
def many_tokens(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model whose responses end at the end token only."""
    return make_reference(tmp_path_factory.mktemp("many") / "model", one_token=False, sharpness=3.0)


def t(*rows: Sequence[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def mask(*lengths: int, width: int) -> torch.Tensor:
    return torch.arange(width)[None] < torch.tensor(lengths)[:, None]


# ------------------------------------------------------------------------------------------------ formulae by hand


def test_token_rewards_carry_the_kl_of_each_token_and_the_score_at_the_last() -> None:
    # -0.5 (-1 + 1.5) = -0.25; -0.5 (-2 + 1) + 3 = 3.5; their sum is 3 - 0.5 * ((-1 - 2) - (-1.5 - 1)) = 3.25
    rewards = token_rewards(
        t([3.0], [1.0])[:, 0], logp_BT=t([-1, -2, NAN], [-1, -1, -1]), ref_BT=t([-1.5, -1, 7], [-1, -1, -1]),
        mask_BT=mask(2, 3, width=3), beta=0.5,
    )  # fmt: skip
    assert rewards.tolist() == [[-0.25, 3.5, 0.0], [0.0, 0.0, 1.0]]
    with pytest.raises(ValueError, match="no token"):
        token_rewards(t([3.0])[:, 0], logp_BT=t([-1]), ref_BT=t([-1]), mask_BT=mask(0, width=1), beta=0.5)


@pytest.mark.parametrize(
    ("lam", "long", "short"),
    [
        # d = (1 + 1 - 0.5, 0 - 1 - 1, 2 + 1) = (1.5, -2, 3); the shorter row ends on 2: d = (1 - 1 - 0.5, 2 + 1)
        (0.0, [1.5, -2.0, 3.0], [-0.5, 3.0, 0.0]),
        (1.0, [2.5, 1.0, 3.0], [2.5, 3.0, 0.0]),  # the rest of the return minus the value: 3 - 0.5, 2 - 1, 2 + 1
        (0.5, [1.25, -0.5, 3.0], [1.0, 3.0, 0.0]),  # -2 + 1.5, 1.5 - 0.25; -0.5 + 1.5
    ],
)
def test_gae_by_hand(lam: float, long: list[float], short: list[float]) -> None:
    """What lies behind the end (here not even a number) is neither reward nor a value to bootstrap from."""
    advantages = gae(
        t([1, 0, 2], [1, 2, NAN]), values_BT=t([0.5, 1, -1], [0.5, -1, NAN]), mask_BT=mask(3, 2, width=3), lam=lam
    )
    assert advantages.tolist() == [long, short]


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.5, 2.0, -2.4, 0.0),  # min(3, 1.2 * 2): a good token is pulled up to 1.2, and no farther
        (0.5, 2.0, -1.0, -1.0),  # min(1, 0.8 * 2): a good token that fell is pulled back, d/dlogp (-A rho) = -1
        (1.5, -2.0, 3.0, 3.0),  # min(-3, -2.4): a bad token that rose is pushed back
        (0.5, -2.0, 1.6, 0.0),  # min(-1, 0.8 * -2): a bad token is pushed down to 0.8, and no farther
        (1.1, 2.0, -2.2, -2.2),
        (1.1, -2.0, 2.2, 2.2),
    ],
)
def test_clipping_by_hand(ratio: float, advantage: float, loss: float, gradient: float) -> None:
    old = t([-2.0])
    logp = (old + math.log(ratio)).requires_grad_()
    found = clipped_policy_loss(logp, old_BT=old, advantages_BT=t([advantage]), mask_BT=mask(1, width=1), clip=0.2)
    assert found.tolist() == pytest.approx([loss])
    (slope,) = torch.autograd.grad(found.sum(), logp)
    assert slope.tolist() == [pytest.approx([gradient])]
    assert beyond_clip(logp.detach(), old_BT=old, mask_BT=mask(1, width=1), clip=0.2) == (abs(ratio - 1) > 0.2)


def test_the_policy_loss_sums_over_tokens_and_padding_carries_none() -> None:
    """Division by the length (per-response token means) would favour short good and long bad responses."""
    old, masked = t([-1, -1, -1], [-1, 9, -9]), mask(3, 1, width=3)
    logp = t([-1, -1, -1], [-1, NAN, 1e9]).requires_grad_()
    loss = clipped_policy_loss(logp, old_BT=old, advantages_BT=t([1, 2, 3], [5, NAN, 1e9]), mask_BT=masked, clip=0.2)
    assert loss.tolist() == [-6.0, -5.0]
    (slope,) = torch.autograd.grad(loss.sum(), logp)
    assert slope.tolist() == [[-1, -2, -3], [-5, 0, 0]]
    assert beyond_clip(logp.detach(), old_BT=old, mask_BT=masked, clip=0.2) == 0
    values = t([1, 2, 3], [1, NAN, 1e9]).requires_grad_()
    lost = value_loss(values, old_BT=old, returns_BT=t([0, 2, 1], [4, NAN, 0]), mask_BT=masked, clip=0.5)
    assert lost.tolist()[1] == pytest.approx(20.25 / 2)  # held at -1 + 0.5: (-0.5 - 4)^2 = 20.25, or (1 - 4)^2 = 9
    (slope,) = torch.autograd.grad(lost.sum(), values)
    assert slope[1, 1:].tolist() == [0, 0]


def test_value_clipping_by_hand() -> None:
    one = mask(1, width=1)

    def loss(value: float, target: float, clip: float) -> float:
        return value_loss(t([value]), old_BT=t([0.0]), returns_BT=t([target]), mask_BT=one, clip=clip).item()

    assert loss(1.0, 0.3, 0.2) == pytest.approx(0.245)  # 0.7^2 / 2 beats (0.2 - 0.3)^2 / 2
    assert loss(1.0, 1.5, 0.2) == pytest.approx(0.845)  # held at 0.2: 1.3^2 / 2 beats 0.5^2 / 2
    assert loss(1.0, 1.5, 0.0) == pytest.approx(0.125)


def test_whitening_is_one_shift_and_one_scale_for_all_drawn_tokens() -> None:
    found = whiten(t([1, 2, NAN], [6, 7, 9]), mask_BT=mask(2, 3, width=3))  # mean 5, squares 16 + 9 + 1 + 4 + 16 = 46
    spread = math.sqrt(46 / 5)
    assert found.flatten().tolist() == pytest.approx([-4 / spread, -3 / spread, 0, 1 / spread, 2 / spread, 4 / spread])


def some_reward(prompt: str, ids: Sequence[int]) -> float:
    """A reward of the whole response, in no relation to its length or tokens."""
    return math.sin(1.0 + 3.7 * len(prompt) + sum((i + 2) ** 2 * token for i, token in enumerate(ids)))


def plain_logprobs(model: Any, prompt: str, ids: Sequence[int]) -> list[torch.Tensor]:
    """Log-probability of each token by one pass without padding."""
    head = [WORDS.index(word) for word in prompt.split()]
    logp = model(input_ids=torch.tensor([[*head, *ids]])).logits[0].log_softmax(-1)
    return [logp[len(head) + i - 1, token] for i, token in enumerate(ids)]


def exact_j(model: Any, frozen: Any, pairs: Sequence[tuple[str, list[int]]]) -> torch.Tensor:
    """J by enumeration, differentiable: the mean over prompts of sum_y pi(y) (r(y) - beta log(pi(y) / ref(y)))."""
    total = torch.zeros(())
    for prompt, ids in pairs:
        logp = sum(plain_logprobs(model, prompt, ids))
        with torch.no_grad():
            ref = sum(plain_logprobs(frozen, prompt, ids))
        total = total + logp.exp() * (some_reward(prompt, ids) - BETA * (logp - ref))  # type: ignore[attr-defined]
    return total / len(PROMPTS)


def exact_values(actor: ActorCritic, pairs: Sequence[tuple[str, list[int]]]) -> torch.Tensor:
    """(B, 2) expected rest of the KL-penalised return before each of two tokens, by enumeration."""
    rest: dict[tuple[str, tuple[int, ...]], float] = {}
    for prompt, ids in pairs:
        ours, theirs = (plain_logprobs(m, prompt, ids) for m in (actor.policy, actor.frozen))
        for start in range(len(ids)):
            chance = math.exp(sum(x.item() for x in ours[start:]))
            log_ratio = sum(a.item() - b.item() for a, b in zip(ours[start:], theirs[start:], strict=True))
            state = (prompt, tuple(ids[:start]))
            rest[state] = rest.get(state, 0.0) + chance * (some_reward(prompt, ids) - BETA * log_ratio)
    rows = [[rest[prompt, tuple(ids[:i])] for i in range(len(ids))] for prompt, ids in pairs]
    return torch.tensor([row + [0.0] * (2 - len(row)) for row in rows])


def expected_gradient(trainer: ppo.Trainer, batch: Rollouts, pairs: Sequence[tuple[str, list[int]]]) -> torch.Tensor:
    """Minus the gradient of PPO's whole first loss in expectation: each outcome weighted by its own probability."""
    scores = torch.tensor([some_reward(prompt, ids) for prompt, ids in pairs])
    targets, _ = trainer.targets(batch, scores_B=scores)
    policy_B, value_B, beyond = trainer.losses(batch, targets)
    assert beyond == 0
    chance_B = targets.old_BT.sum(-1).exp()
    assert chance_B.sum().item() == pytest.approx(len(PROMPTS), abs=1e-5)
    return flat_gradient(-(chance_B * (policy_B + value_B)).sum() / len(PROMPTS), trainer.actor.policy)


def flat_gradient(scalar: torch.Tensor, model: Any) -> torch.Tensor:
    gradients = torch.autograd.grad(scalar, list(model.parameters()), allow_unused=True)
    return torch.cat([
        torch.zeros_like(p).flatten() if g is None else g.flatten()
        for g, p in zip(gradients, model.parameters(), strict=True)
    ])  # fmt: skip


@pytest.mark.parametrize("depth", [1, 2])
def test_the_first_update_is_the_exact_gradient_of_j(depth: int, reference: str, many_tokens: str) -> None:
    """With whole returns, whatever the value head says; on one-token and on two-token responses of both lengths."""
    trainer = make_trainer(reference if depth == 1 else many_tokens)
    batch, pairs = enumerated(depth)
    assert batch.responses() == [ids for _, ids in pairs]
    exact = flat_gradient(exact_j(trainer.actor.policy, trainer.actor.frozen, pairs), trainer.actor.policy)
    found = expected_gradient(trainer, batch, pairs)
    assert exact.abs().max() > 0.05
    assert torch.allclose(found, exact, atol=1e-5, rtol=1e-4)


def test_gae_has_the_gradient_of_j_with_exact_values_only(many_tokens: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(many_tokens, lam=0.5, batch_size=146)  # one pass: the values below are of all rows
    batch, pairs = enumerated(2)
    exact = flat_gradient(exact_j(trainer.actor.policy, trainer.actor.frozen, pairs), trainer.actor.policy)
    biased = expected_gradient(trainer, batch, pairs)
    assert (biased - exact).abs().max() > 0.02  # what `describe` warns of
    values = exact_values(trainer.actor, pairs)
    monkeypatch.setattr(trainer.actor, "read", lambda batch: (read(trainer.actor.policy, batch)[0], values))
    assert torch.allclose(expected_gradient(trainer, batch, pairs), exact, atol=1e-5, rtol=1e-4)


def test_values_are_fitted_to_the_rest_of_the_return(many_tokens: str) -> None:
    """Whatever the head said before, and whether or not the policy's advantages are whitened."""
    batch, pairs = enumerated(2)
    scores = torch.tensor([some_reward(*pair) for pair in pairs])
    for whitened in (False, True):
        trainer = make_trainer(many_tokens, whiten=whitened)
        targets, _ = trainer.targets(batch, scores_B=scores)
        log_ratio_BT = read(trainer.actor.policy, batch)[0].detach() - read(trainer.actor.frozen, batch)[0]
        first = scores - BETA * log_ratio_BT.sum(-1)
        assert targets.values_BT.abs().max() > 0.5
        assert torch.allclose(targets.returns_BT[:, 0], first, atol=1e-5)
        assert torch.allclose(
            targets.returns_BT[:, 1], (first + BETA * log_ratio_BT[:, 0]) * batch.mask_BT[:, 1], atol=1e-5
        )


def test_whitening_keeps_the_direction_of_the_gradient(many_tokens: str) -> None:
    batch, pairs = enumerated(2)
    plain, whitened = (expected_gradient(make_trainer(many_tokens, whiten=w), batch, pairs) for w in (False, True))
    scale = (whitened @ plain) / (plain @ plain)
    assert not 0.9 < scale < 1.1
    assert torch.allclose(whitened, scale * plain, atol=1e-5, rtol=1e-3)


def test_a_real_update_steps_along_the_gradient_of_j(reference: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a uniform policy each outcome counts once: the loop's own mean, in passes of 5 rows, is the expectation."""
    trainer = make_trainer(reference, away=0.0, batch_size=5, gradient_accumulation=4, minibatches=1, max_grad_norm=0.0)
    head = trainer.actor.policy.lm_head.weight
    torch.nn.init.zeros_(head)
    batch, pairs = enumerated(1)
    exact = flat_gradient(exact_j(trainer.actor.policy, trainer.actor.frozen, pairs), trainer.actor.policy)
    targets, _ = trainer.targets(batch, scores_B=torch.tensor([some_reward(*pair) for pair in pairs]))
    monkeypatch.setattr(trainer.optimizer, "zero_grad", lambda: None)
    trainer.update(batch, targets)
    found = torch.cat([p.grad.flatten() for p in trainer.actor.policy.parameters()])
    assert torch.allclose(-found, exact, atol=1e-5) and exact.abs().max() > 0.05
    moved = head[head.grad.abs() > 1e-3].sign()
    assert torch.equal(moved, -head.grad[head.grad.abs() > 1e-3].sign())  # from 0, along +J


def test_clipping_the_gradient_leaves_the_heads_norm_apart(reference: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(reference, max_grad_norm=1e-3, minibatches=1)
    batch, pairs = enumerated(1)
    targets, _ = trainer.targets(batch, scores_B=torch.tensor([some_reward(*pair) for pair in pairs]))
    monkeypatch.setattr(trainer.optimizer, "zero_grad", lambda: None)
    trainer.update(batch, targets)
    for module in (trainer.actor.policy, trainer.actor.head):
        norm = torch.cat([p.grad.flatten() for p in module.parameters()]).norm().item()
        assert norm == pytest.approx(1e-3, rel=1e-2)


# ------------------------------------------------------------------------------------ what is sampled is what is scored


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_policy_that_is_sampled_is_the_policy_that_is_read(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At prompts of different lengths, learned positions included, and in spite of a checkpoint's own decoding rule."""
    model = load_model(make_reference(tmp_path, architecture=architecture, one_token=False, sharpness=3.0)).eval()
    model.generation_config.update(top_k=2, temperature=0.3, repetition_penalty=9.0, min_p=0.5, do_sample=True)
    before, generate, kept = model.generation_config, model.generate, []

    def recording(**inputs: Any) -> torch.Tensor:
        out = generate(**inputs, return_dict_in_generate=True, output_scores=True)
        kept.append(torch.stack(out.scores, 1).log_softmax(-1))  # after whatever generate() does to the logits
        return out.sequences

    monkeypatch.setattr(model, "generate", recording)
    torch.manual_seed(0)
    with plain_sampling(model, make_tokenizer(), max_tokens=4) as ends:
        assert ends == [END]
        batch = draw(model, make_tokenizer(), [*PROMPTS] * 8, ends=ends, batch_size=16)
    assert model.generation_config is before
    with torch.no_grad():
        logp_BT, _ = read(model, batch)
    assert {len(ids) for ids in batch.responses()} > {4} and batch.attend_BL[:, :3].sum(-1).unique().tolist() == [2, 3]
    at_sampling = kept[0].gather(-1, batch.response_ids_BT[..., None])[..., 0]
    assert torch.allclose(logp_BT[batch.mask_BT], at_sampling[batch.mask_BT], atol=1e-5)
    for row, (prompt, ids) in enumerate(zip([*PROMPTS] * 8, batch.responses(), strict=True)):
        alone = torch.stack(plain_logprobs(model, prompt, ids)).detach()
        assert torch.allclose(logp_BT[row, : len(ids)], alone, atol=1e-5)
        assert logp_BT[row, len(ids) :].abs().sum() == 0


def test_responses_end_at_the_first_ending_token_and_keep_it() -> None:
    """Negative KL and collapse came of runs that could not end (LLaMA-Factory#664, rewardedsoups#1)."""
    drawn = [[5, END, 6, END], [5, 6, 7, 8], [7, 0, 0, 0], [END, 0, 0, 0]]
    heads = [[2, 4], [2, 4, 4], [2, 4], [2, 4]]
    rows = [(head, Drawn.of(row, ends=[END, 7]).ids) for head, row in zip(heads, drawn, strict=True)]
    batch = rollouts(rows, pad_id=0, device="cpu")
    assert batch.responses() == [[5, END], [5, 6, 7], [7], [END]]
    assert batch.attend_BL.tolist()[0] == [0, 1, 1, 1, 1, 0]
    assert batch.rows(slice(2, 4)).ids_BL.tolist() == [[2, 4, 7, 0, 0], [2, 4, END, 0, 0]]  # no shared padding


def record_losses(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The ratios of drawn tokens in every policy loss from here on."""
    ratios: list[torch.Tensor] = []

    def spy(logp_BT: torch.Tensor, **others: Any) -> torch.Tensor:
        ratios.append((logp_BT - others["old_BT"])[others["mask_BT"]].detach().exp())
        return clipped_policy_loss(logp_BT, **others)

    monkeypatch.setattr(ppo, "clipped_policy_loss", spy)
    return ratios


def test_the_ratio_is_one_until_the_policy_moves(
    many_tokens: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ratios = record_losses(monkeypatch)
    config = ppo.Config(**{**SETTINGS, "max_completion_length": 3, "steps": 2, "minibatches": 1, "epochs": 2})
    fit(ppo, config, reference=many_tokens, weights=[Weights((0.3, 0.7))], out=tmp_path, prompts=PROMPT_ROWS)
    assert len(ratios) == 4
    for first, second in (ratios[:2], ratios[2:]):
        assert torch.equal(first, torch.ones_like(first))
        assert (second - 1).abs().max() > 1e-4
    split = record_losses(monkeypatch)
    config = ppo.Config(**{**SETTINGS, "max_completion_length": 3, "steps": 1, "minibatches": 4, "epochs": 1})
    fit(ppo, config, reference=many_tokens, weights=[Weights((0.3, 0.7))], out=tmp_path / "4", prompts=PROMPT_ROWS)
    assert len(split) == 4 and (split[0] - 1).abs().max() < 1e-5 < (split[3] - 1).abs().max()


def test_padding_changes_nothing(many_tokens: str) -> None:
    """Two columns more behind every response, of other tokens, and neither losses nor targets see them."""
    trainer = make_trainer(many_tokens)
    batch, pairs = enumerated(2)
    scores = torch.tensor([some_reward(*pair) for pair in pairs])
    wide = Rollouts(
        torch.cat([batch.ids_BL, torch.full((len(pairs), 2), 7)], -1),
        torch.cat([batch.attend_BL, torch.zeros(len(pairs), 2, dtype=torch.long)], -1),
        torch.cat([batch.mask_BT, torch.zeros(len(pairs), 2, dtype=torch.bool)], -1),
    )
    found = []
    for rows in (batch, wide):
        targets, measured = trainer.targets(rows, scores_B=scores)
        policy_B, value_B, _ = trainer.losses(rows, targets)
        assert not targets.advantages_BT[~rows.mask_BT].any() and not targets.returns_BT[~rows.mask_BT].any()
        found.append((policy_B, value_B, targets.advantages_BT[:, :2], torch.tensor(list(measured.values()))))
    for narrow, other in zip(*found, strict=True):
        assert torch.allclose(narrow, other, atol=1e-5)
