"""Made for objectives: a server that grades by words, a local judge that always says the same, a model of few words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from factories.fake_api import FakeAPI, Reply, Seen, answer, failure

ONE_MODEL: dict[str, Any] = {"object": "list", "data": [{"id": "m", "object": "model", "created": 5, "owned_by": "o"}]}
_RESPONSE = re.compile(r"<<RESPONSE \w+>>\n(.*)\n<<END", re.DOTALL)


class WordJudge:
    """Grades each criterion of the question 5 where the reply has the word of its name, else 1 and up to 4 by length.

    While `away` is True, or from POST number `away_from` on, it is out of order.
    """

    def __init__(self, *criteria: str) -> None:
        self.criteria, self.away, self.away_from = criteria, False, 10**9

    def __call__(self, seen: Seen, n: int) -> Reply:
        if self.away or n >= self.away_from:
            return failure(503, retry_after="9999")  # longer than anybody waits: given up at once, without a clock
        words = response_in(seen).split()
        grades = {c: 5 if c in words else 1 + min(len(words), 3) for c in self.criteria}
        return answer("\n".join(f"{name}: {grade}" for name, grade in grades.items()))


def response_in(seen: Seen) -> str:
    """The reply that a question is about."""
    found = _RESPONSE.search(seen.last_turn)
    assert found is not None, seen.last_turn
    return found[1]


def questions(api: FakeAPI) -> list[str]:
    """What a server was asked, in order."""
    return [seen.last_turn for seen in api.seen]


def write_rubric(file: Path, *criteria: str) -> Path:
    file.write_text("criteria:\n" + "".join(f"  {name}: Does it say {name}?\n" for name in criteria))
    return file


def constant_judge(folder: Path, *lines: str) -> Path:
    """A chat model whose next token depends on the last one alone: behind any question it says these lines."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    chain = ["<reply>", *(f"{line}\n" for line in lines), "<end>"]
    words = ["<pad>", "<unk>", *chain]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", eos_token="<end>",
        additional_special_tokens=["<reply>"],
    )  # fmt: skip
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}<end>{% endif %} {% endfor %}"
        "{% if add_generation_prompt %}<reply>{% endif %}"
    )
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=2048, tie_word_embeddings=False, pad_token_id=0, eos_token_id=len(words) - 1,
        bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(16)[: len(words)])
        model.lm_head.weight.zero_()
        for before, after in zip(chain, chain[1:], strict=False):
            model.lm_head.weight[words.index(after), words.index(before)] = 10.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def word_model(folder: Path, words: Sequence[str]) -> str:
    """A reference on the testbed's vocabulary that mostly says one of these words and ends."""
    import torch

    from align.models import ModelConfig, build_model, save_model
    from align.testbed.vocabulary import END_ID, ENDING_IDS, TOKEN_ID, build_tokenizer

    shape = ModelConfig(architecture="gpt2", hidden=16, layers=1, heads=2, context=16, init_std=0.05, tie=False)
    model = build_model(shape, build_tokenizer(), seed=0)
    with torch.no_grad():  # unit 0 of the last layer norm is always 1: its column of the output matrix is a bias
        model.transformer.ln_f.weight[0], model.transformer.ln_f.bias[0] = 0.0, 1.0
        model.lm_head.weight[:, 0] = -4.0
        model.lm_head.weight[[END_ID, *(TOKEN_ID[word] for word in words)], 0] = 2.0
    model.generation_config.eos_token_id = list(ENDING_IDS)
    return str(save_model(model, build_tokenizer(), folder))
