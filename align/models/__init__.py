"""Building, loading, saving and adapting models: GPT-2, Llama and BERT shapes, or any causal LM directory or hub id.

Dropout is a matter of training, not of a model: saved configs say 0 and `set_dropout` turns it on in memory, the same
residual dropout for every architecture. (Llama in transformers has none of its own, and TRL's on-policy trainers would
leave a dropout found in a checkpoint switched on.) Weights are float32; on a GPU the trainers compute in bf16.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align import checks
from align.errors import UserError
from align.runs import model_dir

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
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
    shape: dict[str, Any] = {
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


def require_special_tokens(tokenizer: PreTrainedTokenizerBase, place: str) -> None:
    """UserError unless the tokenizer has an end and a padding token; a missing padding token becomes the end token."""
    if tokenizer.eos_token_id is None:
        raise UserError(f"{place} has no end-of-text token; set tokenizer.eos_token and save it again")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a run, a model directory or a hub id, with a padding token; UserError when there is none."""
    from transformers import AutoTokenizer

    source = model_dir(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except Exception as error:  # a damaged file shows as TypeError, KeyError or a bare Exception of the Rust library
        raise UserError(f"no tokenizer could be read from {source} ({_first_line(error)}); save one there") from error
    require_special_tokens(tokenizer, f"the tokenizer of {source}")
    tokenizer.padding_side = "right"
    return tokenizer


def load_model(path: str | Path, *, dtype: str = "float32") -> PreTrainedModel:
    """A causal LM from a run, a model directory or a hub id; a LoRA adapter directory is merged into its base.

    float32 whatever the checkpoint says (transformers 5 would keep bf16, in which small updates are lost).
    Raises UserError when the directory lacks a config, a tokenizer or readable weights.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    no_bars()
    source = model_dir(path)
    try:
        if (Path(source) / "adapter_config.json").is_file():
            from peft import AutoPeftModelForCausalLM

            return AutoPeftModelForCausalLM.from_pretrained(source, dtype=dtype).merge_and_unload()
        architectures = AutoConfig.from_pretrained(source).architectures or ()
        if any("SequenceClassification" in name for name in architectures):
            raise UserError(f"{source} is a reward model (a classifier), not a language model; give a policy here")
        model, found = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, output_loading_info=True)
        refuse_missing(found["missing_keys"], source)
        return model
    except UserError:
        raise
    except Exception as error:
        raise unreadable(source, error) from error


def load_scorer(path: str | Path, *, pad_token_id: int, eos_token_id: int) -> PreTrainedModel:
    """A sequence classifier with one output, in float32: a reward model, or the start of one.

    From a causal LM checkpoint the backbone is taken over and the head is new (drawn from torch's generator).
    Raises UserError as `load_model`, and when the checkpoint's head has more than one output.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification
    from transformers.utils import logging

    no_bars()
    source = model_dir(path)
    try:
        config = AutoConfig.from_pretrained(source)
        has_head = any("SequenceClassification" in name for name in config.architectures or ())
        if has_head and config.num_labels != 1:
            raise UserError(f"{source} is a classifier with {config.num_labels} outputs; a reward model has 1")
        level = logging.get_verbosity()
        logging.set_verbosity_error()  # a new head is what we ask for; no report is needed on it
        try:
            model, found = AutoModelForSequenceClassification.from_pretrained(
                source, num_labels=1, dtype="float32", output_loading_info=True
            )
        finally:
            logging.set_verbosity(level)
        head = () if has_head else ("score", "classifier", "pooler")  # new on a backbone that has been no classifier
        refuse_missing([key for key in found["missing_keys"] if not set(head) & set(key.split("."))], source)
    except UserError:
        raise
    except Exception as error:
        raise unreadable(source, error) from error
    model.config.pad_token_id = pad_token_id  # a decoder reads its score at the last token that is not padding
    model.config.eos_token_id = eos_token_id
    return model


def no_bars() -> None:
    """No progress bar for reading and writing weights, which takes a moment and happens hundreds of times."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def refuse_missing(names: Iterable[str], source: str) -> None:
    """UserError when the checkpoint lacks weights: transformers would draw them at random with a warning."""
    missing = sorted(names)
    if missing:
        raise UserError(f"{source} lacks {len(missing)} weights of its model ({missing[0]}); save it again, whole")


def unreadable(source: str, error: Exception) -> UserError:
    """A one-line UserError for whatever the loaders of Hugging Face raised about `source`."""
    return UserError(f"no model could be read from {source} ({_first_line(error)}); save it again or give another")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    """Save weights, config, generation config and tokenizer into `folder`, and return it."""
    no_bars()
    checks.finite_weights(model)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


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


context_of = checks.context_of


def set_dropout(model: PreTrainedModel, p: float) -> None:
    """Residual dropout `p` in training mode: in Dropout modules, else by hooks on attention and feed-forward outputs.

    Calling it again replaces the earlier value. Raises UserError when the architecture offers no place for p > 0.
    """
    import torch
    from torch import nn

    dropouts = [m for m in model.modules() if isinstance(m, nn.Dropout)]
    for module in dropouts:
        module.p = p
    for handle in getattr(model, "_dropout_hooks", ()):
        handle.remove()
    model._dropout_hooks = []
    if dropouts or p == 0:
        return

    def drop(module: nn.Module, _: Any, output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        dropped = torch.nn.functional.dropout(first, p, training=module.training)
        return (dropped, *output[1:]) if isinstance(output, tuple) else dropped

    places = [m for layer in model.modules() if hasattr(layer, "self_attn") for m in (layer.self_attn, layer.mlp)]
    if not places:
        raise UserError(f"dropout {p} asked of a {type(model).__name__}, which has no place for it; set dropout to 0")
    model._dropout_hooks = [place.register_forward_hook(drop) for place in places]


def lora_config(
    model: PreTrainedModel, r: int, *, alpha: float | None = None, dropout: float = 0.0, task: str = "CAUSAL_LM"
) -> LoraConfig:
    """LoRA of rank `r` on every linear layer but the output; scaling alpha / r (alpha None: 2 r; Hu et al. 2021).

    `task="SEQ_CLS"` also trains and saves the new score head. rsLoRA stays off: PEFT 0.21 mis-scales its merges.
    """
    from peft import LoraConfig

    if r < 1:
        raise UserError(f"lora_r {r} must be at least 1 (or 0 in a config: no adapter)")
    head = [name for name in ("score", "classifier") if hasattr(model, name)] if task == "SEQ_CLS" else None
    return LoraConfig(
        task_type=task,
        r=r,
        lora_alpha=2 * r if alpha is None else alpha,
        lora_dropout=dropout,
        target_modules="all-linear",
        modules_to_save=head,
        fan_in_fan_out=model.config.model_type == "gpt2",  # GPT-2 stores its matrices transposed
        use_rslora=False,
    )


def attach_lora(model: PreTrainedModel, r: int, *, alpha: float | None = None, dropout: float = 0.0) -> PeftModel:
    """Wrap a causal LM with a LoRA adapter named "default" (the only name TRL's reference handling accepts)."""
    from peft import get_peft_model

    return get_peft_model(model, lora_config(model, r, alpha=alpha, dropout=dropout))
