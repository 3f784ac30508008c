"""The rewards benchmark's own stages: solved and averaged reward models, and the optimum under any rewards, judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from align.objectives.pooled_reward import FEATURES
from align.preferences import Weights
from align.runs import Metrics, Run, Workspace, stage
from align.runs.values import later
from align.testbed.world import World
from recipes.testbed.stages import read_rows

if TYPE_CHECKING:
    from align.objectives import PooledReward, RewardModelObjective
    from align.training.pooled_reward import PooledConfig
    from benchmarks.rewards.exact import Masses

Array = NDArray[np.float64]
Pair = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class How:
    """How runs of reward models become one reward: as `Ensemble` combines, and `pessimism` of `PooledReward`.

    calibrated: margins are multiplied by the number that makes the validation labels most probable.
    """

    combine: str = "mean"
    penalty: float = 1.0
    pessimism: float = 0.0
    calibrated: bool = later(False)


def labelled(world: World, pairs: Run, objective: int) -> tuple[list[Pair], list[Pair]]:
    """(Pairs to learn from, validation pairs) of one objective, divided as for a trained reward model."""
    from align.testbed.gold import label_comparisons

    name = world.objectives[objective]
    rows = label_comparisons(read_rows(pairs), index=objective, objective=name, tau=world.config.tau)
    return rows[len(rows) // 10 :], rows[: len(rows) // 10]


@stage(name="pooled reward")
def solved(
    work: Workspace, *, world: World, reference: Run, pairs: Run, objective: int, features: PooledConfig
) -> Metrics:
    """A pooled reward of one objective on the labels that train its reward model."""
    from align.training.pooled_reward import fit_pooled_reward

    rows, validation = labelled(world, pairs, objective)
    return fit_pooled_reward(
        features, model=reference.path, rows=rows, validation=validation, out=work.folder, ledger=work.ledger
    )


@stage(name="averaged reward models")
def averaged(work: Workspace, *, members: Mapping[str, Run]) -> Metrics:
    """The equal average of the members' weights (WARM)."""
    from align.policies.merging import average_scorers

    average_scorers([run.path for run in members.values()], out=work.folder / "model")
    return {"averaged": len(members)}


@stage(name="optimum under rewards")
def judged(
    work: Workspace, *, world: World, reference: Run, pairs: Run, weights: tuple[Weights, ...], home: str,
    members: Mapping[str, Run], how: How,
) -> Metrics:  # fmt: skip
    """The exact optimum under learned rewards, in gold; `members` has "OBJECTIVE NUMBER" -> run.

    Beside it what labels alone say of the rewards: accuracy and log-loss (nats) on validation pairs, by objective.
    """
    scored: list[list[Array]] = []
    quality: dict[str, Any] = {}
    prompts = world.test_prompts(home)
    for k, name in enumerate(world.objectives):
        paths = tuple(run.path for key, run in members.items() if key.split()[0] == name)
        _, validation = labelled(world, pairs, k)
        texts = [(row["prompt"], row[side]) for side in ("chosen", "rejected") for row in validation]
        sides_2N = _combined([_on_texts(path, how.pessimism, tuple(texts)) for path in paths], how).reshape(2, -1)
        margins_N = sides_2N[0] - sides_2N[1]
        scale = _calibration(margins_N) if how.calibrated else 1.0
        quality[name] = {
            "accuracy": float((margins_N > 0).mean() + 0.5 * (margins_N == 0).mean()), "scale": scale,
            "log_loss": float(np.logaddexp(0, -scale * margins_N).mean()),
        }  # fmt: skip
        tables = [_of_all(path, how.pessimism, world, home, reference.path) for path in paths]
        units = scale * world.config.tau
        scored.append([units * _combined([table[p] for table in tables], how) for p in range(len(prompts))])
    learned = [np.stack([scored[k][p] for k in range(len(scored))], 1) for p in range(len(prompts))]
    return {**_facts(world, reference, home, learned, weights), "quality": quality}


@stage(name="optimum under an oracle")
def oracle(
    work: Workspace, *, world: World, reference: Run, pairs: Run, weights: tuple[Weights, ...], home: str, kind: str
) -> Metrics:
    """The exact optimum under what an estimator that knows the world's rules makes of the same labels."""
    from benchmarks.rewards.oracle import oracle_rewards

    train = {name: labelled(world, pairs, k)[0] for k, name in enumerate(world.objectives)}
    learned = oracle_rewards(kind, world, world.test_prompts(home), pairs=train)
    return _facts(world, reference, home, learned, weights)


