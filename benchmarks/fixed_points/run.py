"""What popular rules optimise, on exact tabular policies: normalisation, GRPO's KL, MOD, soups.

python -m benchmarks.fixed_points.run [--draws 60] [--soup-draws 24] [--seed 0] [--out docs/results]

Nothing is sampled from a policy: every number is the fixed point of an exact expected update (or a closed form) on
worlds small enough to enumerate, and intervals are computed over random draws of rewards and references. Writes
fixed_points.json and the page fixed_points.md, which is made from it. One thread.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from align import checks
from align.errors import guarded
from align.runs import environment
from align.testbed.theory import low_rank
from align.testbed.theory.fixed_points import (
    Tree,
    fixed_point,
    leaf_logprobs,
    nearest_tilt,
    optimum,
    regret,
    sequence_mod,
    token_mod,
)
from align.testbed.theory.group_advantages import Groups
from align.testbed.theory.quantile_whitening import rdpo
from align.testbed.theory.random_worlds import LowRankWorld, SequenceWorld, draw_trees, latent_rewards
from benchmarks.fixed_points.commands import on_the_conformance_world
from benchmarks.fixed_points.page import page
from benchmarks.pages import write
from evals.items import Json
from evals.stats.intervals import seed_interval
from recipes.config import option, parse

TOLERANCE = 1e-8  # of the relative change that one more update would make
SETTLED = 0.01  # regret share by which the second half of the steps may move a settled draw
WEIGHTS = ((0.25, 0.75), (0.5, 0.5), (0.75, 0.25))
WORLDS = (
    SequenceWorld("bandit", 8, 1, 1, beta=1.0, correlation=-0.8, scales=(1.0, 3.0), group=8),
    SequenceWorld("gentle pairs", 4, 2, 4, beta=2.0, spread=1.0),
    SequenceWorld("sharp pairs", 4, 2, 4, beta=0.3, spread=1.0),
    SequenceWorld("triples", 4, 3, 4, beta=1.0, spread=1.0),
    SequenceWorld("verifiable", 4, 2, 4, beta=0.1, correlation=0.0, binary=True, group=8),
)
LOW_RANK_WORLDS = (
    LowRankWorld("fits", 2, 2, 0.0),
    LowRankWorld("nearly fits", 4, 4, 0.3),
    LowRankWorld("too small", 2, 4, 0.3),
)
RULES = {  # row -> (advantage scale, where the KL stands)
    "plain": ("none", "reward"), "group": ("group", "loss"), "batch": ("batch", "loss"), "gdpo": ("gdpo", "loss"),
    "token_kl": ("none", "token"), "token_k3": ("none", "token_k3"), "grpo": ("group", "token"),
    "batch_trl": ("batch", "token"), "gdpo_trl": ("gdpo", "token"),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A rule's policy: log-probabilities of whole responses, the weights c_k that it really optimises where such exist,
    the relative change that one more update would make, and where that says little the policy after half of the steps.
    """

    logp: np.ndarray
    tilt: np.ndarray | None = None
    residual: float = 0.0
    halfway: np.ndarray | None = None


def sequence_rows(world: SequenceWorld, tree: Tree, weights: Sequence[float]) -> dict[str, Row]:
    """Each rule's fixed point, in large groups and (where the world has a group size) in finite ones, and MOD."""
    rules: list[tuple[str, str, str, int | None]] = [(name, *rule, None) for name, rule in RULES.items()]
    if world.group:
        rules += [(f"{scale}_finite", scale, "loss", world.group) for scale in ("group", "gdpo")]
    rows = {}
    for name, scale, kl, group in rules:
        groups = None if group is None else Groups(group)
        point = fixed_point(
            tree, weights=weights, beta=world.beta, scale=scale, kl=kl, groups=groups, tolerance=TOLERANCE
        )  # fmt: skip
        tilt = point.tilt if kl == "loss" and group is None else None
        rows[name] = Row(point.leaf_logp, tilt, point.residual)
    ranked = rdpo(tree, weights=weights, beta=world.beta, tolerance=TOLERANCE)
    rows["rdpo"] = Row(ranked.leaf_logp, residual=ranked.residual, halfway=ranked.halfway)
    best = [optimum(tree, weights=one, beta=world.beta) for one in ((1.0, 0.0), (0.0, 1.0))]
    rows["token_mod"] = Row(leaf_logprobs(tree, token_mod(best, weights=weights)))
    rows["sequence_mod"] = Row(sequence_mod([leaf_logprobs(tree, levels) for levels in best], weights=weights))
    return rows


