"""One policy: the sampler's own log-probabilities, the trainers' and the scorers' agree for every style of tokenizer.

The checkpoints are hostile: sampling habits in their generation config, dropout of attention weights in their config.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from align.data.comparisons import Pair
from align.engines.on_policy import trainer as onpolicy
from align.engines.on_policy.actor_critic import ActorCritic
from align.engines.on_policy.formatted import formatted
from align.engines.on_policy.prompts import sayable
from align.engines.on_policy.rollouts import draw
from align.engines.pairs import PairTrainingConfig, dpo_trainer
from align.engines.problem import Problem
from align.engines.reference_samples import Drawing, draw_responses
from align.errors import UserError
from align.methods import morlhf, ppo
from align.models import load_model, load_tokenizer
from align.models.formats import formatter
from align.models.reading import Reader, completion_rows, padded, sequence_logprobs
from align.models.sampling import Drawn, ending_ids, plain_sampling
from align.objectives.metered import Metered
from align.policies.base import ModelPolicy
from align.runs import Ledger
from align.turns import Turn, transcript
from factories.chat_styles import BY_NAME, chat_checkpoint
from factories.tiny_bandit import workspace

NAMES = ("chatml", "llama3", "gemma", "mistral", "thinking", "base_bos", "base")
STYLE = pytest.mark.parametrize("style", NAMES)
TWO_TURNS = transcript([Turn("user", "hi"), Turn("assistant", "hello"), Turn("user", "the tin?")])
PROMPTS = ("in the start", "Sit here, and stir it", TWO_TURNS)
CLOSE = {"rel": 0, "abs": 1e-4}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("styles")
    return {name: str(chat_checkpoint(name, folder / name, hostile=True)) for name in NAMES}


def sampled(path: str, prompts: Sequence[str], *, batch_size: int) -> list[tuple[Drawn, float]]:
    """Responses and the log-probabilities that `generate` drew them with."""
    model, tokenizer = load_model(path).eval(), load_tokenizer(path)
    heads = [formatter(tokenizer).prompt_ids(prompt) for prompt in prompts]
    torch.manual_seed(0)
    found = []
    with plain_sampling(model, tokenizer, max_tokens=6) as ends:
        for start in range(0, len(heads), batch_size):
            rows = [(head, ()) for head in heads[start : start + batch_size]]
            batch = padded(rows, pad_id=tokenizer.pad_token_id, side="left")
            out = model.generate(
                input_ids=batch.ids_BT, attention_mask=batch.attend_BT, output_logits=True, return_dict_in_generate=True
            )
            logp_BTV = torch.stack(out.logits, 1).float().log_softmax(-1)
            for row, logp_TV in zip(out.sequences[:, batch.ids_BT.shape[1] :].tolist(), logp_BTV, strict=True):
                drawn = Drawn.of(row, ends=ends)
                found.append((drawn, sum(float(logp_TV[t, token]) for t, token in enumerate(drawn.ids))))
    return found


@STYLE
@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_what_was_drawn_is_scored_as_it_was_drawn(style: str, batch_size: int, checkpoints: dict[str, str]) -> None:
    path, prompts = checkpoints[style], [PROMPTS[i % 3] for i in range(32 if batch_size == 32 else 6)]
    found = sampled(path, prompts, batch_size=batch_size)
    drawn, expected = [response for response, _ in found], [logp for _, logp in found]
    policy = ModelPolicy(path)
    assert policy.sequence_logprobs(prompts, drawn, batch_size=batch_size) == pytest.approx(expected, **CLOSE)
    rows = completion_rows(policy.tokenizer, prompts, drawn)
    for side in ("left", "right"):
        reader = Reader(pad_id=policy.tokenizer.pad_token_id, batch_size=batch_size, side=side)
        assert sequence_logprobs(policy.model, rows, reader=reader) == pytest.approx(expected, **CLOSE)


class Spy:
    """An objective that keeps what it was asked, and pays for a first token of even id."""

    __name__ = "spy"

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], list[str], list[list[int]]]] = []

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], *, completion_ids: Sequence[Sequence[int]], **_: Any
    ) -> list[float | None]:
        self.calls.append((list(prompts), list(completions), [list(ids) for ids in completion_ids]))
        return [float(ids[0] % 2 == 0) for ids in completion_ids]


def trainer_of(path: str, folder: Path, *, algorithm: str, **changes: Any) -> tuple[Any, Spy]:
    settings = {"steps": 1, "batch_size": 12, "num_generations": 4, "max_completion_length": 5, "learning_rate": 1e-12}
    config = morlhf.Config(**{**settings, "beta": 0.1, "logging_steps": 1, **changes})
    spy, run = Spy(), workspace(folder)
    problem: Problem[Any] = Problem(
        reference=path, objectives={}, preferences=(), prompts=[{"prompt": prompt} for prompt in PROMPTS]
    )
    rewards = [(Metered("spy", spy, run.ledger), 1.0)]
    return onpolicy.build_trainer(
        config, problem, run, rewards=rewards, update=onpolicy.Update(algorithm=algorithm)
    ), spy


def trainer_logps(trainer: Any, output: dict[str, Any]) -> list[float]:
    """Log-probability of each response as the loss reads it."""
    ids = torch.cat([output["prompt_ids"], output["completion_ids"]], 1)
    mask = torch.cat([output["prompt_mask"], output["completion_mask"]], 1)
    width = output["completion_ids"].shape[1]
    with torch.no_grad():
        logps_BT = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, width)[0]
    return (logps_BT * output["completion_mask"]).sum(1).tolist()


def disturbed(model: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("style, algorithm", [*zip(NAMES, ["grpo", "rloo"] * 4, strict=False), ("llama3", "grpo")])
def test_on_policy_trainers_read_the_format_and_the_policy_that_is_scored(
    style: str, algorithm: str, checkpoints: dict[str, str], tmp_path: Path
) -> None:
    path = checkpoints[style]
    trainer, spy = trainer_of(path, tmp_path, algorithm=algorithm)
    disturbed(trainer.model)  # away from the reference, so that a KL is something
    trainer.model.train()
    output = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    ((prompts, texts, ids),) = spy.calls
    form = formatter(load_tokenizer(path))
    for prompt, head, mask in zip(prompts, output["prompt_ids"], output["prompt_mask"], strict=True):
        assert prompt in PROMPTS and head[mask.bool()].tolist() == form.prompt_ids(prompt)
    assert texts == [form.decode(row) for row in ids]
    drawn = [Drawn.of(row, ends=form.format.ends) for row in ids]
    assert [list(response.ids) for response in drawn] == ids
    ours, theirs = ModelPolicy(path), ModelPolicy(path)
    ours._loaded = (trainer.model.eval(), ours.tokenizer)
    expected, reference = ours.sequence_logprobs(prompts, drawn), theirs.sequence_logprobs(prompts, drawn)
    assert trainer_logps(trainer, output) == pytest.approx(expected, **CLOSE)
    if algorithm == "grpo":
        kl = trainer.reward_funcs[-1](prompts=prompts, completions=texts, completion_ids=ids)
        assert kl == pytest.approx([a - b for a, b in zip(expected, reference, strict=True)], **CLOSE)
        assert max(map(abs, kl)) > 0.1


@STYLE
def test_dpo_reads_the_policy_that_was_sampled(style: str, checkpoints: dict[str, str], tmp_path: Path) -> None:
    """Its reference's log-probabilities are the sampler's own, its policy's are the same in training mode: log 2."""
    path = checkpoints[style]
    found = sampled(path, [*PROMPTS] * 2, batch_size=6)
    pairs = [
        Pair(str(i), PROMPTS[i], a.text, b.text, False, a.ids, b.ids)
        for i, ((a, _), (b, _)) in enumerate(zip(found[:3], found[3:], strict=True))
    ]
    trainer = dpo_trainer(pairs, config=PairTrainingConfig(batch_size=3), reference=path, beta=1.0, folder=tmp_path)
    for column, side in (("ref_chosen_logps", found[:3]), ("ref_rejected_logps", found[3:])):
        assert list(trainer.train_dataset[column]) == pytest.approx([logp for _, logp in side], **CLOSE)
    trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        loss = trainer._compute_loss(trainer.model, batch, False)
    assert float(loss) == pytest.approx(0.6931472, abs=1e-4)