def _facts(
    world: World, reference: Run, home: str, learned: Sequence[Array], weights: Sequence[Weights]
) -> dict[str, Any]:
    from benchmarks.rewards.exact import PRESSURES, judge

    masses, c = _masses(world, reference, home), world.config
    found = judge(masses, learned, weights, beta=c.beta, malformed=c.malformed_reward)
    curve = []
    for pressure in PRESSURES:
        at = judge(masses, learned, weights, beta=c.beta, malformed=c.malformed_reward, pressure=pressure)
        means = {"kl": at.kl_W, "promised": at.promised_W, "gained": at.gained_W}
        curve.append({"pressure": pressure, "share": at.share, **{n: float(v.mean()) for n, v in means.items()}})
    shares = found.regret_W / found.reference_W.mean()
    return {"share": found.share, "share_by_weight": shares.tolist(), "kl": float(found.kl_W.mean()), "curve": curve}


# What one process reads again and again is kept: features of every response by a reference, and scores by a run.


@lru_cache(maxsize=1)
def _features(backbone: Path, world: World, home: str) -> list[Array]:
    """(N, F) of `FEATURES` a prompt, in float32."""
    from align.models import load_model
    from align.testbed.learned_rewards import pooled_in_tree

    model = load_model(backbone).eval()
    return [pooled_in_tree(model, world, prompt, names=FEATURES).numpy() for prompt in world.test_prompts(home)]


def _columns(names: Sequence[str], hidden: int) -> Array:
    """Places of these features' columns among those of all."""
    widths = [1 if name in ("logp", "length") else hidden for name in FEATURES]
    starts = dict(zip(FEATURES, np.cumsum([0, *widths[:-1]]), strict=True))
    return np.concatenate([np.arange(starts[n], starts[n] + widths[FEATURES.index(n)]) for n in names])


def _masses(world: World, reference: Run, home: str) -> list[Masses]:
    from benchmarks.rewards.exact import masses_of

    features, prompts = _features(reference.path, world, home), world.test_prompts(home)
    place = _columns(("logp",), (features[0].shape[1] - 2) // 4)[0]
    return [masses_of(world, p, f_NF[:, place].astype(float)) for p, f_NF in zip(prompts, features, strict=True)]


def _objective(path: Path, pessimism: float) -> PooledReward | RewardModelObjective:
    from align.objectives import PooledReward, learned_reward

    return PooledReward(path, pessimism=pessimism) if pessimism else learned_reward(path, batch_size=512)


@lru_cache(maxsize=16)
def _of_all(path: Path, pessimism: float, world: World, home: str, backbone: Path) -> list[Array]:
    """(N,) scores of every response, prompt by prompt; of a pooled reward from the features that all share."""
    import torch

    from align.objectives.pooled_reward import PooledWeights, is_pooled
    from align.testbed.learned_rewards import LearnedTable

    if is_pooled(path):
        weights, features = PooledWeights.load(path), _features(backbone, world, home)
        kept = _columns(weights.names, (features[0].shape[1] - 2) // 4)
        return [weights.rewards(torch.from_numpy(f_NF[:, kept]), pessimism=pessimism).numpy() for f_NF in features]
    table = LearnedTable([_objective(path, pessimism)])
    return [table.scores(world, prompt)[:, 0].numpy() for prompt in world.test_prompts(home)]


@lru_cache(maxsize=64)
def _on_texts(path: Path, pessimism: float, texts: tuple[tuple[str, str], ...]) -> Array:
    return np.array(_objective(path, pessimism)([p for p, _ in texts], [t for _, t in texts]), dtype=np.float64)


def _combined(scores: Sequence[Array], how: How) -> Array:
    import torch

    from align.objectives import Ensemble

    one = Ensemble([_nothing], combine=how.combine, penalty=how.penalty, name="members")
    return one.of_scores(torch.from_numpy(np.stack(scores, -1))).numpy()


def _nothing(*_: object, **__: object) -> list[float | None]:
    return []


def _calibration(margins_N: Array) -> float:
    """The factor of the least log-loss: a temperature (Guo et al. 2017) on margins."""

    def loss(log_scale: float) -> float:
        return float(np.logaddexp(0, -np.exp(log_scale) * margins_N).mean())

    found = minimize_scalar(loss, bounds=(-4, 3), method="bounded")
    return float(np.exp(found.x))
