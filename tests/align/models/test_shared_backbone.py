"""One backbone for a policy, its reference and K reward models: scores, states and storage, against separate models."""

from __future__ import annotations

import gc
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from align.errors import UserError
from align.models import attach_lora, load_model
from align.models.shared_backbone import SharedBackbone, bind
from align.objectives import Negated, RewardModelObjective
from align.objectives.shared_reward_model import SharedRewardModel
from align.runs import Ledger
from align.training.reward_model import RewardModelConfig, train_reward_model
from factories.made_models import make_adapter
from factories.shared_backbones import NAMES, make_base, make_reward_model, make_runs, shared, trainable, weights_of
from factories.tiny_bandit import PROMPTS, RESPONSES, TableReward, make_reference, pair_rows

TEXTS = [(prompt, f" {word}" * n) for prompt in PROMPTS for word in RESPONSES for n in (1, 3)]
PAIRS = {"prompts": [p for p, _ in TEXTS], "completions": [c for _, c in TEXTS]}
IDS = {"input_ids": torch.tensor([[2, 4, 5, 6, 7]]), "attention_mask": torch.ones(1, 5, dtype=torch.long)}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_base(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def runs(base: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Three reward models of different ranks."""
    return make_runs(base, tmp_path_factory.mktemp("rewards"))


@pytest.fixture(scope="module")
def expected(runs: dict[str, str]) -> dict[str, Any]:
    """The scores of the separate, merged models."""
    found = {name: RewardModelObjective(run)(**PAIRS) for name, run in runs.items()}
    assert min(max(abs(a - b) for a, b in zip(found[x], found[y], strict=True)) for x, y in
               (("one", "two"), ("two", "three"), ("one", "three"))) > 0.01  # fmt: skip
    return found


def policy_on(base: str) -> Any:
    """A LoRA policy away from its backbone."""
    model = attach_lora(load_model(base), 2)
    torch.manual_seed(7)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.train()


# --------------------------------------------------------------------------------------------------------- the scores


@pytest.mark.parametrize("bound", [True, False], ids=["on a policy's backbone", "on their own backbone"])
@pytest.mark.parametrize("batch_size", [64, 3])
def test_scores_are_those_of_the_separate_models(
    bound: bool, batch_size: int, base: str, runs: dict[str, str], expected: dict[str, Any]
) -> None:
    objectives = shared(runs, batch_size=batch_size)
    model = policy_on(base)
    if bound:
        bind(objectives.values(), model)
    for name in (*NAMES, *reversed(NAMES)):  # each adapter again after every other
        assert objectives[name](**PAIRS) == pytest.approx(expected[name], abs=1e-5)
    backbones = {id(objective.backbone) for objective in objectives.values()}
    assert len(backbones) == 1 and (objectives["one"].backbone.peft is model) == bound


def test_scale_and_shift_are_those_of_a_reward_model(runs: dict[str, str], expected: dict[str, Any]) -> None:
    objective = SharedRewardModel(runs["one"], scale=-2.0, shift=0.5)
    assert objective(**PAIRS) == pytest.approx([0.5 - 2 * s for s in expected["one"]], abs=1e-5)
    assert objective.__name__ == "one"


def test_learned_positions_and_transposed_matrices(tmp_path: Path) -> None:
    base = make_reference(tmp_path / "gpt2", architecture="gpt2")
    run = make_reward_model(base, tmp_path / "run", seed=0)
    assert SharedRewardModel(run)(**PAIRS) == pytest.approx(RewardModelObjective(run)(**PAIRS), abs=1e-5)


# ------------------------------------------------------------------------------------------------- the policy's state


def test_scoring_leaves_the_policy_as_it_was(base: str, runs: dict[str, str]) -> None:
    """PEFT's set_adapter makes what it activates trainable and freezes the rest: the policy would stop to learn."""
    model = policy_on(base)
    names, before = trainable(model), weights_of(model)
    logits = model.eval()(**IDS).logits.detach()
    model.train()
    objectives = shared(runs)
    bind(objectives.values(), model)
    for objective in objectives.values():
        objective(**PAIRS)
        assert trainable(model) == names and names and all(".default." in name for name in names)
        assert model.active_adapter == "default" and model.base_model.active_adapters == ["default"]
        assert set(model.peft_config) == {"default"} and model.training
        assert all(module.training for module in model.modules())
    after = weights_of(model)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert len(after) > len(before)  # the scorers' factors are in the same layers
    assert torch.equal(model.eval()(**IDS).logits, logits)
    model(**IDS).logits.square().mean().backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None}
    assert moved == names


def test_states_are_restored_whatever_they_were_and_after_an_error(base: str, runs: dict[str, str]) -> None:
    model = policy_on(base)
    objective = SharedRewardModel(runs["one"])
    objective.bind(model)
    model.eval()
    with model.disable_adapter():
        reference = model(**IDS).logits.detach()
        objective(**PAIRS)
        assert torch.equal(model(**IDS).logits, reference) and not model.training
    assert (model(**IDS).logits - reference).abs().max() > 0.01
    for parameter in model.parameters():
        parameter.requires_grad_(False)  # a policy that is read only stays so
    objective(**PAIRS)
    assert trainable(model) == set()
    with pytest.raises(ZeroDivisionError), objective.backbone.reading("scorer_0"):
        raise ZeroDivisionError
    assert model.base_model.active_adapters == ["default"]


def test_the_reference_is_the_base_before_and_after_scoring(base: str, runs: dict[str, str]) -> None:
    model = policy_on(base)
    objectives = shared(runs)
    bind(objectives.values(), model)
    with torch.no_grad():
        plain = load_model(base).eval()(**IDS).logits.log_softmax(-1)
    backbone = SharedBackbone.of(model)
    for objective in objectives.values():
        objective(**PAIRS)
        with torch.no_grad(), backbone.reading(None) as reference:
            assert torch.allclose(reference(**IDS).logits.log_softmax(-1), plain, atol=1e-6)
        with torch.no_grad(), model.disable_adapter():  # as TRL reads it
            assert torch.allclose(model(**IDS).logits.log_softmax(-1), plain, atol=1e-6)
    assert trainable(model)


def test_the_backbone_is_in_memory_once(base: str, runs: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:

    model = policy_on(base)
    before = {p.data_ptr(): p.numel() for p in model.parameters()}
    monkeypatch.setattr("align.models.load.load_model", lambda *_, **__: pytest.fail("a second backbone was loaded"))
    objectives = shared(runs)
    bind(objectives.values(), model)
    for objective in objectives.values():
        objective(**PAIRS)
    backbone = objectives["one"].backbone
    weight = backbone.model.model.layers[0].mlp.up_proj.base_layer.weight
    assert {id(objective.backbone.model) for objective in objectives.values()} == {id(model.get_base_model())}
    assert weight.data_ptr() in before
    added = sum(p.numel() for p in model.parameters() if p.data_ptr() not in before)
    from peft import load_peft_weights

    factors = sum(
        t.numel() for run in runs.values() for n, t in load_peft_weights(f"{run}/adapter").items() if "lora_" in n
    )
    assert added == factors


def test_without_a_policy_one_backbone_serves_all_until_nobody_needs_it(
    base: str, runs: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:

    loaded: list[str] = []
    real = load_model

    def counted(path: Any, **options: Any) -> Any:
        loaded.append(str(path))
        return real(path, **options)

    gc.collect()
    monkeypatch.setattr("align.models.load.load_model", counted)
    objectives = shared(runs)
    bind(objectives.values(), real(base))  # a policy trained whole moves: it is nobody's backbone
    scores = {name: objective(**PAIRS) for name, objective in objectives.items()}
    assert loaded == [base]
    assert trainable(objectives["one"].backbone.model) == set()
    copies = pickle.loads(pickle.dumps(objectives))
    del objectives
    gc.collect()
    assert {name: copy(**PAIRS) for name, copy in copies.items()} == scores and loaded == [base, base]


def test_a_policy_that_is_gone_is_not_kept_alive(base: str, runs: dict[str, str], expected: dict[str, Any]) -> None:
    import weakref

    objective = SharedRewardModel(runs["one"])
    model = policy_on(base)
    objective.bind(model)
    objective(**PAIRS)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert objective(**PAIRS) == pytest.approx(expected["one"], abs=1e-5)


# ----------------------------------------------------------------------------------------------- training and mistakes


def test_a_reward_model_is_kept_as_an_adapter_where_asked(base: str, tmp_path: Path) -> None:
    rows = [{"prompt": row["prompt"], "chosen": row["a"], "rejected": row["b"]} for row in pair_rows(16)]
    settings: Any = {"max_steps": 3, "learning_rate": 2e-2, "batch_size": 8, "save_steps": None}
    config = RewardModelConfig(**settings, lora_r=2, keep_adapter=True)
    train_reward_model(config, model=base, rows=rows, out=tmp_path, ledger=Ledger())
    expected = RewardModelObjective(tmp_path)(**PAIRS)
    for path in (tmp_path, tmp_path / "adapter", tmp_path / "model"):
        assert SharedRewardModel(path)(**PAIRS) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(UserError, match="lora_r is 0"):
        RewardModelConfig(keep_adapter=True)


def test_mistakes_are_told_in_one_line(base: str, runs: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="keep_adapter"):
        SharedRewardModel(base)
    policy = make_adapter(base, tmp_path / "policy", r=2, seed=0)
    with pytest.raises(UserError, match="no score head"):
        SharedRewardModel(policy)(**PAIRS)
    other = make_reference(tmp_path / "other", seed=5)
    with pytest.raises(UserError, match="adapter of .* but the model in memory is"):
        SharedRewardModel(runs["one"]).bind(policy_on(other))
    damaged = Path(make_reward_model(base, tmp_path / "damaged", seed=0)) / "adapter"
    (damaged / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match="no model could be read"):
        SharedRewardModel(damaged)(**PAIRS)


def test_other_objectives_are_not_touched(base: str) -> None:
    model = policy_on(base)
    bind([TableReward("one"), Negated(TableReward("two"))], model)
    assert not hasattr(model, "shared_backbone")


def test_a_config_can_name_it_and_best_of_n_can_store_it(runs: dict[str, str], expected: dict[str, Any]) -> None:
    from align.objectives import build_objective
    from align.policies.best_of_n import _entry

    entry = {"kind": "shared_reward_model", "name": "cost", "path": runs["one"], "scale": 2.0, "negate": True}
    objective = build_objective(entry)
    assert objective(**PAIRS) == pytest.approx([-2 * s for s in expected["one"]], abs=1e-5)
    stored = _entry(objective.objective, Path(runs["one"]).parent)
    assert stored is not None and (stored["kind"], stored["path"]) == ("shared_reward_model", "one")
