"""Small tokenizers in the styles of models that people use, and tiny models for them: how turns begin and end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + "
    "m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] | trim + "
    "'<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported') }}{% endif %}{% endfor %}"
)
THINKING = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{% set said = m['content'].split('</think>')[-1] %}"
    "{{ '<|im_start|>assistant\n' }}{% if loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ said.lstrip('\n') + '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}"
)


@dataclass(frozen=True)
class Style:
    """How a family of models writes: special tokens, template, start token added by the tokenizer, extra stop."""

    name: str
    special: tuple[str, ...]
    eos: str
    pad: str | None
    bos: str | None = None
    adds_bos: bool = False
    template: str | None = None
    turn_end: str = ""  # the token at which a turn ends; the end token where this is empty
    system: bool = True

    @property
    def end(self) -> str:
        return self.turn_end or self.eos


STYLES = (
    Style("chatml", ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "<|im_end|>", "<|im_end|>", template=CHATML),
    Style(
        "llama3", ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|eot_id|>", None, "<|begin_of_text|>", True, LLAMA3,
    ),
    Style(
        "gemma", ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        "<eos>", "<pad>", "<bos>", True, GEMMA, "<end_of_turn>", False,
    ),
    Style("mistral", ("<unk>", "<s>", "</s>"), "</s>", None, "<s>", True, MISTRAL, system=False),
    Style(
        "thinking", ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "<|im_end|>", "<|endoftext|>", template=THINKING
    ),
    Style("base_bos", ("<s>", "</s>"), "</s>", None, "<s>", True),
    Style("base", ("<|endoftext|>",), "<|endoftext|>", None),
)  # fmt: skip
BY_NAME = {style.name: style for style in STYLES}


def chat_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with a few merges, in the style of that name."""
    style = BY_NAME[name]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {word: i for i, word in enumerate([*style.special, *alphabet])}
    merges = [
        ("Ġ", "a"),
        ("Ġ", "I"),
        ("h", "e"),
        ("Ġ", "t"),
        ("Ġt", "he"),
        ("i", "n"),
        ("s", "t"),
        ("e", "r"),
        ("Ġ", "S"),
    ]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in style.special])
    if style.adds_bos:
        core.post_processor = processors.TemplateProcessing(
            single=f"{style.bos} $A",
            pair=f"{style.bos} $A {style.bos} $B",
            special_tokens=[(style.bos, vocabulary[style.bos])],
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=style.eos,
        bos_token=style.bos,
        pad_token=style.pad,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = style.template
    return tokenizer


def chat_checkpoint(name: str, folder: Path, *, seed: int = 0, hostile: bool = False, hidden: int = 32) -> Path:
    """A tiny Llama with a tokenizer of that style, saved in `folder`; `hostile`: with sampling habits and dropout."""
    import torch

    style, tokenizer = BY_NAME[name], chat_tokenizer(name)
    ids = tokenizer.convert_tokens_to_ids
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True,
        initializer_range=0.3, eos_token_id=ids(style.eos), bos_token_id=None if style.bos is None else ids(style.bos),
        pad_token_id=None if style.pad is None else ids(style.pad), attention_dropout=0.1 if hostile else 0.0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    ends = list(dict.fromkeys([ids(style.eos), ids(style.end)]))
    habits = (
        {"do_sample": True, "min_p": 0.6, "typical_p": 0.5, "no_repeat_ngram_size": 1, "suppress_tokens": [ids("a")],
         "temperature": 0.3}
        if hostile
        else {}
    )  # fmt: skip
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=config.pad_token_id, **habits)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
