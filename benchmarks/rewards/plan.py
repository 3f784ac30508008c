"""The rewards benchmark's calls: which rewards are learned on a world and seed, how combined, and what is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from align.objectives.pooled_reward import FEATURES
from align.runs import Call
from align.testbed.world import load_world
from align.training.pooled_reward import PooledConfig
from align.training.reward_model import RewardModelConfig
from benchmarks.rewards import stages as own
from benchmarks.rewards.stages import How
from benchmarks.testbed.plan import Benchmark, read_file, setting_of
from recipes.pipeline.plan import Plan, ordered, plan
from recipes.testbed import stages

FILE = Path(__file__).with_name("rows.yaml")
MEMBERS = 3
BEFORE, BEST = "single", "pooled"  # named before any published seed was run
SOLVED = {BEST: FEATURES, "pooled/last": ("last",)}
ROW = "rewarded_soups"


@dataclass(frozen=True, kw_only=True)
class Solved(Benchmark):
    """The same world and seed, whose methods are trained on pooled rewards; shared stages lie in `shared`."""

    shared: Path

    def folder(self, kind: str) -> Path:
        return self.shared / kind if kind in ("comparisons", "facts") else super().folder(kind)

    def reward_models(self) -> Mapping[str, Call]:
        return {
            name: own.solved.call(
                self.shared / "rewards" / f"{BEST}-{name}", world=self.world, reference=self.made("sft"),
                pairs=self.made("comparisons"), objective=k, features=PooledConfig(batch_size=512),
            ).named(f"{BEST}-{name}{self.tag}")
            for k, name in enumerate(self.objectives)
        }  # fmt: skip


def trained_variants(config: RewardModelConfig, *, tau: float) -> dict[str, RewardModelConfig]:
    """Reward models that differ from the usual one in one setting each; members differ in the seed."""
    import math

    members = {f"member-{m}": replace(config, seed=config.seed + 1000 * m) for m in range(1, MEMBERS)}
    return members | {
        "one_epoch": replace(config, epochs=1.0),
        "decay": replace(config, weight_decay=1.0),
        "smoothed": replace(config, label_smoothing=1 / (1 + math.exp(1 / tau))),
        "length_matched": replace(config, length_matched=True),
    }


def calls_of(setting: Benchmark, *, more: bool) -> tuple[list[Call], dict[str, Call]]:
    """(Everything to run in order, row -> the call that judges it); `more`: beside single, pooled and the oracles."""
    work = setting.out / "rewards"
    sft, pairs = setting.made("sft"), setting.made("comparisons")
    shared: dict[str, Any] = {"world": setting.world, "reference": sft, "pairs": pairs}
    learned: dict[str, dict[str, Call]] = {BEFORE: dict(setting.reward_models())}
    for variant, features in SOLVED.items() if more else [(BEST, FEATURES)]:
        learned[variant] = {
            name: own.solved.call(
                work / f"{variant.replace('/', '_')}-{name}", **shared, objective=k,
                features=PooledConfig(features=features, batch_size=512),
            ).named(f"{variant}-{name}{setting.tag}")
            for k, name in enumerate(setting.objectives)
        }  # fmt: skip
    variants = trained_variants(setting.budget.reward_model, tau=setting.world.config.tau) if more else {}
    for variant, training in variants.items():
        learned[variant] = {
            name: stages.reward_model.call(
                work / f"{variant}-{name}", **shared, objective=k, training=training
            ).named(f"{variant}-{name}{setting.tag}")
            for k, name in enumerate(setting.objectives)
        }  # fmt: skip
    if more:
        learned["warm"] = {
            name: own.averaged.call(
                work / f"warm-{name}", members={v: learned[v][name].run for v in (BEFORE, *members())}
            ).named(f"warm-{name}{setting.tag}")
            for name in setting.objectives
        }  # fmt: skip
    asked: dict[str, Any] = {"weights": setting.preferences, "home": setting.home}
    rows = {
        row: own.judged.call(
            work / "judged" / row.replace("/", "_"), **shared, **asked, how=how,
            members={f"{n} {m}": learned[v][n].run for m, v in enumerate(parts) for n in setting.objectives},
        ).named(f"judge {row}{setting.tag}")
        for row, (parts, how) in judged_rows(more=more).items()
    }  # fmt: skip
    rows |= {
        f"oracle/{kind}": own.oracle.call(work / "judged" / f"oracle_{kind}", **shared, **asked, kind=kind).named(
            f"judge oracle {kind}{setting.tag}"
        )
        for kind in ("true_class", "rules", "topic_blind")
    }
    made = [call for by_name in learned.values() for call in by_name.values()]
    return [*setting.reference(), *setting.comparisons(), *made, *rows.values()], rows


def members() -> tuple[str, ...]:
    """The members of an ensemble beside the usual reward model."""
    return tuple(f"member-{m}" for m in range(1, MEMBERS))


def judged_rows(*, more: bool) -> dict[str, tuple[Sequence[str], How]]:
    """Row -> (what it is made of, how)."""
    plain = How()
    rows: dict[str, tuple[Sequence[str], How]] = {
        BEFORE: ((BEFORE,), plain),
        "single/calibrated": ((BEFORE,), How(calibrated=True)),
        BEST: ((BEST,), plain),
        "pooled/pessimistic": ((BEST,), How(pessimism=1.0)),
        "single + pooled": ((BEFORE, BEST), plain),
    }
    if more:
        every = (BEFORE, *members())
        rows |= {f"ensemble/{combine}": (every, How(combine=combine)) for combine in ("mean", "min", "mean-std")}
        rows["ensemble/calibrated"] = (every, How(calibrated=True))
        rows |= {
            name: ((name,), plain)
            for name in ("pooled/last", "warm", "one_epoch", "decay", "smoothed", "length_matched")
        }
    return rows


def trained(world: str, seed: int, *, out: Path) -> dict[str, Plan]:
    """ "before" and "best" -> the plan that trains the row on either rewards and judges its policies exactly."""
    found = read_file(FILE)
    usual = setting_of(found, world=load_world(world), seed=seed, out=out)
    fields = {name: getattr(usual, name) for name in usual.__dataclass_fields__}
    best = Solved(**{**fields, "out": usual.out / BEST, "tag": f" {BEST}{usual.tag}"}, shared=usual.out)
    return {"before": plan(usual, found.named([ROW])), "best": plan(best, found.named([ROW]))}


def needed(made: Plan) -> list[Call]:
    """The calls that the row's regret share takes: its cells, the reference's, and all that these are made of."""
    by_folder = {call.out: call for call in made.calls}
    waiting = [*made.cells[ROW], *made.cells["reference"]]
    kept: dict[Path, Call] = {}
    while waiting:
        call = waiting.pop()
        if call.out not in kept:
            kept[call.out] = call
            waiting += [by_folder[folder] for folder in call.needs if folder in by_folder]
    return [call for call in made.calls if call.out in kept]


def world_calls(world: str, seed: int, *, out: Path, more: bool) -> tuple[list[Call], dict[str, Call]]:
    """`calls_of` at the file's budget."""
    calls, rows = calls_of(setting_of(read_file(FILE), world=load_world(world), seed=seed, out=out), more=more)
    return list(ordered(calls)), rows