@pytest.mark.parametrize("style", ["llama3", "gemma", "base_bos"])
def test_policy_and_reference_are_one_before_the_first_step(
    style: str, checkpoints: dict[str, str], tmp_path: Path
) -> None:
    """No token is beyond the clip, the KL is 0, and many first tokens are drawn, whatever the checkpoint's habits."""
    trainer, spy = trainer_of(checkpoints[style], tmp_path, algorithm="rloo", batch_size=48, num_generations=16)
    onpolicy.run_trainer(trainer, label="test", folder=tmp_path, ledger=Ledger())
    logged = trainer.state.log_history[0]
    assert logged["clip_ratio/region_mean"] == 0 and logged["kl"] == pytest.approx(0, abs=1e-5)
    ids = spy.calls[0][2]
    assert len({row[0] for row in ids}) > 5 and any(len(set(row)) < len(row) for row in ids)
    assert all(any(token in row[-1:] for token in trainer.eos_token_ids) or len(row) == 5 for row in ids)
    saved = tmp_path / "model"
    form, before = formatter(load_tokenizer(saved)), formatter(load_tokenizer(checkpoints[style]))
    assert form.format == before.format
    assert (
        json.loads((saved / "tokenizer_config.json").read_text())["tokenizer_class"] == type(before.tokenizer).__name__
    )
    end = before.tokenizer.convert_tokens_to_ids(BY_NAME[style].end)
    assert end in ending_ids(load_model(saved), form.tokenizer)


