"""Models from scratch in the shapes of GPT-2, Llama and BERT, freshly initialised in float32; how large a model is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from align import checks
from align.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

ARCHITECTURES = ("llama", "gpt2", "bert")


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a model built from scratch.

    `hidden` and `intermediate` are in units (None: 4 x hidden for GPT-2 and BERT; 8/3 x hidden, rounded up to 8, for
    Llama's gated layer), `context` in tokens. `dropout` is the residual dropout while this model trains; `tie` shares
    the input and output embeddings; `init_std` is the standard deviation of the initial matrices (narrow models learn
    much faster from about 1 / sqrt(hidden) than from the usual 0.02).
    """

    architecture: str = "llama"
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    intermediate: int | None = None
    context: int = 512
    dropout: float = 0.0
    tie: bool = True
    init_std: float = 0.02

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise UserError(f"model.architecture {self.architecture!r} is not one of {', '.join(ARCHITECTURES)}")
        checks.at_least(1, self, "hidden", "layers", "heads", "intermediate", place="model.")
        checks.at_least(2, self, "context", place="model.")
        checks.above_zero(self, "init_std", place="model.")
        if self.init_std > 1:
            raise UserError(f"model.init_std {self.init_std:g} must be at most 1")
        if self.hidden % self.heads:
            raise UserError(f"model.hidden {self.hidden} is not a multiple of model.heads {self.heads}; change one")
        if self.architecture == "llama" and (self.hidden // self.heads) % 2:
            raise UserError(f"model.hidden / model.heads = {self.hidden // self.heads} must be even for a llama")
        if not 0 <= self.dropout < 1:
            raise UserError(f"model.dropout {self.dropout} must be in [0, 1)")

    @property
    def feed_forward(self) -> int:
        """Units of the feed-forward layer."""
        if self.intermediate is not None:
            return self.intermediate
        return -(-8 * self.hidden // 24) * 8 if self.architecture == "llama" else 4 * self.hidden


def _hf_config(config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    from transformers import BertConfig, GPT2Config, LlamaConfig

    special = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "initializer_range": config.init_std,
    }
    if config.architecture == "gpt2":
        return GPT2Config(
            n_embd=config.hidden, n_layer=config.layers, n_head=config.heads, n_inner=config.feed_forward,
            n_positions=config.context, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            tie_word_embeddings=config.tie, **special,
        )  # fmt: skip
    shape: dict[str, int | bool] = {
        "hidden_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.feed_forward,
        "max_position_embeddings": config.context,
        "tie_word_embeddings": config.tie,
    }
    if config.architecture == "bert":
        return BertConfig(**shape, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=1, **special)
    return LlamaConfig(**shape, num_key_value_heads=config.heads, attention_dropout=0.0, **special)


def build_model(config: ModelConfig, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> PreTrainedModel:
    """A freshly initialised model: a causal LM, or for "bert" a one-output sequence classifier (a reward model)."""
    import torch
    from transformers import AutoModelForCausalLM, BertForSequenceClassification

    from align.models.dropout import set_dropout
    from align.models.tokenizers import require_special_tokens

    require_special_tokens(tokenizer, "the tokenizer")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        hf_config = _hf_config(config, tokenizer)
        if config.architecture == "bert":
            model = BertForSequenceClassification(hf_config)
        else:
            model = AutoModelForCausalLM.from_config(hf_config, dtype=torch.float32)
    set_dropout(model, config.dropout)
    return model


def count_parameters(model: PreTrainedModel, *, embeddings: bool) -> int:
    """Number of parameters; `embeddings=False` leaves out lookup tables, the part that costs no multiplication.

    A table that is also the output matrix (tied) multiplies every hidden state and is therefore counted either way.
    """
    from torch import nn

    total = sum(p.numel() for p in model.parameters())
    if embeddings:
        return total
    output = model.get_output_embeddings()
    shared = None if output is None else output.weight
    tables = {id(m.weight): m.weight for m in model.modules() if isinstance(m, nn.Embedding) and m.weight is not shared}
    return total - sum(weight.numel() for weight in tables.values())
