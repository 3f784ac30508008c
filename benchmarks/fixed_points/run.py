"""What popular rules optimise, on exact tabular policies: normalisation, GRPO's KL, MOD, soups.

python -m benchmarks.fixed_points.run [--draws 60] [--soup-draws 24] [--seed 0] [--out docs/results]

Nothing is sampled from a policy: every number is the fixed point of an exact expected update (or a closed form) on
worlds small enough to enumerate, and intervals run over random draws of rewards and references. Writes
fixed_points.json and the page fixed_points.md, which is made from it. One thread.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from align.errors import guarded
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
from benchmarks.fixed_points.page import page
from evals.stats.intervals import seed_interval

TOLERANCE = 1e-8  # of the relative change that one more update would make
WEIGHTS = ((0.25, 0.75), (0.5, 0.5), (0.75, 0.25))


@dataclass(frozen=True)
class SequenceWorld:
    """Random prompts whose responses are all sequences of `length` words out of `words`, scored by two objectives.

    `scales`: standard deviations of the two rewards; `spread`: each prompt's rewards are further multiplied by
    exp(uniform(-spread, spread)), each objective on its own; `correlation` between the two; `binary`: rewards in
    {0, 1}, of success rates between 0.1 and 0.6 of the responses. Reference: Dirichlet(1) at every prefix.
    """

    name: str
    words: int
    length: int
    prompts: int
    beta: float
    correlation: float = -0.5
    scales: tuple[float, float] = (1.0, 1.0)
    spread: float = 0.0
    binary: bool = False
    group: int | None = None  # also solved in groups of this size


WORLDS = (
    SequenceWorld("bandit", 8, 1, 1, beta=1.0, correlation=-0.8, scales=(1.0, 3.0), group=8),
    SequenceWorld("gentle pairs", 4, 2, 4, beta=2.0, spread=1.0),
    SequenceWorld("sharp pairs", 4, 2, 4, beta=0.3, spread=1.0),
    SequenceWorld("triples", 4, 3, 4, beta=1.0, spread=1.0),
    SequenceWorld("verifiable", 4, 2, 4, beta=0.1, correlation=0.0, binary=True, group=8),
)


@dataclass(frozen=True)
class LowRankWorld:
    """Prompts x responses with log-linear policies of rank `rank`; rewards of rank `latent` plus noise, correlated."""

    name: str
    rank: int
    latent: int
    noise: float
    prompts: int = 8
    responses: int = 12
    beta: float = 1.0
    correlation: float = -0.5


LOW_RANK_WORLDS = (
    LowRankWorld("fits", 2, 2, 0.0),
    LowRankWorld("nearly fits", 4, 4, 0.3),
    LowRankWorld("too small", 2, 4, 0.3),
)


def draw_trees(world: SequenceWorld, *, draws: int, seed: int) -> Tree:
    """`draws` independent worlds as one tree of leading axes (draws, prompts)."""
    shape = (world.prompts,)
    logref: list[list[np.ndarray]] = [[] for _ in range(world.length)]
    finals = []
    for draw in range(draws):
        rng = np.random.default_rng([seed, sum(world.name.encode()), draw])
        for d in range(world.length):
            logref[d].append(np.log(rng.dirichlet(np.ones(world.words), size=(*shape, world.words**d))))
        finals.append(_rewards(world, rng))
    empty = [np.zeros((draws, *shape, world.words**d, world.words, 2)) for d in range(world.length - 1)]
    return Tree(tuple(np.stack(x) for x in logref), (*empty, np.stack(finals)), world.words)


def _rewards(world: SequenceWorld, rng: np.random.Generator) -> np.ndarray:
    """(P, n, words, 2) rewards of the last tokens."""
    leaves = world.words**world.length
    if world.binary:
        r = np.zeros((world.prompts, leaves, 2))
        for prompt in range(world.prompts):
            for k in range(2):
                right = max(1, round(leaves * rng.uniform(0.1, 0.6)))
                r[prompt, rng.permutation(leaves)[:right], k] = 1.0
    else:
        first, other = rng.normal(size=(2, world.prompts, leaves))
        second = world.correlation * first + np.sqrt(1 - world.correlation**2) * other
        r = np.stack([first, second], axis=-1) * np.array(world.scales)
        r = r * np.exp(rng.uniform(-world.spread, world.spread, size=(world.prompts, 1, 2)))
    return r.reshape(world.prompts, leaves // world.words, world.words, 2)


# row -> (advantage scale, place of the KL)
RULES = {
    "plain": ("none", "reward"),
    "group": ("group", "loss"),
    "batch": ("batch", "loss"),
    "gdpo": ("gdpo", "loss"),
    "token_kl": ("none", "token"),
    "token_k3": ("none", "token_k3"),
    "grpo": ("group", "token"),
    "gdpo_trl": ("gdpo", "token"),
}


def sequence_rows(world: SequenceWorld, tree: Tree, weights: Sequence[float]) -> dict[str, Mapping[str, Any]]:
    """Each row's leaves, tilt and residual."""
    found: dict[str, Mapping[str, Any]] = {}
    for name, (scale, kl) in RULES.items():
        point = fixed_point(tree, weights=weights, beta=world.beta, scale=scale, kl=kl, tolerance=TOLERANCE)
        tilt = point.tilt if kl == "loss" else None
        found[name] = {"logp": point.leaf_logp, "tilt": tilt, "residual": point.residual}
    if world.group:
        for name, scale in (("group", "group"), ("gdpo", "gdpo")):
            point = fixed_point(
                tree, weights=weights, beta=world.beta, scale=scale, kl="loss", group=world.group, tolerance=TOLERANCE
            )
            found[f"{name}_finite"] = {"logp": point.leaf_logp, "tilt": None, "residual": point.residual}
    best = [optimum(tree, weights=e, beta=world.beta) for e in np.eye(2)]
    found["token_mod"] = {"logp": leaf_logprobs(tree, token_mod(best, weights=weights)), "tilt": None, "residual": 0.0}
    whole = sequence_mod([leaf_logprobs(tree, b) for b in best], weights=weights)
    found["sequence_mod"] = {"logp": whole, "tilt": None, "residual": 0.0}
    return found


