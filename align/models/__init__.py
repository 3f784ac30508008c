"""Models in memory: built, loaded, adapted, sampled, read, saved; any causal LM directory or hub id, reward models.

Weights are float32; on a GPU the trainers compute in bf16. `reading` is the one reader of log pi(y|x).
"""

from align.checks import context_of
from align.models.build import ARCHITECTURES, ModelConfig, build_model, count_parameters
from align.models.convert import gguf_to_folder
from align.models.dropout import set_dropout
from align.models.load import load_model, load_scorer, refuse_missing, unreadable
from align.models.lora import attach_lora, lora_config
from align.models.save import quiet, save_model
from align.models.tokenizers import load_tokenizer, require_special_tokens

__all__ = [
    "ARCHITECTURES",
    "ModelConfig",
    "attach_lora",
    "build_model",
    "context_of",
    "count_parameters",
    "gguf_to_folder",
    "load_model",
    "load_scorer",
    "load_tokenizer",
    "lora_config",
    "quiet",
    "refuse_missing",
    "require_special_tokens",
    "save_model",
    "set_dropout",
    "unreadable",
]
