"""Supervised fine-tuning: a model + demonstrations -> the model that later stages call the reference.

align sft --model runs/pretrain --data demonstrations.jsonl --out runs/sft
align sft --config recipes/configs/sft.yaml --model runs/pretrain --data demonstrations.jsonl --max-steps 200
align sft --model Qwen/Qwen3-0.6B --data chats.jsonl --chat-template-kwargs '{"enable_thinking": false}'
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from align import checks
from align.data.sources import demonstrations
from align.data.split import held_out_parts
from align.runs import Ledger, Metrics, model_dir, run_stage
from recipes.config import option, parse, section_field, with_flags
from recipes.pipeline.inputs import closing_line, content_key

if TYPE_CHECKING:
    from align.training.sft import SFTConfig_


@dataclass(frozen=True, kw_only=True)
class Config:
    model: str = option(help="run, Hugging Face directory or hub id of the model to start from")
    data: str = option(
        help="demonstrations (prompt, completion), conversations (messages; every reply counts) or comparisons (the "
        "chosen side): file, directory, hub id"
    )
    out: str = option("runs/sft", help="run directory to write")
    held_out: float = option(0.0, help="share of the prompts kept for validation (bits per byte, eval_steps)")
    limit: int | None = option(None, help="read only the first rows")
    template: str | None = option(None, help="prompt format that the model is trained in: auto, chat, hh or plain")
    chat_template_kwargs: Mapping[str, object] | None = option(
        None, help='JSON for the chat template, such as {"enable_thinking": false}'
    )
    max_steps: int | None = option(None, help="stop after so many optimizer steps")
    seed: int | None = option(None, help="seed of the order of rows and of dropout")
    training: SFTConfig_ = section_field("align.training.sft:SFTConfig_", help="keys of align.training.sft.SFTConfig_")


def main(argv: Sequence[str] | None = None) -> int:
    config, where = parse(Config, argv, program="align sft", about=__doc__ or "")
    training = with_flags(
        config.training, max_steps=config.max_steps, seed=config.seed, template=config.template,
        chat_template_kwargs=config.chat_template_kwargs,
    )  # fmt: skip
    model, drops = model_dir(config.model), Counter[str]()
    checks.shares(config, "held_out", place=f"{where}: ")
    rows = demonstrations(config.data, limit=config.limit, drops=drops)
    parts = held_out_parts(rows, share=config.held_out, seed=training.seed)

    def body(folder: Path, ledger: Ledger) -> Metrics:
        from align.training.sft import sft

        held_out = parts["validation"] or None
        metrics = sft(training, model=model, rows=parts["train"], validation=held_out, out=folder, ledger=ledger)
        return {"rows": len(rows), "dropped": dict(drops), **metrics}

    inputs = {"model": content_key(config.model), "data": content_key(config.data)}
    keyed: dict[str, object] = {"training": training, "limit": config.limit}
    keyed |= {"held_out": config.held_out} if config.held_out else {}
    print(closing_line(run_stage(config.out, stage="sft", config=keyed, body=body, inputs=inputs)))
    return 0


if __name__ == "__main__":
    from recipes.cli import script

    script("sft")
