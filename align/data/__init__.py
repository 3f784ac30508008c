"""Rows for every stage: load, normalise, clean, split, tokenize, pack; nothing heavy is imported until it is used."""

from align.data.clean import CleanConfig, clean_comparisons, clean_text, clean_texts
from align.data.columns import as_completion
from align.data.hh import as_human_turn, load_comparisons
from align.data.load import load_rows
from align.data.pack import encode, pack, token_stream
from align.data.split import held_out_parts, normal_prompt, split_by_prompt
from align.data.tokenizer import train_tokenizer

__all__ = [
    "CleanConfig",
    "as_completion",
    "as_human_turn",
    "clean_comparisons",
    "clean_text",
    "clean_texts",
    "encode",
    "held_out_parts",
    "load_comparisons",
    "load_rows",
    "normal_prompt",
    "pack",
    "split_by_prompt",
    "token_stream",
    "train_tokenizer",
]
