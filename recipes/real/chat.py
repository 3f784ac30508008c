"""A chat model end to end: real preference data on a given model, and every policy of it on suites under shifts."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from align.data import real as source
from align.preferences import Weights
from align.runs import Call, Metrics, Run, Workspace, fingerprint, stage, write_json
from recipes.cli import dispatch
from recipes.config import build, option
from recipes.pipeline.inputs import content_key
from recipes.pipeline.plan import Plan, vertices
from recipes.pipeline.setting import REFERENCE
from recipes.real import setting as real
from recipes.real.setting import RealData, runs
from recipes.real.stages import checkpoint, part_of

CONTROLS = ("prefix_injection_hello", "refusal_suppression_inv")  # what attribution takes its bounds from


@dataclass(frozen=True, kw_only=True)
class Config(real.Config):
    suites: dict[str, object] = option({}, help="suites, shifts of the specialists, limit, max_new_tokens, batch_size")
    best_of: dict[str, object] = option({}, help="prompts, samples, max_new_tokens of the over-optimisation curves")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Suites of requests (`safety`) and of choices (`standard`), so many items of each; known by their files."""

    data: str
    safety: tuple[str, ...]
    standard: tuple[str, ...]
    shifts: tuple[str, ...]
    limit: int
    max_new_tokens: int
    batch_size: int

    @property
    def fingerprint(self) -> str:
        from evals.suites import SUITES

        files = [SUITES[name].file if name in SUITES else name for name in (*self.safety, *self.standard)]
        read = [content_key(Path(self.data) / str(file)) for file in files]
        return fingerprint({"files": read, "sizes": (self.shifts, self.limit, self.max_new_tokens, self.batch_size)})


@dataclass(frozen=True, kw_only=True)
class BestOf:
    """So many samples of the reference for each of some held-out prompts."""

    prompts: int
    samples: int
    max_new_tokens: int
    batch_size: int


@stage(name="suites")
def on_suites(
    work: Workspace, *, asked: Asked, policy: Run, weights: Weights | None = None, shifted: bool = False
) -> Metrics:
    """What `align suites` writes of one policy, safety suites and standard ones in a folder each."""
    model = checkpoint(policy) if policy.stage == "given" else str(policy.path)
    shared = ["--data", asked.data, "--limit", str(asked.limit), "--max-new-tokens", str(asked.max_new_tokens)]
    shared += ["--batch-size", str(asked.batch_size), *(["--weights", weights.label] if weights else [])]
    shifts = ["--shift", *asked.shifts, *CONTROLS] if shifted else []
    said("suites", model, "--suite", *asked.safety, *shifts, "--measure", "completion", "verdict", *shared,
         "--out", str(work.folder / "safety"))  # fmt: skip
    said("suites", model, "--suite", *asked.standard, *shared, "--out", str(work.folder / "standard"))
    return {"suites": [*asked.safety, *asked.standard]}


@stage
def attribution(work: Workspace, *, measured: Run, reference: Run) -> Metrics:
    """What `align attribute` says of a policy under the shifts that it was measured under."""
    folder = str(measured.path / "safety")
    return {
        "sentences": said("attribute", folder, "--reference", checkpoint(reference), "--out", str(work.folder))[:-2]
    }


def said(*words: str) -> list[str]:
    """The lines that the command `align WORDS` prints."""
    heard = io.StringIO()
    with contextlib.redirect_stdout(heard):
        dispatch(words)
    return heard.getvalue().splitlines()


@stage(name="over-optimisation")
def best_of(
    work: Workspace, *, data: Run, reference: Run, proxies: Mapping[str, Run], judges: Mapping[str, Run],
    asked: BestOf, seed: int,
) -> Metrics:  # fmt: skip
    """Best-of-n curves of the reference's samples: chosen by our reward model, paid by the judge of the objective."""
    from align.models.sampling import told
    from align.objectives import RewardModelObjective
    from align.policies.base import ModelPolicy
    from evals.tables.overoptimisation import curve_table

    n, prompts = asked.samples, source.unique_prompts(part_of(data, "test"))[: asked.prompts]
    texts = [row["prompt"] for row in prompts for _ in range(n)]
    drawn = ModelPolicy(checkpoint(reference)).draw(
        texts, max_new_tokens=asked.max_new_tokens, seed=seed, batch_size=asked.batch_size
    )
    work.ledger.add(samples_drawn=len(drawn), scores_read=2 * len(drawn) * len(proxies))
    curves = {}
    for name in data.metrics["names"]:
        sides = []
        for run in (proxies[name], judges[name]):
            found = RewardModelObjective(run.path, name=name)(
                texts, [reply.text for reply in drawn], **told(drawn)
            )
            scores = [score for score in found if score is not None]  # all: the same template drew
            sides.append([scores[i : i + n] for i in range(0, len(scores), n)])
        curves[name] = curve_table(sides[0], gold_PN=sides[1], seed=seed)
    write_json(work.folder / "curves.json", curves)
    return {"curves": curves}


@dataclass(frozen=True, kw_only=True)
class Calls:
    """The calls beyond the plan's: (row, preference's label) -> its suites, attribution, over-optimisation."""

    suites: Mapping[tuple[str, str], Call]
    attribution: Call
    best_of: Call

    @property
    def every(self) -> Sequence[Call]:
        return [*self.suites.values(), self.attribution, self.best_of]


def more_calls(plan: Plan, setting: RealData, config: Config, *, where: str) -> Calls:
    """Suites of the reference and of every point of every row; shifts of the reference and of the row's vertices.

    The row is the one of the overspending control; its harmless vertex is attributed.
    """
    asked = build(Asked, {"data": config.data, **config.suites}, where=f"{where}: suites")
    out, shifted = setting.out / "suites", [w.label for w in vertices(len(setting.objectives))]
    suites = {(REFERENCE, ""): on_suites.call(out / REFERENCE, asked=asked, policy=setting.anchor, shifted=True)}
    for row in plan.rows:
        for w in setting.preferences:
            made = plan.fits[row.name][w.label].run
            under = row == setting.spender and w.label in shifted
            call = on_suites.call(out / row.folder / w.label, asked=asked, policy=made, weights=w, shifted=under)
            suites[row.name, w.label] = call
    suites = {key: call.named(" ".join(["suites", *filter(None, key)])) for key, call in suites.items()}
    curves = best_of.call(
        setting.out / "best-of-n", data=setting.made("rows"), reference=setting.anchor,
        proxies=runs(setting.reward_models()), judges=runs(setting.judges()), seed=config.seed,
        asked=build(BestOf, config.best_of, where=f"{where}: best_of"),
    )  # fmt: skip
    last = suites[setting.spender.name, shifted[-1]]
    cause = attribution.call(setting.out / "attribution", measured=last.run, reference=setting.anchor)
    return Calls(suites=suites, attribution=cause.named("attribution"), best_of=curves.named("best of n"))
