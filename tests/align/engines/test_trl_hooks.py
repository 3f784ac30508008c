"""What on-policy methods lean on in TRL, checked on the installed TRL: a new release fails here, loudly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from align.engines.on_policy import prompts
from align.methods import morlhf
from align.models import load_model
from align.preferences import Weights
from align.runs import Ledger
from factories.formulae import rloo_advantages
from factories.pair_trainer import pair_trainer
from factories.tiny_bandit import OBJECTIVES, PROMPTS, WORDS, make_reference, make_tokenizer, problem_of, workspace

PROMPT_ROWS = [{"id": str(i), "prompt": prompt, "colour": ("red", "blue")[i]} for i, prompt in enumerate(PROMPTS)]
RL = {"beta": 0.5, "steps": 2, "batch_size": 8, "num_generations": 4, "learning_rate": 1e-3, "logging_steps": 1}
BOTH = pytest.mark.parametrize("algorithm", ["rloo", "grpo"])


@pytest.fixture(scope="module")
def one_token(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_reference(tmp_path_factory.mktemp("one") / "model")


class Recorder:
    """An objective that keeps what it was given and answers by a rule."""

    def __init__(self, name: str, value: Any) -> None:
        self.__name__, self.value, self.calls = name, value, []  # type: ignore[var-annotated]

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
        self.calls.append({"prompts": list(prompts), "completions": list(completions), **columns})
        return [self.value(i) if callable(self.value) else self.value for i in range(len(prompts))]


def rl_trainer(
    reference: str, folder: Path, *, objectives: Any = OBJECTIVES, weights: Any = (0.25, 0.75), **changes: Any
) -> Any:
    config = morlhf.Config(**{**RL, "max_completion_length": 1, **changes})
    return morlhf.build_trainer(
        config,
        problem_of(reference, objectives=objectives, prompts=PROMPT_ROWS),
        workspace(folder),
        weights=Weights(weights),
    )


def rollout(trainer: Any) -> dict[str, Any]:
    """One batch of samples through the trainer's own generation and scoring, as `training_step` sees it."""
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    return trainer._generate_and_score_completions(batch)


def disturb(model: Any, *, seed: int = 1) -> None:
    """Move the policy away from its reference in memory, leaving the checkpoint on disk alone."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def sequence_logps(model: Any, output: dict[str, Any]) -> torch.Tensor:
    """(B,) log-probability of each completion by plain forward passes without padding: the oracle for TRL's numbers."""
    totals = []
    for prompt, prompt_mask, completion, mask in zip(
        output["prompt_ids"], output["prompt_mask"], output["completion_ids"], output["completion_mask"], strict=True
    ):
        head, tail = prompt[prompt_mask.bool()], completion[mask.bool()]
        with torch.no_grad():
            logp = model(input_ids=torch.cat([head, tail])[None]).logits[0].log_softmax(-1)
        totals.append(sum(logp[len(head) + i - 1, token] for i, token in enumerate(tail)))
    return torch.stack(totals)


# ----------------------------------------------------------------------------------------- rewards, weights, columns


@BOTH
def test_the_logged_reward_is_the_weighted_sum(algorithm: str, one_token: str, tmp_path: Path) -> None:
    objectives = {"first": Recorder("f", 2.0), "second": Recorder("f", 10.0)}  # one function name, two objective names
    trainer = rl_trainer(one_token, tmp_path, objectives=objectives, algorithm=algorithm)
    assert isinstance(trainer.reward_weights, torch.Tensor)
    assert trainer.reward_weights[:2].tolist() == [0.25, 0.75]
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert len(logged) == 2
    assert logged[0]["rewards/first/mean"] == 2.0 and logged[0]["rewards/second/mean"] == 10.0
    kl = logged[0].get("rewards/sequence_kl/mean", 0.0)
    assert logged[0]["reward"] == pytest.approx(0.25 * 2 + 0.75 * 10 - 0.5 * kl, abs=1e-5)


