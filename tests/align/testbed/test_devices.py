"""Ids meet a model on the model's device: a model on torch's "meta" device, which refuses what lies elsewhere."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from align.engines.on_policy.rollouts import draw, read
from align.engines.on_policy.sequence_kl import SequenceKL
from align.models.backbones import ModelPool
from align.models.reading import Reader, next_token_logprobs
from align.policies.base import ModelPolicy
from align.policies.mixed import MixedModel, MixedPolicy, Mixture
from align.runs import Ledger
from align.testbed.exact import ExactModel, ExactPolicy
from align.testbed.gold import sample_responses
from align.testbed.tree import node_logprobs
from align.testbed.vocabulary import alphabet_ids, build_tokenizer, encode
from align.testbed.world import World
from factories.tiny_world import TINY, make_model


class Elsewhere:
    """A model whose device is not the CPU, and the tensors that it is given; a stand-in for one on a GPU."""

    def __init__(self) -> None:
        self.model, self.passes = make_model(seed=0).to("meta").eval(), 0
        self.device, self.config, self.training = self.model.device, self.model.config, False
        self.generation_config = self.model.generation_config

    def eval(self) -> Elsewhere:
        return self

    def __call__(self, **inputs: Any) -> Any:
        for name, value in inputs.items():
            if isinstance(value, torch.Tensor) and value.device != self.device:
                raise RuntimeError(f"{name} is on {value.device}, the model on {self.device}")
        self.passes += 1
        return self.model(**inputs)


def test_the_exact_evaluation_builds_its_ids_where_the_model_is() -> None:
    """Every pass goes through; only the finished table, which has no numbers on this device, cannot be copied."""
    model, prompt = Elsewhere(), World(TINY).test_prompts("none")[0]
    with pytest.raises(NotImplementedError, match="meta"):
        node_logprobs(model, encode(prompt.text), alphabet=alphabet_ids(0), max_tokens=2)  # type: ignore[arg-type]
    assert model.passes == 3  # the prompt and two levels


class Zeros(Elsewhere):
    """The same without a pass of the model, whose own handling of masks asks for numbers."""

    def __call__(self, **inputs: Any) -> Any:
        ids_BT = inputs["input_ids"]
        assert all(value.device == self.device for value in inputs.values() if isinstance(value, torch.Tensor))
        self.passes += 1
        kept = inputs.get("logits_to_keep") or ids_BT.shape[1]
        logits_BTV = torch.zeros(len(ids_BT), kept, self.config.vocab_size, device=self.device)
        hidden_BTH = torch.zeros(*ids_BT.shape, self.config.hidden_size, device=self.device)
        return SimpleNamespace(logits=logits_BTV, past_key_values=None, hidden_states=[hidden_BTH])

    def generate(self, *, input_ids: Any, attention_mask: Any, **_: Any) -> Any:
        """Every response is two words and the end, on the CPU: what is on this device has no numbers to read."""
        assert input_ids.device == attention_mask.device == self.device
        self.passes += 1
        return torch.cat(
            [torch.zeros(input_ids.shape, dtype=torch.long), torch.tensor([[5, 6, 1]] * len(input_ids))], 1
        )


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("block_bytes", [2**29, 4])
def test_rows_are_read_where_the_model_is(side: str, block_bytes: int) -> None:
    model, ids = Zeros(), torch.tensor([[2, 3]])
    assert next_token_logprobs(model, ids, torch.ones_like(ids)).device == model.device  # type: ignore[arg-type]
    reader = Reader(pad_id=0, side=side, block_bytes=block_bytes)
    ((batch, logp_BT),) = reader.read(model, [([2, 3], [4, 5])])  # type: ignore[arg-type]
    assert logp_BT.device == batch.ids_BT.device == model.device
    assert model.passes == (2 if block_bytes > 4 else 4)  # the next tokens, and one pass or three pieces


def test_exact_policies_are_read_where_their_models_are() -> None:
    world = World(TINY)
    prompt, models = world.test_prompts("none")[0], [Elsewhere(), Elsewhere()]
    pool = ModelPool.of(dict(zip("ab", models, strict=True)), build_tokenizer())  # type: ignore[arg-type]
    mixed = MixedPolicy("ab", mixture=Mixture((0.5, 0.5)), name="mixed", pool=pool)
    for policy in (ExactModel(models[0], name="alone"), ExactPolicy(mixed)):  # type: ignore[arg-type]
        models[0].passes = 0
        with pytest.raises(NotImplementedError, match="meta"):
            policy.leaf_logprobs(world, prompt)
        assert models[0].passes == TINY.max_tokens + 1


def test_policies_are_sampled_and_read_where_the_model_is() -> None:
    model, tokenizer = Zeros(), build_tokenizer()
    text = World(TINY).test_prompts("none")[0].text
    policy = ModelPolicy("nowhere")
    policy._loaded = (model, tokenizer)  # type: ignore[assignment]
    assert [response.ids for response in policy.draw([text] * 2, max_new_tokens=3, seed=0)] == [(5, 6, 1)] * 2
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):  # the finished numbers cannot be copied
        policy.sequence_logprobs([text], [" " + text])
    ids = torch.tensor([encode(text)])
    assert policy.next_token_logprobs(ids, torch.ones_like(ids)).device == model.device
    assert model.passes == 3


def test_rollouts_are_drawn_and_read_where_the_model_is() -> None:
    model, tokenizer = Zeros(), build_tokenizer()
    prompts = [prompt.text for prompt in World(TINY).test_prompts("none")[:3]]
    batch = draw(model, tokenizer, prompts, ends=[1], batch_size=2)  # type: ignore[arg-type]
    assert batch.ids_BL.device == batch.attend_BL.device == batch.mask_BT.device == model.device
    logp_BT, hidden_BTH = read(model, batch)  # type: ignore[arg-type]
    assert logp_BT.device == hidden_BTH.device == model.device and logp_BT.shape == (3, 3)
    drawn = sample_responses(model, tokenizer, prompts, max_tokens=2, seed=0, ledger=Ledger())  # type: ignore[arg-type]
    assert drawn == [[5, 6, 1]] * 3


def test_a_mixture_is_read_where_its_models_are() -> None:
    models = [Zeros(), Zeros()]
    mixed = MixedModel(models, Mixture((0.5, 0.5)), name="mixed")  # type: ignore[arg-type]
    ids = torch.tensor([[2, 3]])
    out = mixed(input_ids=ids, attention_mask=torch.ones_like(ids))
    assert out.logits.device == models[0].device and [model.passes for model in models] == [1, 1]
    with pytest.raises((NotImplementedError, RuntimeError)):  # whether all have ended is a number
        mixed.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, pad_token_id=0)
    assert [model.passes for model in models] == [2, 2]


def test_the_sequence_kl_is_read_where_the_policy_is() -> None:
    policy, reference = Zeros(), Zeros()
    penalty = SequenceKL("nowhere")
    penalty._frozen = reference  # type: ignore[assignment]
    accelerator = SimpleNamespace(unwrap_model=lambda model: model, autocast=nullcontext)
    penalty.trainer = SimpleNamespace(
        model=policy, accelerator=accelerator, processing_class=build_tokenizer(),
        args=SimpleNamespace(per_device_train_batch_size=4),
    )  # fmt: skip
    text = World(TINY).test_prompts("none")[0].text
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        penalty([text], [""], completion_ids=[[5, 6, 1]])
    assert policy.passes == 1
