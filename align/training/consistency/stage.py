"""The stage of consistency training: a finished policy and pairs of prompts in, the policy trained further out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from align import checks
from align.errors import UserError
from align.models import count_parameters, load_tokenizer, save_model
from align.models.formats import settle
from align.models.stored.adapters import folded
from align.runs import Ledger
from align.training.common import drop_checkpoints, final_loss, finish_trainer, resume_point
from align.training.consistency.activations import activation_trainer
from align.training.consistency.outputs import Written, output_trainer
from align.training.consistency.settings import ConsistencyConfig, Models, PromptPair, student, with_plain


def consistency(
    config: ConsistencyConfig,
    *,
    models: Models,
    pairs: Sequence[PromptPair],
    out: Path,
    ledger: Ledger,
    written: Written | None = None,
) -> dict[str, object]:
    """Train the policy on the pairs, save `out/model`, and return metrics; resumes.

    `written`: a plain reply as it is due behind a pair's shifted prompt (another spelling, say), or None where it
    cannot be written so; without it the reply stays as it is. Metrics: `loss` (last logged: nats per reply token, or
    mean squared distance of states), `steps`, `trained_on` (rows), and what was left out or cut, by reason.

    Raises:
        UserError: no pair, a setting that needs a reference without one, or no row left to train on.
    """
    from transformers import set_seed

    if not pairs:
        raise UserError("consistency training needs pairs of a plain and a shifted prompt; none was given")
    if config.needs_reference and models.reference is None:
        raise UserError("target carried and embeddings restored read the reference; name it with --reference")
    tokenizer = load_tokenizer(models.policy.path)
    settle(tokenizer, place=models.policy.path, prompts=[pair.plain for pair in pairs])
    model = student(config, models)
    config = replace(config, max_length=checks.longest_row(config.max_length, model))
    rows = with_plain(pairs) if config.keep_plain else list(pairs)
    set_seed(config.seed)
    if config.kind == "outputs":
        trainer, counts = output_trainer(
            config, model, tokenizer, policy=models.policy, pairs=rows, written=written, out=out, ledger=ledger
        )
    else:
        trainer, counts = activation_trainer(config, model, tokenizer, models=models, pairs=rows, out=out)
    set_seed(config.seed)
    parameters, before = count_parameters(model, embeddings=False), ledger.tokens
    finish_trainer(trainer, label="consistency", ledger=ledger, parameters=parameters)
    trainer.train(resume_from_checkpoint=resume_point(out))
    if config.kind == "activations":  # the frozen policy reads as much, with a reference three models do
        frozen = 3 if config.target == "carried" else 1
        ledger.add(flops=2.0 * frozen * parameters * (ledger.tokens - before))
    merges = config.lora_r and config.merge_adapter and not config.load_in_4bit
    save_model(folded(trainer.model) if merges else trainer.model, tokenizer, out / "model")
    drop_checkpoints(out)
    left_out = {name: count for name, count in counts.items() if count}
    metrics: dict[str, object] = {"loss": final_loss(trainer), "steps": trainer.state.global_step}
    return metrics | {"trained_on": len(trainer.train_dataset), **({"left_out": left_out} if left_out else {})}
