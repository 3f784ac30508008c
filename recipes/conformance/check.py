"""One trainer examined: trained as asked, and on a quarter of the budget with and without a larger beta; the verdict.

What was trained is kept in the run's folder as exact log-probabilities, so that a finished run is not trained again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from align.errors import UserError
from align.testbed.theory.diagnosis import Diagnosis, Trained, diagnose, regret_of
from align.testbed.theory.hypotheses import LIBRARY
from recipes.conformance import trainers, world
from recipes.conformance.case import Case, Trainer

LARGER, QUARTER = 4.0, 0.25  # how many times the asked beta, and which share of the budget
RUNS = ((1.0, 1.0), (LARGER, QUARTER), (1.0, QUARTER))  # beta, times; budget, times


@dataclass(frozen=True, kw_only=True)
class Target:
    """A trainer by name (`trl:`, `ours:`, `rule:` or a file), with its options, and its known fixed point."""

    name: str
    options: Mapping[str, object]

    @property
    def slug(self) -> str:
        """The name as that of a folder."""
        said = "".join(f"-{key}-{value}" for key, value in sorted(self.options.items()))
        return "".join(c if c.isalnum() or c in "-_." else "_" for c in self.name + said)

    @property
    def predicted(self) -> str | None:
        """The hypothesis whose fixed point the trainer should end at; None where that is not known."""
        kind, _, name = self.name.partition(":")
        if kind == "rule":
            return name
        if kind == "ours":
            return "right" if name in ("ppo", "morlhf", "dpo", "rebel") and not self.options else None
        return trainers.predicted(name, self.options) if kind == "trl" else None

    def trainer(self) -> Trainer:
        """The function; UserError on a name that there is none of."""
        kind, _, name = self.name.partition(":")
        if kind == "trl":
            return trainers.trl_trainer(name, self.options)
        if kind == "ours":
            return trainers.ours(name)(self.options)
        if self.options:
            raise UserError(f"{self.name} takes no options; leave --set options.* out")
        return trainers.adapter(self.name)


@dataclass(frozen=True, kw_only=True)
class Examined:
    """A target's verdict, and the prediction's regret and distance, with what the training cost."""

    target: Target
    case: Case
    diagnosis: Diagnosis
    predicted_regret: float | None
    predicted_distance: float | None
    cpu_seconds: float
    replies: int  # scored or labelled, all runs together

    def numbers(self) -> dict[str, object]:
        """JSON-ready."""
        case = {key: getattr(self.case, key) for key in ("weights", "beta", "budget", "seed")}
        return {
            "target": self.target.name, "options": dict(self.target.options), "case": case,
            "predicted": self.target.predicted, "predicted_regret": self.predicted_regret,
            "predicted_distance": self.predicted_distance, "cpu_seconds": round(self.cpu_seconds, 1),
            "replies": self.replies, "diagnosis": asdict(self.diagnosis),
        }  # fmt: skip


def examine(target: Target, case: Case) -> Examined:
    """Train, unless that is done, and judge."""
    runs, cpu, replies = trained(target, case)
    at = [Trained(case.at(beta=case.beta * k, share=1, folder=case.folder).asked, logp) for (k, _), logp in runs]
    diagnosis = diagnose(at[0], probe=at[1], short=at[2])
    known = next((one for one in LIBRARY if one.name == target.predicted), None)
    policy = None if known is None else known.policy(case.asked)
    return Examined(
        target=target, case=case, diagnosis=diagnosis, cpu_seconds=cpu, replies=replies,
        predicted_regret=None if policy is None else max(regret_of(policy, case.asked), 0.0),
        predicted_distance=None if policy is None else at[0].distance(policy),
    )  # fmt: skip


def trained(target: Target, case: Case) -> tuple[list[tuple[tuple[float, float], np.ndarray]], float, int]:
    """What each of RUNS ended at, CPU seconds and replies in all; read from the folder where they are there."""
    kind, _, name = target.name.partition(":")
    if kind == "rule":
        return _exact(name, case), 0.0, 0
    file, settings = case.folder / "policies.npz", _settings(target, case)
    if file.exists() and (case.folder / "settings.json").read_text() == settings:
        with np.load(file) as kept:
            rows = [(run, kept[f"logp{i}"]) for i, run in enumerate(RUNS)]
            return rows, float(sum(kept[f"cpu{i}"] for i in range(len(RUNS)))), int(kept["scored"])
    train, rows, columns, scored = target.trainer(), [], dict[str, object](), 0
    for i, (times, share) in enumerate(RUNS):
        part = case.at(beta=case.beta * times, share=share, folder=case.folder / f"run{i}")
        part.folder.mkdir(parents=True, exist_ok=True)
        start = time.process_time()
        logp = part.read(train(part))
        columns |= {f"logp{i}": logp, f"cpu{i}": time.process_time() - start}
        scored += max(reward.scored for reward in part.objectives.values())
        rows.append(((times, share), logp))
    np.savez(file, **columns, scored=scored)  # type: ignore[arg-type]
    (case.folder / "settings.json").write_text(settings)
    return rows, float(sum(columns[f"cpu{i}"] for i in range(len(RUNS)))), scored  # type: ignore[misc]


def _settings(target: Target, case: Case) -> str:
    """What a kept run must agree in; of an adapter also its source."""
    source = "" if target.name.startswith(("trl:", "ours:")) else Path(target.name.rpartition(":")[0]).read_text()
    values = {key: getattr(case, key) for key in ("weights", "beta", "tau", "budget", "seed")}
    return json.dumps([target.name, sorted(target.options.items()), values, source, world.SEED], default=str)


def _exact(name: str, case: Case) -> list[tuple[tuple[float, float], np.ndarray]]:
    """The fixed points themselves, where `rule:NAME` asks for an update rule and no trainer."""
    if name == "reference":
        return [(run, case.asked.tree.leaf_logref) for run in RUNS]
    rule = next((one for one in LIBRARY if one.name.casefold() == name.casefold()), None)
    if rule is None:
        raise UserError(f"no rule {name!r}; choose reference, {', '.join(one.name for one in LIBRARY)}")
    return [(run, rule.policy(case.at(beta=case.beta * run[0], share=1, folder=case.folder).asked)) for run in RUNS]
