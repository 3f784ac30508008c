"""Each update rule as a TRL user sets it, the commands that show it, and its exact regret on the conformance world."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from align.testbed.theory.diagnosis import regret_of
from align.testbed.theory.hypotheses import LIBRARY
from evals.items import Json
from recipes.conformance import world
from recipes.conformance.case import Case

GRPO = "trl:GRPOTrainer"


@dataclass(frozen=True)
class Line:
    """A row of the benchmark, what one writes in TRL for it, the rule in `align conformance`, and the trainer."""

    row: str
    setting: str
    rule: str
    trainer: str | None = None  # with its options; None where TRL has none


LINES = (
    Line("plain", "`RLOOTrainer`", "right", "trl:RLOOTrainer"),
    Line("grpo", "`GRPOTrainer` as it is", "group scaling, KL per token", GRPO),
    Line(
        "batch_trl", '`scale_rewards="batch"`', "batch scaling, KL per token",
        f"{GRPO} --set options.scale_rewards=batch",
    ),
    Line("token_kl", '`scale_rewards="none"`', "KL per token", f"{GRPO} --set options.scale_rewards=none"),
    Line(
        "token_k3", "the same and `use_bias_correction_kl=False`", "KL per token, k3",
        f"{GRPO} --set options.scale_rewards=none --set options.use_bias_correction_kl=false",
    ),
    Line(
        "gdpo_trl", '`multi_objective_aggregation="normalize_then_sum"` (GDPO)', "GDPO, KL per token",
        f"{GRPO} --set options.multi_objective_aggregation=normalize_then_sum",
    ),
    Line("group", "group scaling beside the whole sequence's KL", "group scaling"),
    Line("batch", "batch scaling beside the whole sequence's KL", "batch scaling"),
    Line("gdpo", "GDPO beside the whole sequence's KL", "GDPO"),
    Line("rdpo", "RDPO (not in TRL: trl#5886), beside the whole sequence's KL", "RDPO"),
)  # fmt: skip


def on_the_conformance_world() -> list[Json]:
    """Each line with the regret share of its rule's fixed point, as `align conformance rule:NAME` prints it."""
    policies = {one.name: one.policy for one in LIBRARY}
    with TemporaryDirectory() as folder:
        case = Case(reference=world.make_reference(Path(folder) / "reference"), folder=Path(folder))
        asked = case.asked
        whole = regret_of(asked.tree.leaf_logref, asked)
        return [
            {**asdict(line), "share": float(f"{max(regret_of(policies[line.rule](asked), asked), 0.0) / whole:.3g}")}
            for line in LINES
        ]
