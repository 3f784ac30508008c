"""The tokenizer of a run, a model directory or a hub id, with an end and a padding token and its prompt format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from align.errors import UserError
from align.models.formats import Choice, bind, resolve, settle, store, stored_format
from align.models.load import first_line
from align.models.stored.adapters import base_of, is_adapter
from align.models.stored.gguf import gguf_tokenizer
from align.models.stored.vocabulary import require_pad_row
from align.runs import is_gguf, model_dir

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHOSEN: dict[str, Choice] = {}


def choose_format(
    path: str | Path,
    template: str = "auto",
    chat_kwargs: Mapping[str, object] | None = None,
    *,
    prompts: Sequence[str] | None = None,
) -> None:
    """Let this process read the checkpoint at `path` in a format of the user's choice; once, at a command's start.

    `prompts`: those that are trained on, where something is; what auto comes to for them is then a choice, too, and
    kept by what is trained. UserError where the checkpoint carries another format already.
    """
    choice = Choice(template, chat_kwargs or {})
    if choice != Choice():
        _CHOSEN[model_dir(path)] = choice
        load_tokenizer(path)
    elif prompts is not None and stored_format(tokenizer := load_tokenizer(path)) is None:
        _CHOSEN[model_dir(path)] = Choice(settle(tokenizer, prompts=prompts).template)


def require_special_tokens(tokenizer: PreTrainedTokenizerBase, place: str) -> None:
    """UserError unless the tokenizer has an end and a padding token; a missing padding token becomes the end token.

    An encoder's end is its separator.
    """
    if tokenizer.eos_token_id is None and tokenizer.sep_token_id is not None:
        tokenizer.eos_token = tokenizer.sep_token
    if tokenizer.eos_token_id is None:
        raise UserError(f"{place} has no end-of-text token; set tokenizer.eos_token and save it again")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a run, a model directory or a hub id, with a padding token and its prompt format bound to it.

    UserError when there is none, or where it carries another format than the one chosen for it.
    """
    from transformers import AutoTokenizer

    source = model_dir(path)
    try:
        tokenizer = gguf_tokenizer(source) if is_gguf(source) else AutoTokenizer.from_pretrained(source)
    except UserError:
        raise
    except Exception as error:  # a damaged file shows as TypeError, KeyError or a bare Exception of the Rust library
        raise UserError(f"no tokenizer could be read from {source} ({first_line(error)}); save one there") from error
    require_special_tokens(tokenizer, f"the tokenizer of {source}")
    require_pad_row(tokenizer, source)
    tokenizer.padding_side = "right"
    carried, choice = stored_format(tokenizer), _CHOSEN.get(source, Choice())
    if carried is None:
        found = resolve(tokenizer, choice, ends=_stops(source))
        bind(tokenizer, found) if choice == Choice() else store(tokenizer, found)  # a choice is kept by what is trained
    else:
        settle(tokenizer, choice, place=source)
    return tokenizer


def _stops(source: str) -> list[int]:
    """The ids at which a checkpoint's generation config stops; none where it has no such config, as a `.gguf` file."""
    from transformers import GenerationConfig

    while is_adapter(source):
        source = base_of(source)
    if is_gguf(source):
        return []  # transformers would take the file's name for a hub id, and ask the hub for it
    try:
        ends = GenerationConfig.from_pretrained(source).eos_token_id
    except OSError:
        return []
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