@pytest.mark.parametrize("style", ["base_bos", "gemma"])
def test_what_training_gains_is_what_evaluation_finds(style: str, checkpoints: dict[str, str], tmp_path: Path) -> None:
    """With a start token, half of the gain was lost between the trainer's prompt and the one that was evaluated."""
    settings = {"steps": 8, "batch_size": 96, "num_generations": 32, "max_completion_length": 1, "beta": 0.0}
    trainer, spy = trainer_of(checkpoints[style], tmp_path, algorithm="rloo", learning_rate=1e-2, **settings)
    onpolicy.run_trainer(trainer, label="test", folder=tmp_path, ledger=Ledger())
    values = []
    for path in (checkpoints[style], tmp_path / "model"):
        policy = ModelPolicy(path)
        heads = policy.prompt_ids(PROMPTS)
        laws = [
            policy.next_token_logprobs(torch.tensor([head]), torch.ones(1, len(head), dtype=torch.long))[0].exp()
            for head in heads
        ]
        values.append(sum(float(law[::2].sum()) for law in laws) / len(laws))
    rewards = [sum(row[0] % 2 == 0 for row in ids) / len(ids) for _, _, ids in spy.calls]
    assert rewards[0] == pytest.approx(values[0], abs=0.16)  # 96 draws: three standard errors
    assert values[1] > 0.9 > values[0] and rewards[-1] > 0.85


@STYLE
def test_rollouts_and_reference_samples_read_the_format(style: str, checkpoints: dict[str, str]) -> None:
    path = checkpoints[style]
    actor = ActorCritic(path, ppo.Config())
    form = formatter(actor.tokenizer)
    with plain_sampling(actor.model, actor.tokenizer, max_tokens=5) as ends:
        torch.manual_seed(0)
        batch = draw(actor.policy, actor.tokenizer, PROMPTS * 2, ends=ends, batch_size=3)
    heads = [
        row[: -batch.mask_BT.shape[1]][mask[: -batch.mask_BT.shape[1]].bool()].tolist()
        for row, mask in zip(batch.ids_BL, batch.attend_BL, strict=True)
    ]
    assert heads == [form.prompt_ids(prompt) for prompt in PROMPTS * 2]
    drawn = [Drawn.of(ids, ends=ends) for ids in batch.responses()]
    with torch.no_grad():
        logp_BT, _ = actor.read(batch)
        parts = [actor.read(part)[0].sum(-1).tolist() for part in batch.parts(1)]
    expected = ModelPolicy(path).sequence_logprobs(PROMPTS * 2, drawn)
    assert logp_BT.sum(-1).tolist() == pytest.approx(expected, **CLOSE)
    assert [value for part in parts for value in part] == pytest.approx(expected, **CLOSE)
    drawing = Drawing(n=1, max_completion_length=5, batch_size=3, seed=0)
    samples = draw_responses(drawing, reference=path, prompts=PROMPTS * 2, ledger=Ledger())
    assert [sample.ids for sample in samples] == [response.ids for response in drawn]
    assert [sample.text for sample in samples] == [form.decode(sample.ids) for sample in samples]