def measured(row: Row, *, world: SequenceWorld, tree: Tree, weights: Sequence[float]) -> dict[str, np.ndarray]:
    """(D,) regret shares of one row: as asked, at its best beta, at its best weights; how far its rates are off; and
    how far the second half of the steps moved its share.
    """
    scale = regret(tree, tree.leaf_logref, weights=weights, beta=world.beta)
    _, any_beta = nearest_tilt(tree, row.logp, directions=np.array([weights]))
    _, any_weights = nearest_tilt(tree, row.logp, directions=np.eye(2))
    values = {
        "share": regret(tree, row.logp, weights=weights, beta=world.beta) / scale,
        "share_best_beta": world.beta * any_beta / scale,
        "share_best_weights": world.beta * any_weights / scale,
    }
    if row.halfway is not None:
        before = regret(tree, row.halfway, weights=weights, beta=world.beta) / scale
        values["late"] = np.abs(values["share"] - before)
    if row.tilt is not None:
        off = np.log(row.tilt[..., 0] / row.tilt[..., 1]) - np.log(weights[0] / weights[1])
        values |= {"log_ratio": off.mean(-1), "log_ratio_size": np.abs(off).mean(-1)}
        values |= {"log_ratio_range": np.ptp(off, axis=-1)}
    return values


def measure_sequences(world: SequenceWorld, *, draws: int, seed: int) -> dict[str, Json]:
    """Row -> numbers with intervals over draws, each draw's value a mean over the three weights."""
    tree = draw_trees(world, draws=draws, seed=seed)
    columns: dict[str, dict[str, list[np.ndarray]]] = {}
    residuals: dict[str, float] = {}
    for weights in WEIGHTS:
        for name, row in sequence_rows(world, tree, weights).items():
            for key, value in measured(row, world=world, tree=tree, weights=weights).items():
                columns.setdefault(name, {}).setdefault(key, []).append(value)
            residuals[name] = max(residuals.get(name, 0.0), row.residual)
    table: dict[str, Json] = {}
    for name, values in columns.items():
        late = values.pop("late", None)
        table[name] = {key: interval(np.mean(value, axis=0)) for key, value in values.items()}
        if late is not None:
            table[name]["unsettled"] = {"count": int((np.stack(late) > SETTLED).sum()), "of": int(np.stack(late).size)}
        table[name] |= {**spread(values["share"]), "residual": float(f"{residuals[name]:.1g}")}
    return table


def spread(shares: Sequence[np.ndarray]) -> Json:
    """Median and worst draw of shares (weights averaged), and the part of draws and weights above doing nothing."""
    share_D = np.mean(shares, axis=0)
    worse = number(float(np.mean(np.stack(shares) > 1)))
    return {
        "median": number(float(np.median(share_D))), "worst": number(float(share_D.max())),
        "worse_than_reference": worse,
    }  # fmt: skip


def interval(values_D: np.ndarray) -> Json:
    """Mean and t interval over draws, rounded to what every machine agrees on."""
    over = seed_interval(values_D.tolist(), over="reward draws")
    return {"mean": number(over.estimate), "low": number(over.low), "high": number(over.high), "n": over.n}


def number(value: float | None) -> float | None:
    """Five significant digits; below 1e-9 in size it is 0."""
    if value is None:
        return None
    return 0.0 if abs(value) < 1e-9 else float(f"{value:.5g}")


