"""One-shot constrained alignment (MoCAN, Huang et al. 2024): multipliers solved from samples, then one supervised run.

Asked by `Thresholds`: maximise `E[r_m] - beta KL(pi || ref)` subject to `E[r_j] >= d_j` for each objective j that has a
threshold. The reference draws `n` responses to each prompt, scored once for all thresholds. From them the multipliers
of each preference are solved before any training (`align.functional.duals`), and the policy is then trained towards
`ref exp((r_m + sum_j lambda_j r_j) / beta)`, which is the constrained optimum (arXiv 2405.19544). `lagrangian` has the
same optimum and moves its multipliers while it samples.

*Deviations*: the paper labels pairs by a coin of `r_m + lambda . r` and trains DPO on them. Here both scores of a pair
are known, so its difference is regressed on (`rebel`): the same fixed point, no coin's noise. Multipliers are those of
`n` samples a prompt, whose log-mean is on average below the true one; `effective_samples` in the metrics says how many
of them carry it. A sample without a score by an objective that is asked is left out and counted.
Data: prompts. Fixed point: the constrained optimum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from align import checks
from align.data.comparisons import Pair
from align.engines.on_policy.trainer import required_prompts
from align.engines.points import check_preferences, train_points
from align.engines.problem import Problem
from align.engines.reference_samples import Drawing, Sample, scored_groups, shared_samples
from align.engines.settings import TrainingConfig, check_training
from align.functional.duals import Dual, solved
from align.methods import rebel
from align.policies.base import PointFamily
from align.preferences import Thresholds
from align.runs import Workspace

ASKED_BY = (Thresholds,)
FAMILY = PointFamily
Asked = Mapping[str, float | None]  # objectives in order, the one to maximise with None


@dataclass(frozen=True, kw_only=True)
class Config(TrainingConfig):
    """How many responses are drawn of each prompt, and how the policy is trained on their pairs."""

    maximise: str = "auto"  # name of the objective to maximise; auto: the only one without a threshold
    n: int = 32  # samples of the reference per prompt; all say something of the multipliers, each is in one pair
    max_completion_length: int = 64  # tokens, the end token included; longer responses are cut and scored as they are
    sample_batch_size: int = 256  # responses drawn at a time
    max_multiplier: float = 20.0  # a constraint that is still short here may be out of reach
    epochs: float = 1.0  # passes over the pairs


def fit(config: Config, problem: Problem[Thresholds], run: Workspace) -> PointFamily:
    """One policy per `Thresholds`, from `n` samples for each of the prompts. Comparisons are not used.

    Samples and scores are charged once. UserError on an impossible configuration, without prompts, unless each
    preference has a threshold and leaves the objective to maximise without one, and where no prompt has two samples
    that all asked objectives score.
    """
    names = check_preferences(problem, kinds=ASKED_BY)
    drawing = check_config(config)
    asked = {p.label: p.asked(names, maximise=config.maximise) for p in problem.preferences}
    rows = required_prompts(problem, method="mocan")
    used = [name for name in names if any(name in table for table in asked.values())]
    place = replace(run, folder=run.folder / "samples")
    samples = shared_samples(drawing, problem, place, objectives={name: problem.objectives[name] for name in used})

    def body(thresholds: Thresholds, point: Workspace) -> Mapping[str, object]:
        table = asked[thresholds.label]
        groups, unscored = scored_groups(samples, names=tuple(table))
        dual = solve(groups, asked=table, config=config)
        weights = weights_of(table, dual)
        pairs, values = pairs_of(groups, weights=weights)
        training = rebel.Config(
            **{f.name: getattr(config, f.name) for f in fields(rebel.Config) if hasattr(config, f.name)}
        )
        done = rebel.train_on(pairs, values=values, config=training, reference=problem.reference, run=point)
        return {**done, "samples_without_score": unscored, **report(dual, asked=table, maximum=config.max_multiplier)}

    return train_points(
        "mocan", config, problem, run, rows=rows, body=body, optimises=lambda p: describe(config, asked=asked[p.label])
    )


def check_config(config: Config) -> Drawing:
    """How to draw; UserError on a value that is no configuration of this method."""
    check_training(config)
    checks.above_zero(config, "epochs", "max_multiplier")
    checks.at_least(2, config, "n")
    return Drawing.of(config)


def solve(groups: Sequence[Sequence[Sample]], *, asked: Asked, config: Config) -> Dual:
    """The multipliers of the constrained objectives, in the order of `asked`."""
    import numpy as np

    (main,) = [name for name, threshold in asked.items() if threshold is None]
    bounds = {name: d for name, d in asked.items() if d is not None}
    most = max(map(len, groups))
    rewards_PN, mass_PN = np.zeros((len(groups), most)), np.full((len(groups), most), -np.inf)
    constrained_PNK = np.zeros((len(groups), most, len(bounds)))
    for p, group in enumerate(groups):
        mass_PN[p, : len(group)] = 0.0
        rewards_PN[p, : len(group)] = [sample.scores[main] for sample in group]
        constrained_PNK[p, : len(group)] = [[sample.scores[name] for name in bounds] for sample in group]
    return solved(
        rewards_PN,
        constrained_PNK,
        np.array(list(bounds.values())),
        beta=config.beta,
        maximum=config.max_multiplier,
        log_mass_PN=mass_PN,
    )


def weights_of(asked: Asked, dual: Dual) -> dict[str, float]:
    """1 for the objective to maximise, the multiplier for each other."""
    multipliers = iter(dual.multipliers)
    return {name: 1.0 if threshold is None else next(multipliers) for name, threshold in asked.items()}


def pairs_of(
    groups: Sequence[Sequence[Sample]], *, weights: Mapping[str, float]
) -> tuple[list[Pair], dict[str, tuple[float, float]]]:
    """Neighbours of each group in the order drawn, each sample in one pair; and both samples' weighted scores by id."""
    pairs, values = [], {}
    for group in groups:
        for i, (a, b) in enumerate(zip(group[::2], group[1::2], strict=False)):
            name = f"{a.row}-{i}"
            pairs.append(Pair(name, a.prompt, a.text, b.text, False, tuple(a.ids), tuple(b.ids)))
            values[name] = (_weighted(a, weights), _weighted(b, weights))
    return pairs, values