def test_a_long_prompt_pads_no_batch_but_its_own(checkpoints: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = load_model(checkpoints["base"]).eval(), load_tokenizer(checkpoints["base"])
    widths: list[int] = []
    generate = model.generate

    def spy(*, input_ids: torch.Tensor, **others: Any) -> torch.Tensor:
        widths.append(input_ids.shape[1])
        return generate(input_ids=input_ids, **others)

    monkeypatch.setattr(model, "generate", spy)
    with plain_sampling(model, tokenizer, max_tokens=2) as ends:
        batch = draw(model, tokenizer, ["abc"] * 4 + ["b" * 100] + ["abcd"], ends=ends, batch_size=2)
    assert widths == [3, 3, 100] and [part.ids_BL.shape[1] for part in batch.parts(2)] == [5, 5, 102]


def test_prompts_that_cannot_be_said_or_leave_no_room_are_left_out_and_counted(
    checkpoints: dict[str, str], tmp_path: Path
) -> None:
    """The model has 512 positions."""
    told = transcript([Turn("system", "be brief"), Turn("user", "hi")])
    config = morlhf.Config(steps=1, batch_size=4, num_generations=4, max_completion_length=2, algorithm="rloo")
    run = workspace(tmp_path)
    problem: Problem[Any] = Problem(
        reference=checkpoints["gemma"], objectives={}, preferences=(),
        prompts=[{"prompt": told}, {"prompt": "hi"}, {"prompt": "x" * 512}],
    )  # fmt: skip
    spy = Spy()
    trainer = onpolicy.build_trainer(config, problem, run, rewards=[(spy, 1.0)])
    metrics = onpolicy.run_trainer(trainer, label="test", folder=tmp_path, ledger=run.ledger)
    assert metrics["prompts_dropped_by_unsupported_system"] == metrics["prompts_dropped_by_length"] == 1
    assert set(spy.calls[0][0]) == {"hi"}
    form, model = formatter(load_tokenizer(checkpoints["base"])), load_model(checkpoints["base"])
    rows = [{"prompt": "x" * 510}, {"prompt": "x" * 511}]
    assert sayable(rows, form, model=model, max_tokens=2) == (rows[:1], {"length": 1})
    with pytest.raises(UserError, match="the longest prompt and max_completion_length: 513 tokens"):
        sayable(rows[1:], form, model=model, max_tokens=2)


def test_a_formatted_tokenizer_reads_plain_text_when_told_how(checkpoints: dict[str, str]) -> None:
    plain = load_tokenizer(checkpoints["llama3"])
    ours = formatted(plain)
    assert isinstance(ours, type(plain)) and formatted(ours) is ours and type(ours).__name__ == type(plain).__name__
    assert ours(text=["hi"])["input_ids"] == [formatter(plain).prompt_ids("hi")]
    assert ours("hi")["input_ids"] == plain("hi")["input_ids"]
    assert ours(["hi"], add_special_tokens=False)["input_ids"] == plain(["hi"], add_special_tokens=False)["input_ids"]
    assert (ours.pad_token_id, ours.eos_token) == (plain.pad_token_id, plain.eos_token) and len(ours) == len(plain)
    ids = plain("hi there", add_special_tokens=False)["input_ids"]
    assert ours.batch_decode([[*ids, plain.eos_token_id]], skip_special_tokens=True) == ["hi there"]
    assert ours.decode(ids) == "hi there"