@BOTH
def test_reward_weights_are_read_at_every_step(algorithm: str, one_token: str, tmp_path: Path) -> None:
    from transformers import TrainerCallback

    objectives = {"first": Recorder("f", 2.0), "second": Recorder("g", 10.0)}
    trainer = rl_trainer(
        one_token, tmp_path, objectives=objectives, algorithm=algorithm, kl="sequence", learning_rate=1e-9
    )

    class Move(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            trainer.reward_weights[:2] = torch.tensor([1.0, 0.0])

    trainer.add_callback(Move())
    trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    assert rewards == pytest.approx([8.0, 2.0], abs=1e-3)


@BOTH
def test_dataset_columns_and_token_ids_reach_the_objectives(algorithm: str, one_token: str, tmp_path: Path) -> None:
    spy = Recorder("spy", 1.0)
    objectives = {"spy": spy, "other": OBJECTIVES["two"]}
    trainer = rl_trainer(one_token, tmp_path, objectives=objectives, algorithm=algorithm)
    trainer.train()
    assert len(spy.calls) == 2
    for call in spy.calls:
        assert (
            len(call["prompts"]) == len(call["completions"]) == len(call["colour"]) == len(call["completion_ids"]) == 8
        )
        assert call["prompts"][:4] == [call["prompts"][0]] * 4  # the groups of one prompt lie together
        for prompt, colour, text, ids in zip(
            call["prompts"], call["colour"], call["completions"], call["completion_ids"], strict=True
        ):
            assert colour == ("red", "blue")[PROMPTS.index(prompt)]
            assert text == ("" if WORDS[ids[0]] in ("<pad>", "<end>") else WORDS[ids[0]])


def test_an_objective_that_does_not_apply_adds_nothing(one_token: str, tmp_path: Path) -> None:
    """None becomes NaN and is left out of the sum; where no objective applies, the advantage is 0."""
    half = Recorder("half", lambda i: None if i % 2 else 3.0)
    never = Recorder("never", lambda i: None)
    objectives = {"half": half, "never": never}
    trainer = rl_trainer(one_token, tmp_path, objectives=objectives, weights=(0.5, 0.5))
    assert rollout(trainer)["advantages"].abs().max() < 1e-6  # 1.5 for all that count: nothing to prefer


# -------------------------------------------------------------------------------------------------- KL and baselines


def test_rloo_takes_the_sequence_kl_from_the_reward_against_the_checkpoint_on_disk(
    many_tokens: str, tmp_path: Path
) -> None:
    values = torch.rand(8, generator=torch.Generator().manual_seed(0)).tolist()
    objectives = {"one": Recorder("one", lambda i: values[i]), "two": Recorder("two", 0.0)}
    trainer = rl_trainer(many_tokens, tmp_path, objectives=objectives, weights=(1.0, 0.0), max_completion_length=4)
    disturb(trainer.model)
    output = rollout(trainer)
    assert output["completion_mask"].sum(1).max() > 1  # responses of several tokens, or the sum over them is untested
    ours, theirs = sequence_logps(trainer.model, output), sequence_logps(load_model(many_tokens), output)
    assert torch.allclose(output["old_logps"], ours, atol=1e-4)
    assert (ours - theirs).abs().max() > 0.1
    expected = rloo_advantages((torch.tensor(values) - 0.5 * (ours - theirs)).reshape(2, 4)).flatten()
    assert torch.allclose(output["advantages"], expected, atol=1e-4)


def test_grpo_gets_the_same_kl_from_our_reward_function(many_tokens: str, tmp_path: Path) -> None:
    values = torch.rand(8, generator=torch.Generator().manual_seed(0)).tolist()
    objectives = {"one": Recorder("one", lambda i: values[i]), "two": Recorder("two", 0.0)}
    trainer = rl_trainer(
        many_tokens, tmp_path, objectives=objectives, weights=(1.0, 0.0), max_completion_length=4, algorithm="grpo"
    )
    assert trainer.beta == 0.0 and trainer.ref_model is None  # no KL of TRL's own
    assert trainer.reward_weights.tolist() == [1.0, -0.5]
    disturb(trainer.model)
    output = rollout(trainer)
    ours, theirs = sequence_logps(trainer.model, output), sequence_logps(load_model(many_tokens), output)
    total_PG = (torch.tensor(values) - 0.5 * (ours - theirs)).reshape(2, 4)
    expected = (total_PG - total_PG.mean(1, keepdim=True)).flatten()  # unscaled
    assert torch.allclose(output["advantages"], expected, atol=1e-4)


def test_with_lora_the_sequence_kl_is_against_the_backbone(many_tokens: str, tmp_path: Path) -> None:
    trainer = rl_trainer(many_tokens, tmp_path, max_completion_length=4, algorithm="grpo", lora_r=2)
    ids = [[5, 6, 1], [7]]
    arguments = {"prompts": ["x :", "y y :"], "completions": ["A B", "C"], "completion_ids": ids}
    penalty = trainer.reward_funcs[-1]
    assert penalty(**arguments) == pytest.approx([0.0, 0.0], abs=1e-5)  # a fresh adapter changes nothing
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name:
                parameter += 0.5
    penalised = penalty(**arguments)
    assert max(map(abs, penalised)) > 0.01
    rows = {"prompt_ids": [[0, 2, 4], [3, 3, 4]], "prompt_mask": [[0, 1, 1], [1, 1, 1]]}
    rows |= {"completion_ids": [[5, 6, 1], [7, 0, 0]], "completion_mask": [[1, 1, 1], [1, 0, 0]]}
    output = {name: torch.tensor(value) for name, value in rows.items()}
    expected = sequence_logps(trainer.model, output) - sequence_logps(load_model(many_tokens), output)
    assert penalised == pytest.approx(expected.tolist(), abs=1e-4)


def test_grpo_with_token_kl_reads_the_reference_from_disk(one_token: str, tmp_path: Path) -> None:
    trainer = rl_trainer(one_token, tmp_path, algorithm="grpo", kl="token")
    assert trainer.beta == 0.5
    disturb(trainer.model)
    reference = load_model(one_token).state_dict()
    assert all(torch.equal(tensor, reference[name]) for name, tensor in trainer.ref_model.state_dict().items())


@BOTH
def test_one_optimisation_step_per_batch_of_samples(algorithm: str, one_token: str, tmp_path: Path) -> None:
    spy = Recorder("spy", 1.0)
    objectives = {"spy": spy, "other": OBJECTIVES["two"]}
    trainer = rl_trainer(
        one_token, tmp_path, objectives=objectives, algorithm=algorithm, gradient_accumulation=2, steps=3
    )
    trainer.train()
    assert trainer.state.global_step == 3
    assert [len(call["prompts"]) for call in spy.calls] == [16, 16, 16]  # both micro-batches sampled at once, used once


# ------------------------------------------------------------------------------------------- sampling and positions


@BOTH
def test_every_id_of_the_ending_list_ends_a_completion(algorithm: str, one_token: str, tmp_path: Path) -> None:
    trainer = rl_trainer(one_token, tmp_path, algorithm=algorithm, max_completion_length=4)
    assert sorted(trainer.eos_token_ids) == list(range(len(WORDS)))
    output = rollout(trainer)
    assert output["completion_ids"].shape == (8, 1)  # nothing survives the first token
    assert output["completion_mask"].sum(1).tolist() == [1] * 8


def test_tokens_after_the_first_ending_one_are_masked(many_tokens: str, tmp_path: Path) -> None:
    model = load_model(many_tokens)
    model.generation_config.eos_token_id = [1, 2, 3, 4, 0, 7]  # end, the prompt's words, padding, C
    model.save_pretrained(tmp_path / "some")
    make_tokenizer().save_pretrained(tmp_path / "some")
    output = rollout(rl_trainer(str(tmp_path / "some"), tmp_path, max_completion_length=5, batch_size=64))
    lengths = set()
    for ids, mask in zip(output["completion_ids"].tolist(), output["completion_mask"].tolist(), strict=True):
        kept = [token for token, m in zip(ids, mask, strict=True) if m]
        lengths.add(len(kept))
        assert all(WORDS[token] in ("A", "B", "D") for token in kept[:-1])
        assert WORDS[kept[-1]] not in ("A", "B", "D") or len(kept) == 5
    assert len(lengths) > 2


def test_samples_come_from_the_whole_distribution(one_token: str, tmp_path: Path) -> None:
    trainer = rl_trainer(one_token, tmp_path)
    config = trainer.generation_config
    assert config.do_sample and config.temperature == 1.0 and config.top_p == 1.0 and config.top_k in (0, None)
    assert config.min_p is None and config.repetition_penalty == 1.0


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_left_padding_moves_learned_positions_only(
    architecture: str, many_tokens: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why `refuse_shifted_positions` exists. Should the gpt2 half fail one day, TRL has fixed it: drop the refusal."""
    reference = many_tokens
    if architecture == "gpt2":
        reference = make_reference(tmp_path / "gpt2", architecture="gpt2", one_token=False)
        monkeypatch.setattr(prompts, "refuse_shifted_positions", lambda *_, **__: None)
    output = rollout(rl_trainer(reference, tmp_path, max_completion_length=3))
    assert output["prompt_mask"].min() == 0  # some prompt is padded
    error = (output["old_logps"] - sequence_logps(load_model(reference), output)).abs().max().item()
    assert error > 0.05 if architecture == "gpt2" else error < 1e-3


# --------------------------------------------------------------------------------------------------------- callbacks


def test_a_checkpoint_can_be_written_between_steps(one_token: str, tmp_path: Path) -> None:
    """What an outage leaves (align/engines/on_policy/outage.py): transformers has no public way to write one."""
    trainer = rl_trainer(one_token, tmp_path, steps=1)
    trainer.train()
    trainer._save_checkpoint(trainer.model, None)
    (written,) = Path(trainer.args.output_dir).glob("checkpoint-1")
    needed = {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
    assert needed <= {file.name for file in written.iterdir()}


@pytest.mark.parametrize("kind", ["rloo", "grpo", "dpo"])
def test_the_ledger_counts_the_tokens_that_a_trainer_fed(kind: str, many_tokens: str, tmp_path: Path) -> None:
    from align.training.common import finish_trainer

    if kind == "dpo":
        trainer = pair_trainer(many_tokens, tmp_path)
        data = trainer.train_dataset
        expected = sum(2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in data)
    else:
        spy = Recorder("spy", 1.0)
        trainer = rl_trainer(
            many_tokens, tmp_path, objectives={"spy": spy, "other": spy}, weights=(1.0, 0.0), algorithm=kind,
            max_completion_length=3,
        )  # fmt: skip
    ledger = Ledger()
    finish_trainer(trainer, label="t", ledger=ledger, parameters=10)
    trainer.train()
    if kind != "dpo":
        expected = sum(len(p.split()) for call in spy.calls for p in call["prompts"])
        expected += sum(len(ids) for call in spy.calls for ids in call["completion_ids"])
    assert ledger.tokens == expected
    assert ledger.flops == 6 * 10 * expected
