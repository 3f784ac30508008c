"""Mixtures of models: the rules against optima solved by hand, and the policy against plain forward passes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from made_models import make_adapter, shifted
from tiny_bandit import PROMPTS, WORDS, make_reference, make_tokenizer
from tiny_world import TINY, all_leaves, brute_force, make_model

from align import backbones
from align.backbones import ModelPool
from align.errors import UserError
from align.families import load_family
from align.mixing import MixedFamily, MixedModel, MixedPolicy, Mixture, log_linear, power_rescaled, power_solved
from align.models import load_model
from align.policies import ModelPolicy, TokenPolicy
from align.preferences import Direction, Weights
from align.testbed.exact import ExactModel, ExactPolicy
from align.testbed.vocabulary import build_tokenizer
from align.testbed.world import World
from evals.exact import ReferenceTables, outcomes

END = WORDS.index("<end>")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three unrelated models of one vocabulary whose responses go on until `<end>`."""
    folder = tmp_path_factory.mktemp("models")
    return [make_reference(folder / str(seed), one_token=False, seed=seed) for seed in (1, 2, 3)]


def mixed(models: Sequence[str], *coefficients: float, **rule: Any) -> MixedPolicy:
    return MixedPolicy(models, mixture=Mixture(coefficients, **rule), name="mixed")


def ids_of(prompt: str) -> torch.Tensor:
    return torch.tensor([[WORDS.index(word) for word in prompt.split()]])


def plain_logprobs(model: str, prompt: str) -> torch.Tensor:
    """(V,) from one forward pass without a cache, in float64."""
    with torch.no_grad():
        logits = load_model(model).eval()(input_ids=ids_of(prompt), use_cache=False).logits
    return logits[0, -1].double().log_softmax(-1)


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
    assert torch.equal(policy.next_token_logprobs(ids, ones), alone.next_token_logprobs(ids, ones))
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
    assert torch.equal(*(p.next_token_logprobs(ids, torch.ones_like(ids)) for p in (narrow, wide)))
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
    drawn = policy.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, pad_token_id=0
    )[:, 2:]
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


# ------------------------------------------------------------------------------------------- adapters on one backbone