def _weighted(sample: Sample, weights: Mapping[str, float]) -> float:
    return sum(w * score for name, w in weights.items() if (score := sample.scores[name]) is not None)


def report(dual: Dual, *, asked: Asked, maximum: float) -> dict[str, object]:
    """Metrics: multipliers, what the samples say each constrained objective will be worth and by how much that falls
    short, the constraints at the maximum, and the fewest and the mean number of samples that carry a prompt.
    """
    bounds = {name: d for name, d in asked.items() if d is not None}
    expected = dict(zip(bounds, dual.expected, strict=True))
    multipliers = dict(zip(bounds, dual.multipliers, strict=True))
    return {
        "multipliers": multipliers,
        "expected": expected,
        "short": {name: max(0.0, d - expected[name]) for name, d in bounds.items()},
        "at_maximum": [name for name, value in multipliers.items() if value >= maximum],
        "effective_samples": {"fewest": min(dual.effective), "mean": sum(dual.effective) / len(dual.effective)},
    }


def describe(config: Config, *, asked: Asked) -> str:
    """One line: what a point's training really optimises, its thresholds among it."""
    (main,) = [name for name, threshold in asked.items() if threshold is None]
    bounds = " and ".join(f"E[{name}] >= {d:g}" for name, d in asked.items() if d is not None)
    return (
        f"E[{main}] - {config.beta:g} KL(pi||ref) subject to {bounds}: multipliers (<= {config.max_multiplier:g}) "
        f"solved from {config.n} reference samples a prompt, then least squares of log-ratios on their pairs"
    )
