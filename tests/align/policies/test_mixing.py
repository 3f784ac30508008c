"""Rules that mix next-token distributions, and mixed policies as token policies."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from align.errors import UserError
from align.models import load_model
from align.policies.base import ModelPolicy, TokenPolicy
from align.policies.mixed import MixedFamily, MixedPolicy, Mixture, log_linear, power_rescaled, power_solved
from align.preferences import Weights
from factories.made_mixing import ids_of, mixed, plain_logprobs
from factories.made_models import shifted
from factories.tiny_bandit import PROMPTS, WORDS, make_reference, make_tokenizer

END = WORDS.index("<end>")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three unrelated models of one vocabulary whose responses go on until `<end>`."""
    folder = tmp_path_factory.mktemp("models")
    return [make_reference(folder / str(seed), one_token=False, seed=seed) for seed in (1, 2, 3)]


# ------------------------------------------------------------------------------------- rules: identities on one step


def bisect(mass: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function is 1."""
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if mass(middle) > 1 else (low, middle)
    return (low + high) / 2


def optimum(ref: torch.Tensor, r: torch.Tensor, *, beta: float, alpha: float) -> torch.Tensor:
    """argmax of E[r] - beta D_alpha(pi || ref) by its first-order condition, `r - beta f'(pi/ref) = lambda`."""
    if alpha == 0:
        tilted = ref * (r / beta).exp()
        return tilted / tilted.sum()

    def pi(gap: float) -> torch.Tensor:  # lambda = max r - beta / alpha + gap
        return ref * (alpha / beta * (r.max() + gap - r)) ** (-1 / alpha)

    return pi(bisect(lambda gap: float(pi(gap).sum()), 1e-12, 1e3))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("betas", [(0.4, 0.4, 0.4), (0.2, 0.4, 1.1)])
def test_mixed_optima_are_the_optimum_of_the_mixed_reward(alpha: float, betas: tuple[float, ...]) -> None:
    """Twelve responses, three objectives, equal and unequal betas: sign, order and reference share are all in it."""
    torch.manual_seed(3)
    ref = torch.rand(12, dtype=torch.float64) + 0.05
    ref /= ref.sum()
    rewards, weights, beta = torch.randn(3, 12, dtype=torch.float64), (0.2, 0.5, 0.3), 0.4
    specialists = [optimum(ref, r, beta=b, alpha=alpha) for r, b in zip(rewards, betas, strict=True)]
    wanted = optimum(ref, sum(w * r for w, r in zip(weights, rewards, strict=True)), beta=beta, alpha=alpha)
    own = [w * b / beta for w, b in zip(weights, betas, strict=True)]
    logp = [ref.log(), *(p.log() for p in specialists)]
    found = Mixture((1 - sum(own), *own), alpha=alpha)(logp).exp()
    assert float((found - wanted).abs().max()) < 1e-12
    assert float((found - ref).abs().max()) > 0.05
    if betas[0] != betas[2]:  # leaving the reference out, or reading the betas upside down, is another distribution
        for wrong in ((0.0, *weights), (1 - sum(own), *(w * beta / b for w, b in zip(weights, betas, strict=True)))):
            assert float((Mixture(wrong, alpha=alpha)(logp).exp() - wanted).abs().max()) > 0.01
    if alpha:  # what the published rule leaves out
        rescaled = power_rescaled(logp[1:], coefficients=own, alpha=alpha).exp()
        assert float(rescaled.sum()) == pytest.approx(1) and float((rescaled - wanted).abs().sum()) > 0.02


def test_power_rules_by_hand() -> None:
    """Two tokens of .2, .8 and .6, .4: the harmonic means are .3 and 1.6 / 3, whose sum is .8333."""
    logp = [torch.tensor(p, dtype=torch.float64).log() for p in ((0.2, 0.8), (0.6, 0.4))]
    rescaled = power_rescaled(logp, coefficients=(0.5, 0.5), alpha=1.0).exp()
    assert rescaled.tolist() == pytest.approx([0.3 / (0.3 + 1.6 / 3), 1.6 / 3 / (0.3 + 1.6 / 3)])
    root = power_rescaled(logp, coefficients=(0.5, 0.5), alpha=0.5).exp()  # (mean of p^-1/2)^-2
    means = [(0.5 * x**-0.5 + 0.5 * y**-0.5) ** -2 for x, y in ((0.2, 0.6), (0.8, 0.4))]
    assert root.tolist() == pytest.approx([mean / sum(means) for mean in means])
    # With a uniform reference: 1/(2 pi) = 1/(2 h) + c for h = .3, .5333, that is pi = 1 / (1/h + 2c), summing to 1.
    uniform = torch.full((2,), 0.5, dtype=torch.float64).log()
    solved = power_solved([uniform, *logp], coefficients=(0.0, 0.5, 0.5), alpha=1.0)
    two_c = bisect(lambda c: 1 / (1 / 0.3 + c) + 1 / (3 / 1.6 + c), -1.8, 0.0)
    assert solved.exp().tolist() == pytest.approx([1 / (1 / 0.3 + two_c), 1 / (3 / 1.6 + two_c)], abs=1e-12)
    assert abs(float(solved.exp()[0]) - float(rescaled[0])) > 0.01


def test_alpha_towards_zero_is_log_linear_and_a_single_model_is_itself() -> None:
    torch.manual_seed(0)
    logp = list(torch.randn(3, 5, 7, dtype=torch.float64).log_softmax(-1))
    linear = log_linear(logp, coefficients=(0.0, 0.4, 0.6))
    nearly = Mixture((0.0, 0.4, 0.6), alpha=1e-6)(logp)
    assert torch.allclose(linear, nearly, atol=1e-5)
    assert torch.allclose(linear, (0.4 * logp[1] + 0.6 * logp[2]).log_softmax(-1), atol=1e-12)
    for alpha in (0.0, 0.5, 1.0):
        assert torch.allclose(Mixture((0.0, 1.0, 0.0), alpha=alpha)(logp), logp[1], atol=1e-10)


def test_what_a_component_never_draws_is_never_drawn() -> None:
    low = torch.tensor([0.5, 0.5, 0.0]).log()
    other = torch.tensor([0.1, 0.3, 0.6]).log()
    for coefficients in ((0.5, 0.5), (2.0, -1.0), (-1.0, 2.0)):
        p = log_linear([low, other], coefficients=coefficients).exp()
        assert float(p.sum()) == pytest.approx(1) and float(p[2]) == 0 and not p.isnan().any()
    for alpha in (0.5, 1.0):
        p = Mixture((0.0, 0.5, 0.5), alpha=alpha)([other, low, other]).exp()
        assert float(p.sum()) == pytest.approx(1) and float(p[2]) == 0
        p = Mixture((0.0, 0.5, 0.5), alpha=alpha)([low, other, other]).exp()  # nor what the reference never draws
        assert float(p.sum()) == pytest.approx(1) and float(p[2]) == 0


def test_the_solved_rule_stands_nearly_deterministic_models() -> None:
    """Three models sure of three different tokens, in float32, as models give them."""
    logits = 20 * torch.eye(3, 6)
    uniform = torch.zeros(6)
    logp = [x.log_softmax(-1) for x in (uniform, *logits)]
    p = Mixture((0.0, 0.2, 0.3, 0.5), alpha=1.0)(logp).exp()
    assert p.dtype == torch.float32 and float(p.sum()) == pytest.approx(1, abs=1e-6)
    assert float(p[:3].sum()) > 0.999 and p[2] > p[1] > p[0]


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({"coefficients": (0.0, 0.0)}, "not all 0"),
        ({"coefficients": (1.0, math.nan)}, "finite coefficients"),
        ({"coefficients": (1.0,), "alpha": -1.0}, "alpha must be 0"),
        ({"coefficients": (1.0,), "alpha": 1.0, "normaliser": "none"}, "root, rescale"),
        ({"coefficients": (0.0, 1.5, -0.5), "alpha": 1.0}, "no negative coefficient"),
        ({"coefficients": (-0.5, 1.5), "alpha": 1.0, "normaliser": "rescale"}, "no negative coefficient"),
    ],
)
def test_coefficients_that_no_rule_can_take(mixture: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Mixture(**mixture)


# ------------------------------------------------------------------------------------------------------------ policies


def test_a_mixed_policy_is_a_token_policy() -> None:
    assert isinstance(mixed(["a", "b"], 0.5, 0.5), TokenPolicy)
    with pytest.raises(UserError, match="2 models for 3 coefficients"):
        mixed(["a", "b"], 0.5, 0.25, 0.25)


@pytest.mark.parametrize("rule", [{}, {"alpha": 1.0}, {"alpha": 1.0, "normaliser": "rescale"}])
def test_next_tokens_are_the_rule_on_log_probabilities_not_on_logits(
    rule: dict[str, Any], models: list[str], tmp_path: Path
) -> None:
    """MOD's greedy branch mixes raw logits: adding 3 to all logits of one model would change its forward KL."""
    raised = shifted(models[1], tmp_path / "raised", lambda prompt, logits: torch.full_like(logits, 3.0))
    for prompt in PROMPTS:
        ids = ids_of(prompt)
        plain, moved = (
            mixed([models[0], models[0], other], 0.0, 0.3, 0.7, **rule).next_token_logprobs(ids, torch.ones_like(ids))
            for other in (models[1], raised)
        )
        assert torch.allclose(plain, moved, atol=1e-4)
        parts = [plain_logprobs(model, prompt) for model in models[:2]]
        if not rule:
            expected = (0.3 * parts[0] + 0.7 * parts[1]).log_softmax(-1)
            assert torch.allclose(plain[0].double(), expected, atol=1e-5)
        elif "normaliser" in rule:
            p = 1 / (0.3 / parts[0].exp() + 0.7 / parts[1].exp())
            assert torch.allclose(plain[0].double().exp(), p / p.sum(), atol=1e-5)
        with torch.no_grad():
            raw = [load_model(m).eval()(input_ids=ids).logits[0, -1] for m in (models[0], models[0], raised)]
        wrong = Mixture((0.0, 0.3, 0.7), **rule)(raw).log_softmax(-1)
        if "normaliser" in rule:  # and that is what raw logits do
            assert float((wrong - plain[0]).abs().max()) > 0.05


@pytest.mark.parametrize("vertex", [0, 1])
def test_at_a_vertex_it_is_the_model_logit_by_logit_and_token_by_token(vertex: int, models: list[str]) -> None:
    prompts = list(PROMPTS) * 20
    alone = ModelPolicy(models[vertex])
    family = MixedFamily(method="m", base=models[2], parts=tuple(models[:2]), gains=(1.0, 1.0))
    policy = family.policy(Weights.vertex(vertex, 2))
    assert policy.parts == (models[vertex],)
    ids = ids_of("y y :")
    ones = torch.ones_like(ids)
    ours, own = policy.next_token_logprobs(ids, ones), alone.next_token_logprobs(ids, ones)
    torch.testing.assert_close(ours, own, rtol=0, atol=1e-6)  # where its matrices lie may change a kernel's last bit
    texts = alone.generate(prompts, max_new_tokens=8, seed=4, batch_size=16)
    assert policy.generate(prompts, max_new_tokens=8, seed=4, batch_size=16) == texts
    assert len({len(text.split()) for text in texts}) > 3  # responses of many lengths
    assert policy.sequence_logprobs(prompts, texts) == pytest.approx(alone.sequence_logprobs(prompts, texts), abs=1e-5)


def test_three_models_that_agree_are_each_of_them(models: list[str]) -> None:
    """Every cache is used: K = 3 where MOD's code knows the cache of a third model by a fixed index."""
    prompts = list(PROMPTS) * 10
    texts = ModelPolicy(models[0]).generate(prompts, max_new_tokens=8, seed=1)
    assert mixed([models[0]] * 3, 0.2, 0.5, 0.3).generate(prompts, max_new_tokens=8, seed=1) == texts
    assert mixed([models[0]] * 3, 2.0, -1.5, 0.5).generate(prompts, max_new_tokens=8, seed=1) == texts


def test_a_third_objective_of_weight_zero_changes_nothing(models: list[str]) -> None:
    two = MixedFamily(method="m", base=models[0], parts=tuple(models[:2]), gains=(1.0, 1.0))
    three = MixedFamily(method="m", base=models[0], parts=tuple(models), gains=(1.0, 1.0, 1.0))
    ids = ids_of("x :")
    narrow, wide = two.policy(Weights((0.6, 0.4))), three.policy(Weights((0.6, 0.4, 0.0)))
    found = [p.next_token_logprobs(ids, torch.ones_like(ids)) for p in (narrow, wide)]
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)
    every = three.policy(Weights((0.6, 0.3, 0.1)))
    assert len(every.components()) == 3
    assert not torch.allclose(
        every.next_token_logprobs(ids, torch.ones_like(ids)), narrow.next_token_logprobs(ids, torch.ones_like(ids))
    )