def test_adapters_of_one_base_share_its_backbone(
    models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three adapters and their base, read in turn: each as if merged alone, and the base as if it had none."""
    import align.models

    adapters = [make_adapter(models[0], tmp_path / str(r), r=r, seed=r) for r in (1, 2, 3)]
    alone = [plain_logprobs(path, "x :") for path in (models[0], *adapters)]
    assert min(float((a - b).abs().max()) for i, a in enumerate(alone) for b in alone[:i]) > 0.05
    loaded: list[str] = []

    def counted(path: Any, **options: Any) -> Any:
        loaded.append(str(path))
        return load_model(path, **options)

    monkeypatch.setattr(align.models, "load_model", counted)
    coefficients = (-0.5, 0.6, 0.4, 0.5)
    policy = mixed([models[0], *adapters], *coefficients)
    views = [component.model for component in policy.components()]
    assert loaded == [models[0]]
    assert len({id(view.backbone.model) for view in views}) == 1
    for index in (3, 0, 1, 1, 0, 2, 3, 0):
        found = views[index].eval()(input_ids=ids_of("x :")).logits[0, -1].double().log_softmax(-1)
        assert torch.allclose(found, alone[index], atol=1e-5), index
    expected = sum(a * lp for a, lp in zip(coefficients, alone, strict=True)).log_softmax(-1)
    ids = ids_of("x :")
    assert torch.allclose(policy.next_token_logprobs(ids, torch.ones_like(ids))[0].double(), expected, atol=1e-5)
    texts = policy.generate(["x :", "y y :"] * 5, max_new_tokens=6, seed=0)
    full = [str(load_and_save(path, tmp_path / f"full{i}")) for i, path in enumerate(adapters)]
    assert mixed([models[0], *full], *coefficients).generate(["x :", "y y :"] * 5, max_new_tokens=6, seed=0) == texts
    policy.release()
    assert policy.pool._backbones == {}  # nothing keeps the model in memory
    assert policy.generate(["x :", "y y :"] * 5, max_new_tokens=6, seed=0) == texts


def load_and_save(adapter: str, folder: Path) -> Path:
    """The adapter merged into its base, as a full checkpoint."""
    from align.models import save_model

    return save_model(load_model(adapter), make_tokenizer(), folder)


def test_adapters_that_cannot_be_switched_are_refused(models: list[str], tmp_path: Path) -> None:
    biased = make_adapter(models[0], tmp_path / "biased", r=1, seed=0, bias="lora_only")
    with pytest.raises(UserError, match="trained biases"):
        mixed([models[0], biased], 0.5, 0.5).components()
    broken = make_adapter(models[0], tmp_path / "broken", r=1, seed=0)
    (Path(broken) / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match="no model could be read"):
        mixed([models[0], broken], 0.5, 0.5).components()
    (Path(broken) / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="names no base model"):
        mixed([models[0], broken], 0.5, 0.5).components()


def test_models_are_loaded_once_for_all_preferences(models: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import align.models

    loaded: list[str] = []

    def counted(path: Any, **options: Any) -> Any:
        loaded.append(str(path))
        return load_model(path, **options)

    monkeypatch.setattr(align.models, "load_model", counted)
    assert "load_model" not in vars(backbones)  # it is looked up when it is called, so the count above sees it
    family = MixedFamily(method="m", base=models[2], parts=tuple(models[:2]), gains=(1.0, 1.0))
    for w in (0.0, 0.3, 0.7, 1.0):
        family.policy(Weights((w, 1 - w))).components()
    assert sorted(loaded) == sorted(models[:2])  # the reference has coefficient 0 and is never read


# ------------------------------------------------------------------------------------------------------- exact values


class HandMixed:
    """The mixture as a model of `tiny_world`: plain forward passes and a loop over tokens, none of align.mixing."""

    def __init__(self, models: Sequence[Any], coefficients: Sequence[float]) -> None:
        self.models, self.coefficients = models, coefficients

    def __call__(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
        tables = [model(input_ids=input_ids, use_cache=False).logits[0, -1].tolist() for model in self.models]
        totals = [math.log(sum(math.exp(x) for x in table)) for table in tables]
        scores = [
            sum(a * (table[v] - t) for a, table, t in zip(self.coefficients, tables, totals, strict=True))
            for v in range(len(tables[0]))
        ]
        return SimpleNamespace(logits=torch.tensor([[scores]], dtype=torch.float64))


@pytest.mark.parametrize("coefficients", [(0.0, 0.4, 0.6), (-0.2, 0.4, 0.8)])
def test_exact_evaluation_is_the_sum_over_all_responses(coefficients: tuple[float, ...]) -> None:
    world = World(TINY)
    three = [make_model(seed=seed) for seed in (0, 1, 2)]
    pool = ModelPool.of(dict(zip("abc", three, strict=True)), build_tokenizer())
    policy = MixedPolicy("abc", mixture=Mixture(coefficients), name="mixed", pool=pool)
    prompt = world.test_prompts("none")[0]
    law = dict(all_leaves(HandMixed(three, coefficients), prompt.text, max_tokens=2))
    base = dict(all_leaves(three[0], prompt.text, max_tokens=2))
    assert sum(math.exp(v) for v in law.values()) == pytest.approx(1, abs=1e-9)
    expected = brute_force(world, prompt.topic, law, base)
    tables = ReferenceTables(world, ExactModel(three[0], name="reference"))
    (found,) = outcomes(ExactPolicy(policy), prompts=[prompt], tables=tables)
    assert found.values == pytest.approx(expected["values"], abs=1e-5)
    assert found.kl == pytest.approx(expected["kl"], abs=1e-5) and found.kl > 0.1
    assert found.malformed == pytest.approx(expected["malformed"], abs=1e-5)


def test_token_by_token_is_not_the_sequence_optimum() -> None:
    """The published proof is for whole responses: two steps by hand, next-token mixing against mixed responses."""
    one = {"A": 0.5, "B": 0.5, "AA": 0.9, "AB": 0.1, "BA": 0.5, "BB": 0.5}
    two = {"A": 0.5, "B": 0.5, "AA": 0.1, "AB": 0.9, "BA": 0.5, "BB": 0.5}
    sequence = {s: math.sqrt(one[s[0]] * one[s] * two[s[0]] * two[s]) for s in ("AA", "AB", "BA", "BB")}
    total = sum(sequence.values())
    after = [torch.tensor([[p["A"], p["B"]], [p["AA"], p["AB"]], [p["BA"], p["BB"]]]).log() for p in (one, two)]
    tokens = Mixture((0.5, 0.5))(after).exp()
    # Both models are torn after A (.9/.1 against .1/.9): whole responses avoid A, next tokens cannot see that coming.
    assert float(tokens[0, 0]) == pytest.approx(0.5)
    assert (sequence["AA"] + sequence["AB"]) / total == pytest.approx(0.3 / 0.8)


# ------------------------------------------------------------------------------------------------------------ families


def test_families_are_saved_and_found_again_after_a_move(models: list[str], tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "run.partial"
    own = str(shutil.copytree(models[1], folder / "specialists" / "two"))
    family = MixedFamily(
        method="mod",
        base=models[2],
        parts=(models[0], own),
        gains=(0.5, 2.0),
        alpha=1.0,
        normaliser="rescale",
        preferences=(Weights((0.5, 0.5)),),
        optimises={"0.5,0.5": "no J"},
    )
    family.save(folder)
    folder.rename(tmp_path / "run")
    again = load_family(tmp_path / "run")
    assert again.parts == (models[0], str(tmp_path / "run" / "specialists" / "two")) and again.base == models[2]
    assert (again.gains, again.alpha, again.normaliser, again.base_share) == ((0.5, 2.0), 1.0, "rescale", "rest")
    assert again.preferences == family.preferences and again.optimises == family.optimises
    assert again.point_cost == "decode" and again.domain == "all weights of 2 objectives"
    assert again.policy(Weights((0.9, 0.1))).mixture.coefficients == pytest.approx((0.35, 0.45, 0.2))
    hub = MixedFamily(method="mod", base="org/base", parts=("org/one", "org/two"), gains=(1.0, 1.0))
    hub.save(tmp_path / "run")
    assert load_family(tmp_path / "run").parts == ("org/one", "org/two")


def test_coefficients_of_a_family(models: list[str]) -> None:
    mod = MixedFamily(method="mod", base="base", parts=("a", "b", "c"), gains=(0.5, 1.0, 2.0))
    parts, mixture = mod.mixture((0.2, 0.5, 0.3))
    assert parts == ("base", "a", "b", "c") and mixture.coefficients == pytest.approx((-0.2, 0.1, 0.5, 0.6))
    assert mod.mixture((0.0, 1.0, 0.0)) == (("b",), Mixture((1.0,)))
    equal = MixedFamily(method="mod", base="base", parts=("a", "b"), gains=(1.0, 1.0))
    assert equal.mixture((0.25, 0.75)) == (("a", "b"), Mixture((0.25, 0.75)))  # the reference cancels and is not read
    solved = MixedFamily(method="mod", base="base", parts=("a", "b"), gains=(1.0, 1.0), alpha=1.0)
    assert solved.mixture((0.25, 0.75))[0] == ("base", "a", "b")
    guided = MixedFamily(method="genarm", base="base", parts=("a", "b"), gains=(1.0, 4.0), base_share="whole")
    assert guided.mixture((0.5, 0.5)) == (("base", "a", "b"), Mixture((1.0, 0.5, 2.0)))
    assert guided.mixture((0.0, 1.0)) == (("base", "b"), Mixture((1.0, 4.0)))


def test_weights_outside_the_simplex_are_flagged(models: list[str]) -> None:
    family = MixedFamily(method="mod", base=models[2], parts=tuple(models[:2]), gains=(1.0, 1.0))
    for values in ((1.5, -0.5), (0.7, 0.7)):
        with pytest.raises(UserError, match="not on the simplex"):
            family.policy_at(values)
        assert family.policy_at(values, extrapolate=True).name.endswith("(extrapolated)")
    ids = ids_of("x :")
    found = family.policy_at((1.5, -0.5), extrapolate=True).next_token_logprobs(ids, torch.ones_like(ids))[0]
    parts = [plain_logprobs(model, "x :") for model in models[:2]]
    assert torch.allclose(found.double(), (1.5 * parts[0] - 0.5 * parts[1]).log_softmax(-1), atol=1e-5)
    assert "extrapolated" not in family.policy(Weights((0.5, 0.5))).name
    with pytest.raises(UserError, match="answers 2 weights"):
        family.policy(Weights((0.5, 0.25, 0.25)))
    with pytest.raises(UserError, match="answers 2 weights"):
        family.policy(Direction((0.6, 0.8)))
    with pytest.raises(UserError, match="no negative coefficient"):
        MixedFamily(method="mod", base=models[2], parts=tuple(models[:2]), gains=(1.0, 1.0), alpha=1.0).policy_at(
            (1.5, -0.5), extrapolate=True
        )


def test_bits_per_byte_read_a_mixture_like_a_model(models: list[str]) -> None:
    """What the alignment tax asks of a policy's `model`."""
    from align.training.bits import bits_per_byte

    texts = ["x : A B", "y y : C"]
    policy, alone = mixed(models, 0.5, 0.25, 0.25), ModelPolicy(models[0])
    assert bits_per_byte(policy.model, policy.tokenizer, texts) > 0
    same = mixed([models[0]] * 2, 0.5, 0.5)
    expected = bits_per_byte(alone.model, alone.tokenizer, texts)
    assert bits_per_byte(same.model, same.tokenizer, texts) == pytest.approx(expected, abs=1e-5)


def test_the_shortest_context_counts(models: list[str]) -> None:
    long, short = (SimpleNamespace(config=SimpleNamespace(max_position_embeddings=n, eos_token_id=1)) for n in (64, 8))
    for model in (long, short):
        model.generation_config = SimpleNamespace(eos_token_id=[1, 0])
    assert MixedModel([long, short], Mixture((0.5, 0.5)), name="m").config.max_position_embeddings == 8