def measure_soups(world: LowRankWorld, *, draws: int, seed: int) -> dict[str, Json]:
    """Row -> regret shares with intervals over draws, and differences to the exact soup of the same specialists."""
    rngs = [np.random.default_rng([seed, sum(world.name.encode()), draw]) for draw in range(draws)]
    logref = np.stack([np.log(g.dirichlet(np.ones(world.responses), size=world.prompts)) for g in rngs])
    pairs = [latent_rewards(world, g) for g in rngs]
    rewards = [np.stack([pair[k] for pair in pairs]) for k in range(2)]
    size = (world.rank, world.responses)
    starts = [np.stack([g.normal(size=size) for g in rngs]) / np.sqrt(world.responses) for _ in range(2)]

    def train(reward: np.ndarray, a0: np.ndarray) -> low_rank.Factors:
        return low_rank.train(logref, reward=reward, beta=world.beta, a0=a0)

    def share(delta: np.ndarray, reward: np.ndarray) -> np.ndarray:
        policies = (low_rank.log_policy(logref, reward / world.beta), low_rank.log_policy(logref, delta), logref)
        best, value, still = (
            low_rank.objective(logp, logref=logref, reward=reward, beta=world.beta) for logp in policies
        )
        return (best - value) / (best - still)

    first, second = train(rewards[0], starts[0]), train(rewards[1], starts[1])
    second_shared = train(rewards[1], starts[0])
    shares: dict[str, list[np.ndarray]] = {}
    for weights in WEIGHTS:
        total = weights[0] * rewards[0] + weights[1] * rewards[1]
        for init, specialists in (("independent", (first, second)), ("shared", (first, second_shared))):
            for how in low_rank.MERGES:
                delta = low_rank.merge(specialists, weights=weights, how=how)
                shares.setdefault(f"{how}, {init} A", []).append(share(delta, total))
        shares.setdefault("trained at w", []).append(share(train(total, starts[0]).delta, total))
    slopes = np.concatenate([s.gradient for s in (first, second, second_shared)])
    table: dict[str, Json] = {}
    for name, columns in shares.items():
        share_D = np.mean(columns, axis=0)
        table[name] = {"share": interval(share_D), **spread(columns)}
        exact = shares.get(f"delta, {name.rpartition(', ')[2]}")
        if exact is not None:
            difference_D = share_D - np.mean(exact, axis=0)
            table[name] |= {"difference": interval(difference_D), "exact_better": int((difference_D > 1e-6).sum())}
    table["specialists"] = {"count": len(slopes), "gradient_above_1e-6": int((slopes > 1e-6).sum())}
    return table


def study(*, draws: int, soup_draws: int, seed: int, say: Callable[[str], None] = print) -> Json:
    """Every world's numbers, and what is needed to run it again."""

    def timed(world: SequenceWorld | LowRankWorld) -> Json:
        start = time.perf_counter()
        if isinstance(world, SequenceWorld):
            label, rows = world.name, measure_sequences(world, draws=draws, seed=seed)
        else:
            label, rows = f"soups, {world.name}", measure_soups(world, draws=soup_draws, seed=seed)
        say(f"{label}: {time.perf_counter() - start:.1f} s")
        return {"world": asdict(world), "rows": rows}

    command = f"python -m benchmarks.fixed_points.run --draws {draws} --soup-draws {soup_draws} --seed {seed}"
    sequences, soups = ({world.name: timed(world) for world in worlds} for worlds in (WORLDS, LOW_RANK_WORLDS))
    return json.loads(json.dumps({
        "command": command, "seed": seed, "draws": draws, "soup_draws": soup_draws,
        "weights": WEIGHTS, "tolerance": TOLERANCE, "settled": SETTLED, "sequences": sequences, "soups": soups,
        "commands": on_the_conformance_world(), "environment": environment(),
    }))  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Config:
    draws: int = option(60, help="random worlds of each kind; intervals are computed over them")
    soup_draws: int = option(24, help="the same for the soups, which must be trained")
    seed: int = option(0, help="of the draws")
    out: Path = option(Path("docs/results"), help="folder of the numbers and the page")


def main(argv: Sequence[str] | None = None) -> int:
    config, _ = parse(Config, argv, program="python -m benchmarks.fixed_points.run", about=__doc__ or "")
    checks.at_least(3, config, "draws", "soup_draws")
    checks.at_least(0, config, "seed")
    result = study(draws=config.draws, soup_draws=config.soup_draws, seed=config.seed, say=partial(print, flush=True))
    write(config.out, {"fixed_points.json": json.dumps(result, indent=1) + "\n", "fixed_points.md": page(result)})
    print(f"written: {config.out / 'fixed_points.json'} and fixed_points.md")
    return 0


if __name__ == "__main__":
    raise SystemExit(guarded(main))
