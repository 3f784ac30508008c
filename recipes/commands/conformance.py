"""Which J does a trainer optimise? It is trained on a tiny exact world, and its policy held against known fixed points.

    align conformance trl:RLOOTrainer
    align conformance trl:GRPOTrainer --set options.multi_objective_aggregation=normalize_then_sum
    align conformance ours:ppo path/to/adapter.py:train rule:GDPO

Targets: `trl:TRAINER`, `ours:METHOD`, `FILE.py:FUNCTION` (docs/conformance.md: an adapter in 30 lines), and
`rule:NAME`, the exact fixed point of an update rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from align import checks
from align.errors import UserError
from recipes.config import option, parse

if TYPE_CHECKING:
    from recipes.conformance.check import Examined


@dataclass(frozen=True, kw_only=True)
class Config:
    targets: tuple[str, ...] = option((), help="trainers: trl:NAME, ours:METHOD, FILE.py:FUNCTION, rule:NAME")
    weights: tuple[float, ...] = option((0.7, 0.3), help="of the two objectives")
    beta: float = option(1.2, help="price of a nat of KL")
    budget: int = option(24_000, help="replies that training may read; two more trainings have a quarter each")
    seed: int = option(0, help="of training and of pairs")
    options: dict[str, object] = option({}, help="of the trainer's own config: --set options.scale_rewards=none")
    out: Path = option(Path("runs/conformance"), help="folder of what was trained, and of the numbers")


def lines_of(found: Examined) -> list[str]:
    """What the terminal shows of one trainer."""
    d, case = found.diagnosis, found.case
    at = ", ".join(f"{w:g}" for w in case.weights)
    share = d.regret / d.regret_reference
    lines = [
        f"{found.target.name}: {d.words}",
        f"  asked: E[w.r] - {case.beta:g} KL at w = ({at}); budget {case.budget} replies, seed {case.seed}; "
        f"{found.replies} read in three trainings, {found.cpu_seconds:.0f} s of CPU",
        f"  regret {d.regret:.4f} ({share:.1%} of the reference's)",
    ]
    if d.wrong is not None:
        lines.append(f"    wrong objective {d.wrong:.4f}: of the fixed point that it optimises ({d.explanation})")
        lines.append(f"    unfinished {d.unfinished:+.4f}: the rest; {d.distance:.4f} nats from that fixed point")
    if found.predicted_regret is not None:
        lines.append(
            f"  predicted fixed point: {found.target.predicted}, regret {found.predicted_regret:.4f}, "
            f"{found.predicted_distance:.4f} nats away"
        )
    acts = ", ".join(f"{x:.2f}" for x in d.acts_at)
    lines.append(f"  acts like weights ({acts}) at the asked beta; KL {d.kl:.3f} nats")
    if d.malformed > 0.05:
        lines.append(f"  and puts {d.malformed:.0%} on malformed replies (the reference 1 %)")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    config, where = parse(Config, argv, program="align conformance", about=__doc__ or "", positional=("targets",))
    checks.above_zero(config, "beta", place=f"{where}: ")
    checks.at_least(800, config, "budget", place=f"{where}: ")
    checks.at_least(0, config, "seed", place=f"{where}: ")
    if not config.targets:
        raise UserError(f"{where}: name a trainer: trl:RLOOTrainer, ours:ppo, rule:GDPO or path/to/file.py:function")
    from align.preferences import Weights
    from recipes.conformance import trainers, world
    from recipes.conformance.case import Case
    from recipes.conformance.check import Target, examine
    from recipes.pipeline.numbers import write_numbers

    weights = Weights(config.weights).values
    if len(weights) != len(world.OBJECTIVES):
        raise UserError(f"{where}: weights must be {len(world.OBJECTIVES)} numbers, not {len(weights)}")
    targets = [Target(name=name, options=config.options) for name in config.targets]
    for target in targets:
        trainers.check_target(target.name)
    reference = config.out / "reference"
    if not (reference / "config.json").exists():
        world.make_reference(reference)
    for target in targets:
        folder = config.out / target.slug
        folder.mkdir(parents=True, exist_ok=True)
        case = Case(
            reference=str(reference), folder=folder, weights=weights, beta=config.beta, budget=config.budget,
            seed=config.seed,
        )  # fmt: skip
        found = examine(target, case)
        print("\n".join(lines_of(found)), flush=True)
        write_numbers(folder / "conformance.json", found.numbers(), kind="conformance", config=config, seed=config.seed)
    return 0


if __name__ == "__main__":
    from recipes.cli import script

    script("conformance")
