"""A chat model end to end: suites, reward models, methods with LoRA, what each policy gained and cost -> report.

align chat --data ../shared/data
align chat --model Qwen/Qwen2.5-0.5B-Instruct --data ../shared/data --out runs/chat-qwen

MODEL is a hub id, a directory or a .gguf file; without one SmolLM2-135M-Instruct, from the hub or from a PyPI wheel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from align.runs import model_dir, write_json, write_text
from recipes.config import parse
from recipes.pipeline.plan import ordered, plan
from recipes.pipeline.provenance import command_line, publish
from recipes.pipeline.tasks import run_calls
from recipes.real.chat import Config, more_calls
from recipes.real.setting import setting_of

DEFAULTS = Path(__file__).parents[1] / "configs" / "chat.yaml"


def main(argv: Sequence[str] | None = None) -> int:
    config, where = parse(Config, argv, program="align chat", about=__doc__ or "", defaults=DEFAULTS)
    if config.model is None:
        from recipes.real.small_model import small_chat_model

        config = dataclasses.replace(config, model=small_chat_model())
    refuse_unreachable(model_dir(str(config.model)))
    setting, rows = setting_of(config, where=where)
    made = plan(setting, rows)
    calls = more_calls(made, setting, config, where=where)
    run_calls(ordered([*made.calls, *calls.every]), workers=config.workers, label="chat")
    from evals.report.against_reference import page
    from recipes.real.chat_summary import about, chat_summary

    command = command_line("align chat", argv)
    summary, claims = chat_summary(config, made, setting, calls, command=command)
    write_json(setting.out / "chat.json", {"claims": claims, "tables": summary.tables, "notes": summary.notes})
    write_text(setting.out / "chat.md", page(summary.jsonable(), claims, about=about(summary, command=command)))
    publish(summary.jsonable(), out=setting.out, words="\n".join(summary.notes))
    return 0


def refuse_unreachable(model: str) -> None:
    """UserError before any work where neither this machine nor the hub has such a model."""
    if Path(model).exists():
        return
    from transformers import AutoConfig

    from align.models.load import unreadable

    try:
        AutoConfig.from_pretrained(model)
    except Exception as error:  # offline, unknown, private: the libraries raise many types
        raise unreadable(model, error) from error


if __name__ == "__main__":
    from recipes.cli import script

    script("chat")