def measure_sequences(world: SequenceWorld, *, draws: int, seed: int) -> dict[str, dict[str, Any]]:
    """Row -> numbers with intervals over draws, each draw's value a mean over the three weights."""
    tree = draw_trees(world, draws=draws, seed=seed)
    collected: dict[str, dict[str, list[np.ndarray]]] = {}
    residuals: dict[str, float] = {}
    for weights in WEIGHTS:
        scale = regret(tree, tree.leaf_logref, weights=weights, beta=world.beta)
        for name, row in sequence_rows(world, tree, weights).items():
            logp = row["logp"]
            _, any_beta = nearest_tilt(tree, logp, directions=np.array([weights]))
            _, any_weights = nearest_tilt(tree, logp, directions=np.eye(2))
            values = {
                "share": regret(tree, logp, weights=weights, beta=world.beta) / scale,
                "share_best_beta": world.beta * any_beta / scale,
                "share_best_weights": world.beta * any_weights / scale,
            }
            if row["tilt"] is not None:
                off = np.log(row["tilt"][..., 0] / row["tilt"][..., 1]) - np.log(weights[0] / weights[1])
                values |= {"log_ratio": off.mean(-1), "log_ratio_size": np.abs(off).mean(-1)}
                values |= {"log_ratio_range": np.ptp(off, axis=-1)}
            for key, value in values.items():
                collected.setdefault(name, {}).setdefault(key, []).append(value)
            residuals[name] = max(residuals.get(name, 0.0), row["residual"])
    out: dict[str, dict[str, Any]] = {}
    for name, columns in collected.items():
        out[name] = {key: interval(np.mean(value, axis=0)) for key, value in columns.items()}
        share_D = np.mean(columns["share"], axis=0)
        out[name] |= {"median": number(np.median(share_D)), "worst": number(share_D.max())}
        out[name] |= {"worse_than_reference": number(float(np.mean(np.stack(columns["share"]) > 1)))}
        out[name]["residual"] = float(f"{residuals[name]:.1g}")
    return out


def interval(values_D: np.ndarray) -> dict[str, Any]:
    """Mean and t interval over draws, rounded to what every machine agrees on."""
    found = seed_interval(values_D.tolist(), over="reward draws")
    return {"mean": number(found.estimate), "low": number(found.low), "high": number(found.high), "n": found.n}


def number(value: float | None) -> float | None:
    """Five significant digits; below 1e-9 in size it is 0."""
    if value is None:
        return None
    return 0.0 if abs(value) < 1e-9 else float(f"{value:.5g}")