def chain(policy: MixedPolicy, prompt: str, words: Sequence[str]) -> float:
    """log pi of words one after the other, each from a fresh pass."""
    total, path = 0.0, prompt.split()
    for word in words:
        ids = ids_of(" ".join(path))
        total += float(policy.next_token_logprobs(ids, torch.ones_like(ids))[0, WORDS.index(word)])
        path.append(word)
    return total


@pytest.mark.parametrize("rule", [{}, {"alpha": 0.5}])
def test_a_sequence_is_the_sum_of_its_next_tokens(rule: dict[str, Any], models: list[str]) -> None:
    policy = mixed(models, 0.1, 0.5, 0.4, **rule)
    prompts, replies = ["x :", "y y :", "x :"], [" A B", " D", ""]
    found = policy.sequence_logprobs(prompts, replies)
    wanted = [chain(policy, p, [*c.split(), "<end>"]) for p, c in zip(prompts, replies, strict=True)]
    assert found == pytest.approx(wanted, abs=1e-4)
    (cut,) = policy.sequence_logprobs(["x :"], [" A B"], max_new_tokens=2)
    assert cut == pytest.approx(chain(policy, "x :", ["A", "B"]), abs=1e-4)


def test_samples_follow_the_distribution_that_is_scored(models: list[str]) -> None:
    """Two sampled tokens, 81 cells (the first may end it): chi-squared with 80 degrees is below 125 in 99.9 %."""
    policy, count = mixed(models, 0.7, 0.6, -0.3), 20_000
    torch.manual_seed(0)
    ids = ids_of("x :").expand(count, -1)
    drawn = policy.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, pad_token_id=0)[
        :, 2:
    ]
    counts = Counter(tuple(row) for row in drawn.tolist())
    expected: dict[tuple[int, int], float] = {}
    for first, one in enumerate(WORDS):
        if first == END:
            expected[first, 0] = math.exp(chain(policy, "x :", [one]))  # padded
            continue
        for second, two in enumerate(WORDS):
            expected[first, second] = math.exp(chain(policy, "x :", [one, two]))
    assert sum(expected.values()) == pytest.approx(1, abs=1e-4) and set(counts) <= set(expected)
    common = {cell: count * p for cell, p in expected.items() if count * p >= 5}
    rest = count - sum(common.values())
    statistic = sum((counts[cell] - n) ** 2 / n for cell, n in common.items())
    statistic += (count - sum(counts[cell] for cell in common) - rest) ** 2 / max(rest, 1.0)
    assert len(common) > 20 and statistic < 125


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_prompts_of_different_lengths_are_answered_as_alone(
    architecture: str, models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left padding: probabilities and, drawing the likeliest token, whole responses of a batch are those of singles.

    GPT-2 adds its positions up, where Llama only reads differences between them.
    """
    if architecture == "gpt2":
        models = [
            make_reference(tmp_path / str(k), one_token=False, seed=k, architecture="gpt2", sharpness=20.0)
            for k in range(3)
        ]
    policy = mixed(models, 0.3, 0.3, 0.4)
    prompts = ["x :", "y y :", "x y x y :"]
    batch = make_tokenizer()(prompts, return_tensors="pt", padding=True, padding_side="left")
    together = policy.next_token_logprobs(batch["input_ids"], batch["attention_mask"])
    for row, prompt in enumerate(prompts):
        ids = ids_of(prompt)
        assert torch.allclose(together[row], policy.next_token_logprobs(ids, torch.ones_like(ids))[0], atol=1e-5)
        parts = [plain_logprobs(model, prompt) for model in models]
        expected = sum(a * part for a, part in zip((0.3, 0.3, 0.4), parts, strict=True))
        assert torch.allclose(together[row].double(), expected.log_softmax(-1), atol=1e-5)
    monkeypatch.setattr(torch, "multinomial", lambda p, n: p.argmax(-1, keepdim=True))
    width, lengths = batch["input_ids"].shape[1], []
    drawn = policy.model.generate(**batch, max_new_tokens=6, pad_token_id=0)[:, width:].tolist()
    for prompt, answer in zip(prompts, drawn, strict=True):
        if END in answer:
            answer = answer[: answer.index(END) + 1]  # padded after it
        ids, lengths = ids_of(prompt), [*lengths, len(answer)]
        alone = policy.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, pad_token_id=0
        )
        assert alone[0, ids.shape[1] :].tolist() == answer
        for token in answer:  # with the caches as without any
            assert int(policy.next_token_logprobs(ids, torch.ones_like(ids)).argmax()) == token
            ids = torch.cat([ids, torch.tensor([[token]])], 1)
    assert max(lengths) > 2


def test_a_list_of_ending_tokens_is_honoured(models: list[str], tmp_path: Path) -> None:
    one = [make_reference(tmp_path / str(seed), seed=seed) for seed in (1, 2)]  # every token ends a response
    ids = ids_of("x :").expand(5, -1)
    arguments = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "max_new_tokens": 4, "pad_token_id": 0}
    assert mixed(one, 0.5, 0.5).model.generate(**arguments).shape == (5, 3)
    drawn = mixed(models, 0.3, 0.3, 0.4).model.generate(**{**arguments, "max_new_tokens": 12})[:, 2:]
    for row in drawn.tolist():
        if END in row:
            assert set(row[row.index(END) + 1 :]) <= {0}
    with pytest.raises(UserError, match="end at different tokens"):
        _ = mixed([one[0], models[1]], 0.5, 0.5).model
    with pytest.raises(ValueError, match="own distribution"):
        mixed(one, 0.5, 0.5).model.generate(**arguments, temperature=0.5)
    with pytest.raises(RuntimeError, match="not trained"):
        mixed(one, 0.5, 0.5).model.train()


def test_too_long_prompts_and_other_vocabularies_are_told(models: list[str], tiny_model: Path) -> None:
    with pytest.raises(UserError, match="16 positions"):
        mixed(models, 0.3, 0.3, 0.4).generate(["x :"], max_new_tokens=15, seed=0)
    with pytest.raises(UserError, match="different tokenizers"):
        mixed([models[0], str(tiny_model)], 0.5, 0.5).generate(["x :"], max_new_tokens=1, seed=0)
