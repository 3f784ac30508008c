"""The in-memory backend: independent of batch, order and padding; text rendered without a second start token."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from align.errors import UserError
from align.models import load_model, load_tokenizer, lora_config
from align.turns import Turn
from evals.backends.base import Backend, Completion, Generation
from evals.backends.batching import Batcher, out_of_memory
from evals.backends.rendering import renderer
from evals.backends.sampling import SeededGumbel
from evals.backends.transformers import TransformersBackend
from evals.items import Missing, Prompt

CHAT = (
    "<|end|>{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% if not loop.last or m.role != 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
PROMPTS = [
    Prompt.user(text)
    for text in ("bread", "explain cheese and rope :", "a", "tea " * 12, "why ?", "boats and bees", "ink", "wool wool")
]
SAMPLED = Generation(max_new_tokens=12, temperature=1.0)


@pytest.fixture(scope="module")
def sharp(tiny_model: Path) -> TransformersBackend:
    """The tiny model with larger weights, so that its distributions are far from flat."""
    model = load_model(tiny_model)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(20)
        for name, p in model.named_parameters():
            if "proj" in name:
                p.mul_(8)
    return TransformersBackend(model, load_tokenizer(tiny_model), name="sharp", template="plain")


@pytest.mark.parametrize("config", [Generation(max_new_tokens=12), SAMPLED], ids=["greedy", "sampled"])
def test_completions_do_not_depend_on_batch_size_or_order(sharp: TransformersBackend, config: Generation) -> None:
    seeds = list(range(100, 108))
    answers: dict[int, list[Any]] = {}
    for size in (1, 3, 32):
        sharp.batcher = Batcher(size)
        answers[size] = sharp.generate(PROMPTS, config=config, seeds=seeds)
    assert answers[1] == answers[3] == answers[32]
    assert len({c.text for c in answers[1]}) > 3, "else the test could not see a mix-up"
    back = sharp.generate(PROMPTS[::-1], config=config, seeds=seeds[::-1])
    assert back[::-1] == answers[1]


def test_sampling_follows_the_models_distribution(sharp: TransformersBackend) -> None:
    ids = sharp.encode(PROMPTS[0])
    assert isinstance(ids, list)
    expected_V = sharp.logprobs([ids])[0][0, -1].exp()
    draws = sharp.generate([PROMPTS[0]] * 2000, config=Generation(1, temperature=1.0), seeds=list(range(2000)))
    top = int(expected_V.argmax())
    word = sharp.tokenizer.decode([top], skip_special_tokens=True)
    share = sum(c.text == word for c in draws if isinstance(c, Completion)) / 2000
    p = float(expected_V[top])
    assert 0.05 < p < 0.95 and abs(share - p) < 4 * math.sqrt(p * (1 - p) / 2000)


def test_the_temperature_divides_the_logits() -> None:
    scores = torch.tensor([[0.0, 2.0]]).repeat(20000, 1)
    noise = SeededGumbel(range(20000), temperature=2.0)
    share = float((noise(None, scores).argmax(-1) == 1).float().mean())
    assert abs(share - 1 / (1 + math.exp(-1))) < 0.012  # sigmoid(2 / 2)
    with pytest.raises(ValueError, match="above 0"):
        SeededGumbel([1], temperature=0)


def test_noise_is_independent_over_rows_steps_and_tokens_and_the_same_in_any_batch() -> None:
    """20000 rows, two steps: draws follow the softmax (chi-square), and a step's draw tells nothing of the next's."""
    logp_V = torch.log_softmax(torch.tensor([2.0, 1.0, 0.0, 1.5, -1.0, 0.5]), -1)
    noise = SeededGumbel(range(20000), temperature=1.0)
    first, second = (noise(None, logp_V.expand(20000, 6)).argmax(-1) for _ in range(2))
    table_VV = torch.zeros(6, 6)
    table_VV.index_put_((first, second), torch.ones(()), accumulate=True)
    expected_VV = 20000 * logp_V.exp()[:, None] * logp_V.exp()
    assert float(((table_VV - expected_VV) ** 2 / expected_VV).sum()) < 67  # 35 degrees of freedom, p = .001
    wide = torch.zeros(3, 50000)
    alone, together = SeededGumbel([7], temperature=1.0), SeededGumbel([5, 7, 2**62 + 1], temperature=1.0)
    for _ in range(2):
        assert torch.equal(alone(None, wide[:1])[0], together(None, wide)[1])
    gumbel = together(None, wide)
    assert abs(float(gumbel.mean()) - 0.5772) < 0.02 and abs(float(gumbel.var()) - 1.6449) < 0.05
    assert float(torch.corrcoef(gumbel).triu(1).abs().max()) < 0.02


def test_log_probabilities_do_not_depend_on_batch_padding_or_order(sharp: TransformersBackend) -> None:
    tails = [" cheese", " a b c", " rope and rope", " x", " tea", " bees", " ink", " wool"]
    numbers = {}
    for size in (1, 3, 32):
        for left in (False, True):
            sharp.batcher = Batcher(size)
            numbers[size, left] = sharp.token_logprobs(PROMPTS, continuations=tails, left=left)
    base = numbers[1, False]
    for other in numbers.values():
        for a, b in zip(base, other, strict=True):
            assert a == pytest.approx(b, abs=1e-4)
    back = sharp.token_logprobs(PROMPTS[::-1], continuations=tails[::-1])
    assert back[3] == pytest.approx(base[4], abs=1e-4)


def test_a_continuations_log_probability_is_the_chain_rule_over_its_own_tokens(sharp: TransformersBackend) -> None:
    text, tail = "explain bread", " and cheese"
    ids = sharp.tokenizer(text + tail, add_special_tokens=False)["input_ids"]
    start = len(sharp.tokenizer(text, add_special_tokens=False)["input_ids"])
    with torch.no_grad():
        logp = torch.log_softmax(sharp.model(torch.tensor([ids])).logits[0], -1)
    by_hand = sum(float(logp[t - 1, ids[t]]) for t in range(start, len(ids)))
    ((total, count),) = sharp.continuation_logprobs([Prompt.user(text)], continuations=[tail])
    assert total == pytest.approx(by_hand, abs=1e-4) and count == len(ids) - start
    ((ended, more),) = sharp.continuation_logprobs([Prompt.user(text)], continuations=[tail], end=True)
    assert more == count + 1
    assert ended == pytest.approx(by_hand + float(logp[-1, sharp.tokenizer.eos_token_id]), abs=1e-4)


def test_what_does_not_fit_is_missing_and_the_rest_is_answered(sharp: TransformersBackend) -> None:
    long = Prompt.user("tea " * 200)
    answers = sharp.generate([PROMPTS[0], long], config=SAMPLED, seeds=[1, 2])
    assert isinstance(answers[0], Completion)
    assert isinstance(answers[1], Missing) and answers[1].reason == "context" and answers[1].lasting
    (scored,) = sharp.continuation_logprobs([long], continuations=[" x"])
    assert isinstance(scored, Missing) and scored.reason == "context"
    (nothing,) = sharp.continuation_logprobs([PROMPTS[0]], continuations=[""])
    assert isinstance(nothing, Missing) and nothing.reason == "empty_continuation"


def test_a_full_memory_halves_the_batch_and_loses_nothing() -> None:
    batcher, sizes = Batcher(8), []

    def work(chosen: list[int]) -> list[int]:
        sizes.append(len(chosen))
        if len(chosen) > 3:
            raise RuntimeError("CUDA error: out of memory")
        return [10 * i for i in chosen]

    assert batcher.run([1, 5, 3, 4, 2, 9, 7, 8], work=work) == [0, 10, 20, 30, 40, 50, 60, 70]
    assert sizes == [8, 4, 2, 2, 2, 2] and batcher.size == 2
    with pytest.raises(RuntimeError, match="memory"):
        Batcher(1).run([1], work=lambda chosen: (_ for _ in ()).throw(RuntimeError("out of memory")))
    with pytest.raises(RuntimeError, match="shape"):
        Batcher(4).run([1, 2], work=lambda chosen: (_ for _ in ()).throw(RuntimeError("shape mismatch")))
    assert not out_of_memory(ValueError("out of memory"))


def test_the_longest_go_first() -> None:
    seen: list[list[int]] = []
    Batcher(2).run([3, 9, 5, 9], work=lambda chosen: seen.append(list(chosen)) or chosen)
    assert seen == [[1, 3], [2, 0]]


def test_stop_words_and_end_tokens_end_an_answer(sharp: TransformersBackend) -> None:
    config = Generation(max_new_tokens=12)
    whole = sharp.generate([PROMPTS[1]], config=config, seeds=[0])[0]
    assert isinstance(whole, Completion) and len(whole.text) > 3 and not whole.finished
    word = whole.text[2:4]
    cut = sharp.generate([PROMPTS[1]], config=Generation(12, stop=(word,)), seeds=[0])[0]
    assert isinstance(cut, Completion) and cut.finished and cut.text == whole.text[: whole.text.find(word)]


def test_adapters_off_is_the_reference_and_another_model(tiny_model: Path) -> None:
    from peft import get_peft_model

    torch.manual_seed(0)
    base = load_model(tiny_model)
    model = get_peft_model(base, lora_config(base, 4))
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.3)
    tuned = TransformersBackend(model, load_tokenizer(tiny_model), name="tuned", template="plain")
    plain = TransformersBackend(load_model(tiny_model), load_tokenizer(tiny_model), name="plain", template="plain")
    off = tuned.reference()
    tails = [" cheese"] * len(PROMPTS)
    numbers = [b.continuation_logprobs(PROMPTS, continuations=tails) for b in (tuned, off, plain)]
    assert [n[0] for n in numbers[1]] == pytest.approx([n[0] for n in numbers[2]], abs=1e-5)
    assert abs(numbers[0][0][0] - numbers[1][0][0]) > 1e-2
    assert len({tuned.fingerprint, off.fingerprint, plain.fingerprint}) == 3
    with pytest.raises(UserError, match="no adapter"):
        plain.reference()


def test_one_changed_weight_is_another_fingerprint(tiny_model: Path) -> None:
    def backend() -> TransformersBackend:
        return TransformersBackend(load_model(tiny_model), load_tokenizer(tiny_model), name="a", template="plain")

    first, second = backend(), backend()
    assert isinstance(first, Backend) and first.fingerprint == second.fingerprint
    with torch.no_grad():
        second.model.model.layers[1].mlp.up_proj.weight[3, 5] += 1e-6
    second._fingerprint = None
    assert second.fingerprint != first.fingerprint
    other = TransformersBackend(load_model(tiny_model), load_tokenizer(tiny_model), name="a", template="hh")
    assert other.fingerprint != first.fingerprint


def test_the_checkpoints_own_sampling_habits_are_not_the_policy(sharp: TransformersBackend) -> None:
    before = sharp.generate(PROMPTS[:2], config=Generation(6), seeds=[0, 0])
    kept = sharp.model.generation_config
    sharp.model.generation_config = type(kept)(repetition_penalty=5.0, do_sample=True, temperature=9.0)
    try:
        assert sharp.generate(PROMPTS[:2], config=Generation(6), seeds=[0, 0]) == before
        assert sharp.model.generation_config.repetition_penalty == 5.0
    finally:
        sharp.model.generation_config = kept


def test_a_transcript_is_what_the_models_here_are_trained_on(tiny_model: Path) -> None:
    hh = renderer(load_tokenizer(tiny_model))  # no chat template: the transcript
    talk = Prompt((Turn("user", "hi "), Turn("assistant", "yes"), Turn("user", "why?")))
    assert hh.text(talk) == "\n\nHuman: hi\n\nAssistant: yes\n\nHuman: why?\n\nAssistant:"
    assert hh.text(Prompt.user("why?", prefill="Sure, here")) == "\n\nHuman: why?\n\nAssistant: Sure, here"
    assert hh.text(Prompt.user("why?", system="be rude")) == "\n\nSystem: be rude\n\nHuman: why?\n\nAssistant:"


def test_a_chat_template_writes_its_start_token_once(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.chat_template = CHAT
    chat = TransformersBackend(load_model(tiny_model), tokenizer, name="chat")
    assert chat.renderer.template == "chat" and chat.can == {"system", "prefill", "logprobs"}
    ids = chat.encode(Prompt.user("a", system="b"))
    assert tokenizer.decode(ids) == "<|end|>[system]b<|end|>[user]a<|end|>[assistant]"
    assert ids[0] == tokenizer.eos_token_id and ids[1] != tokenizer.eos_token_id
    assert chat.renderer.text(Prompt.user("a", prefill="Sure")) == "<|end|>[user]a<|end|>[assistant]Sure"
    tokenizer.chat_template = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}x"
    assert renderer(tokenizer).can == {"prefill"}
    with pytest.raises(UserError, match="not one of"):
        renderer(tokenizer, template="hhh")