def measure_soups(world: LowRankWorld, *, draws: int, seed: int) -> dict[str, dict[str, Any]]:
    """Row -> regret shares with intervals over draws, and differences to the exact soup of the same specialists."""
    rngs = [np.random.default_rng([seed, sum(world.name.encode()), draw]) for draw in range(draws)]
    logref = np.stack([np.log(g.dirichlet(np.ones(world.responses), size=world.prompts)) for g in rngs])
    pairs = [_latent_rewards(world, g) for g in rngs]
    rewards = [np.stack([pair[k] for pair in pairs]) for k in range(2)]
    size = (world.rank, world.responses)
    starts = [np.stack([g.normal(size=size) for g in rngs]) / np.sqrt(world.responses) for _ in range(2)]

    def train(reward: np.ndarray, a0: np.ndarray) -> low_rank.Factors:
        return low_rank.train(logref, reward=reward, beta=world.beta, a0=a0)

    def value(logp: np.ndarray, reward: np.ndarray) -> np.ndarray:
        return low_rank.objective(logp, logref=logref, reward=reward, beta=world.beta)

    first, second = train(rewards[0], starts[0]), train(rewards[1], starts[1])
    second_shared = train(rewards[1], starts[0])
    shares: dict[str, list[np.ndarray]] = {}
    for weights in WEIGHTS:
        total = weights[0] * rewards[0] + weights[1] * rewards[1]
        best, still = value(low_rank.log_policy(logref, total / world.beta), total), value(logref, total)

        def share(delta: np.ndarray, total: np.ndarray = total, best: Any = best, still: Any = still) -> np.ndarray:
            return (best - value(low_rank.log_policy(logref, delta), total)) / (best - still)

        for init, specialists in (("independent", (first, second)), ("shared", (first, second_shared))):
            for how in low_rank.MERGES:
                delta = low_rank.merge(specialists, weights=weights, how=how)
                shares.setdefault(f"{how}, {init} A", []).append(share(delta))
        shares.setdefault("trained at w", []).append(share(train(total, starts[0]).delta))
    slopes = np.concatenate([s.gradient for s in (first, second, second_shared)])
    out: dict[str, dict[str, Any]] = {}
    for name, columns in shares.items():
        share_D = np.mean(columns, axis=0)
        out[name] = {"share": interval(share_D), "median": number(np.median(share_D)), "worst": number(share_D.max())}
        out[name]["worse_than_reference"] = number(float(np.mean(np.stack(columns) > 1)))
        init = name.rpartition(", ")[2]
        exact = shares.get(f"delta, {init}")
        if exact is not None:
            difference_D = share_D - np.mean(exact, axis=0)
            out[name] |= {"difference": interval(difference_D), "exact_better": int((difference_D > 1e-6).sum())}
    out["specialists"] = {"count": len(slopes), "gradient_above_1e-6": int((slopes > 1e-6).sum())}
    return out


def _latent_rewards(world: LowRankWorld, rng: np.random.Generator) -> list[np.ndarray]:
    prompts = rng.normal(size=(world.prompts, world.latent))
    first, other = rng.normal(size=(2, world.latent, world.responses)) / np.sqrt(world.latent)
    second = world.correlation * first + np.sqrt(1 - world.correlation**2) * other
    shape = (2, world.prompts, world.responses)
    return list(np.stack([prompts @ first, prompts @ second]) + world.noise * rng.normal(size=shape))


def study(*, draws: int, soup_draws: int, seed: int, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Every world's numbers, and what is needed to run it again."""
    command = f"python -m benchmarks.fixed_points.run --draws {draws} --soup-draws {soup_draws} --seed {seed}"
    result: dict[str, Any] = {"command": command, "seed": seed, "draws": draws, "soup_draws": soup_draws}
    result |= {"weights": [list(w) for w in WEIGHTS], "tolerance": TOLERANCE, "sequences": {}, "soups": {}}
    for world in WORLDS:
        start = time.perf_counter()
        rows = measure_sequences(world, draws=draws, seed=seed)
        result["sequences"][world.name] = {"world": asdict(world), "rows": rows}
        say(f"{world.name}: {time.perf_counter() - start:.1f} s")
    for soup in LOW_RANK_WORLDS:
        start = time.perf_counter()
        rows = measure_soups(soup, draws=soup_draws, seed=seed)
        result["soups"][soup.name] = {"world": asdict(soup), "rows": rows}
        say(f"soups, {soup.name}: {time.perf_counter() - start:.1f} s")
    return json.loads(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--draws", type=int, default=60, help="random worlds of each kind; intervals run over them")
    parser.add_argument("--soup-draws", type=int, default=24, help="the same for the soups, which must be trained")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    if min(options.draws, options.soup_draws) < 3:
        parser.error("--draws and --soup-draws must be at least 3: intervals run over draws")
    say = lambda line: print(line, flush=True)  # noqa: E731
    result = study(draws=options.draws, soup_draws=options.soup_draws, seed=options.seed, say=say)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "fixed_points.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (options.out / "fixed_points.md").write_text(page(result), encoding="utf-8")
    print(f"written: {options.out / 'fixed_points.json'} and fixed_points.md")


if __name__ == "__main__":
    raise SystemExit(guarded(main))
