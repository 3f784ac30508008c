"""Real preference data as a setting: helpful against harmless, learned rewards, sampled cells under held-out judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from align import checks
from align.data.real import PARTS
from align.errors import UserError
from align.preferences import Weights, simplex_grid
from align.runs import Call, Run, planned
from evals.measure.sampling import Sampling
from recipes.config import build, option
from recipes.pipeline.inputs import section
from recipes.pipeline.rows import Fit, Row, Settings, read_rows
from recipes.pipeline.setting import REFERENCE
from recipes.real import judging, stages
from recipes.real.judging import Judged
from recipes.real.stages import Data, Given, Pairs, Texts

if TYPE_CHECKING:
    from align.training.pretrain import PretrainConfig
    from align.training.reward_model import RewardModelConfig
    from align.training.sft import SFTConfig_

NAMES = ("helpful", "harmless")


@dataclass(frozen=True, kw_only=True)
class Config:
    data: str = option(
        help="folder with hh_rlhf/ or helpful-base/ and harmless-base/, or any source with objective rows"
    )
    model: str | None = option(None, help="start from this Hugging Face folder or hub id instead of pretraining")
    seed: int = option(0, help="seed of the split, of training and of sampling")
    out: str = option("runs/hh", help="run directory")
    workers: int = option(2, help="worker processes of one thread each; 0 runs everything in this process")
    vocab_size: int = option(2048, help="size of the BPE vocabulary trained from the text")
    ngram_order: int = option(5, help="n of the back-off model that pretraining is compared with")
    rows: dict[str, object] = option({}, help="limit, text files, cleaning, parts of the split, validation text")
    architecture: dict[str, object] = option({}, help="keys of align.models.ModelConfig")
    pretrain: dict[str, object] = option({}, help="keys of PretrainConfig")
    sft: dict[str, object] = option({}, help="demonstrations per objective (0: no SFT), and keys of SFTConfig_")
    reward_model: dict[str, object] = option({}, help="pairs per objective, and keys of RewardModelConfig")
    pairs: dict[str, object] = option({}, help="prompts, max_new_tokens, batch_size of the reference samples")
    methods: dict[str, object] = option({}, help="row -> {method, settings, or specialists_of: another row}")
    preference_steps: int = option(4, help="preferences are the simplex grid with this many steps")
    prompts: int = option(100, help="held-out prompts that every policy answers")
    sampling: dict[str, object] = option({}, help="keys of evals.measure.sampling.Sampling")
    controls: dict[str, object] = option({}, help="n of best-of-n, overspend, the row that overspends, preferences")
    texts: int = option(60, help="held-out texts for bits per byte before and after fine-tuning")


@dataclass(frozen=True, kw_only=True)
class Controls:
    """`n` of best-of-n; `overspend` times the distance of `overspender_of` from the reference; at `preferences`."""

    n: int
    overspend: float
    overspender_of: str
    preferences: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The sizes of the shared stages and how each is trained; `start`: a given model in place of pretraining."""

    start: Given | None
    vocab_size: int
    ngram_order: int
    rows: Texts
    pretrain: PretrainConfig
    demonstrations: int
    sft: SFTConfig_
    pairs_each: int | None
    reward_model: RewardModelConfig
    pairs: Pairs


@dataclass(frozen=True, kw_only=True)
class RealData:
    """The stages of one run; `spender` is the row whose policies the overspending control is made of."""

    data: Data
    seed: int
    out: Path
    budget: Budget
    preferences: tuple[Weights, ...]
    prompts: int
    texts: int
    sampling: Sampling
    closed: Controls
    spender: Row

    @property
    def objectives(self) -> tuple[str, ...]:
        return self.data.names

    @property
    def row_keys(self) -> frozenset[str]:
        return frozenset({"rewards", "specialists_of"})

    def made(self, kind: str) -> Run:
        """A shared stage's run, which may not exist yet."""
        return planned(self.out / kind)

    @property
    def base(self) -> Run:
        """What SFT and reward models start from."""
        return self.made("pretrain" if self.budget.start is None else "model")

    @property
    def anchor(self) -> Run:
        """The reference: what every KL is measured against."""
        return self.made("sft") if self.budget.demonstrations else self.base

    def reference(self) -> Sequence[Call]:
        budget, rows = self.budget, self.made("rows")
        calls = [stages.prepare.call(self.out / "rows", data=self.data, seed=self.seed, rows=budget.rows)]
        if budget.start is not None:
            calls.append(stages.given.call(self.out / "model", model=budget.start))
        else:
            words = stages.tokenizer.call(self.out / "tokenizer", data=rows, vocab_size=budget.vocab_size)
            calls += [
                words,
                stages.pretrain.call(self.base.path, data=rows, tokenizer=words.run, training=budget.pretrain),
            ]
        if budget.demonstrations:
            calls.append(
                stages.sft.call(
                    self.out / "sft",
                    data=rows,
                    base=self.base,
                    names=self.objectives,
                    demonstrations=budget.demonstrations,
                    training=budget.sft,
                )  # fmt: skip
            )
        return calls

    @property
    def contrasts(self) -> Run | None:
        """Comparisons of demonstrations, where there are any."""
        return self.made("contrasts") if self.budget.pairs.demonstrations else None

    def comparisons(self) -> Sequence[Call]:
        models, rows, budget = self.reward_models(), self.made("rows"), self.budget
        drawn = stages.pairs.call(
            self.out / "pairs", data=rows, reference=self.anchor, reward_models=runs(models), drawn=budget.pairs,
            seed=self.seed, contrasts=self.contrasts,
        )  # fmt: skip
        if self.contrasts is None:
            return [*models.values(), drawn]
        made = stages.contrasts.call(
            self.contrasts.path, data=rows, reference=self.anchor, drawn=budget.pairs, seed=self.seed
        )
        return [made, *models.values(), drawn]

    def reward_models(self) -> Mapping[str, Call]:
        return self._scorers("train", "reward model")

    def judges(self) -> Mapping[str, Call]:
        """Objective -> a reward model on comparisons that nothing else is trained on."""
        return self._scorers("judge", "judge")

    def _scorers(self, part: str, kind: str) -> dict[str, Call]:
        return {
            name: stages.reward_model.call(
                self.out / f"{kind.replace(' ', '-')}-{name}", data=self.made("rows"), base=self.base, part=part,
                objective=name, pairs=self.budget.pairs_each, training=self.budget.reward_model,
                contrasts=self.contrasts,
            ).named(f"{kind} {name}")
            for name in self.objectives
        }  # fmt: skip

    def more(self) -> Sequence[Call]:
        judges = self.judges()
        table = judging.reward_table.call(
            self.out / "reward-table", data=self.made("rows"), names=self.objectives, seed=self.seed,
            ours=runs(self.reward_models()), judges=runs(judges),
        )  # fmt: skip
        calls = [*judges.values(), table.named("reward table")]
        if self.budget.start is None:
            grams = stages.ngram.call(
                self.out / "ngram", data=self.made("rows"), tokenizer=self.made("tokenizer"),
                order=self.budget.ngram_order,
            )  # fmt: skip
            calls.append(grams)
        return calls

    def asked(self, row: Row) -> Sequence[Weights]:
        return self.preferences

    def fixes(self, row: Row) -> Settings:
        return {"seed": self.seed}

    def fit(self, row: Row, fit: Fit, specialists: Mapping[str, Run]) -> Call:
        place = self.place(row, fit.preferences[0])
        call = stages.finetune.call(
            place, reference=self.anchor, pairs=self.made("pairs"), fit=fit,
            reward_models=runs(self.reward_models()), specialists=specialists,
        )  # fmt: skip
        return call.named(f"{row.name} {place.name}")

    def place(self, row: Row, weights: Weights) -> Path:
        """Where the run lies that answers for a row at a preference."""
        return self.out / "methods" / row.folder / ("all" if row.runs == "family" else weights.label)

    def judge(self, row: Row, policy: Run, weights: Weights) -> Sequence[Call]:
        return [self.cells(row.name, policy, weights)]

    def cells(self, name: str, policy: Run, weights: Weights) -> Call:
        """The sampled cells of a policy at one preference."""
        judged = Judged(
            row=name, weights=weights, prompts=self.prompts, sampling=self.sampling, n=self.closed.n,
            overspend=self.closed.overspend, texts=self.texts,
        )  # fmt: skip
        call = judging.evaluate.call(
            self.out / "cells" / name.replace("/", "_") / weights.label, data=self.made("rows"), reference=self.anchor,
            policy=policy, judges=runs(self.judges()), judged=judged, pairs=self.made("pairs"),
            reward_models=runs(self.reward_models()),
        )  # fmt: skip
        return call.named(f"evaluate {name} {weights.label}")

    def controls(self) -> Mapping[str, Sequence[Call]]:
        asked = [w for w in self.preferences if w.label in self.closed.preferences]
        spent = [(w, planned(self.place(self.spender, w))) for w in asked]
        return {
            REFERENCE: [self.cells(REFERENCE, self.anchor, self.preferences[0])],
            "kl_overspender": [self.cells("kl_overspender", policy, w) for w, policy in spent],
            "best_of_n": [self.cells("best_of_n", self.anchor, w) for w in asked],
            "length_only": [self.cells("length_only", self.anchor, asked[0])],
        }


def runs(calls: Mapping[str, Call]) -> dict[str, Run]:
    """What the calls leave."""
    return {name: call.run for name, call in calls.items()}


def setting_of(config: Config, *, where: str) -> tuple[RealData, tuple[Row, ...]]:
    """The setting and its rows; UserError naming `where`, the section and the key for what no stage could read."""
    rows = read_rows(config.methods, where=where, kind=Row, every={"rewards": "learned"}, name="methods")
    gold = next((row for row in rows if not row.learned), None)
    if gold is not None:
        raise UserError(f"{where}: methods: {gold.name}: rewards: gold needs exact objectives, which real data lack")
    texts = build(Texts, config.rows, where=f"{where}: rows")
    if set(texts.parts) != set(PARTS):
        raise UserError(f"{where}: rows: parts are {', '.join(texts.parts)}; give shares of {', '.join(PARTS)}")
    if texts.piece < 1 or texts.validation_texts < 1 or not 0 < texts.validation < 1:
        raise UserError(f"{where}: rows: piece and validation_texts must be at least 1, validation between 0 and 1")
    if texts.demonstrations and set(texts.demonstrations) != set(NAMES):
        raise UserError(f"{where}: rows: demonstrations: give a file for each of {', '.join(NAMES)}, or for none")
    shown = tuple(texts.demonstrations[name] for name in NAMES if texts.demonstrations)
    checks.at_least(1, config, "preference_steps", "prompts", place=f"{where}: ")
    checks.at_most(10_000, config, "preference_steps", place=f"{where}: ")
    checks.at_least(0, config, "workers", place=f"{where}: ")
    closed = build(Controls, config.controls, where=f"{where}: controls")
    preferences = tuple(simplex_grid(len(NAMES), config.preference_steps))
    if not any(w.label in closed.preferences for w in preferences):
        labels = "; ".join(w.label for w in preferences)
        raise UserError(f"{where}: controls: none of preferences {closed.preferences} is asked for; use {labels}")
    spender = next((row for row in rows if row.name == closed.overspender_of), None)
    if spender is None:
        known = ", ".join(row.name for row in rows)
        raise UserError(f"{where}: controls: overspender_of {closed.overspender_of!r} is not a row of methods: {known}")
    setting = RealData(
        data=Data(config.data, texts.text, NAMES, shown), seed=config.seed, out=Path(config.out),
        budget=_budget(config, texts, where=where), preferences=preferences, prompts=config.prompts,
        texts=config.texts, closed=closed, spender=spender,
        sampling=section(Sampling, {"seed": config.seed, **config.sampling}, where=where, name="sampling"),
    )  # fmt: skip
    return setting, rows


def _budget(config: Config, texts: Texts, *, where: str) -> Budget:
    from align.models import ModelConfig
    from align.training.pretrain import PretrainConfig
    from align.training.reward_model import RewardModelConfig
    from align.training.sft import SFTConfig_

    shape = section(ModelConfig, config.architecture, where=where, name="architecture")
    for name, own in (("sft", "demonstrations"), ("reward_model", "pairs")):
        if own not in getattr(config, name):
            raise UserError(f"{where}: {name}: {own} is missing; give a number")

    def rest(name: str, own: str) -> dict[str, object]:
        return {key: value for key, value in getattr(config, name).items() if key != own}

    said: dict[str, str] = {"where": where}
    tuned = section(SFTConfig_, rest("sft", "demonstrations"), **said, name="sft", seed=config.seed)
    judge = section(RewardModelConfig, rest("reward_model", "pairs"), **said, name="reward_model", seed=config.seed)
    return Budget(
        start=None if config.model is None else Given(config.model), vocab_size=config.vocab_size,
        ngram_order=config.ngram_order, rows=texts, demonstrations=_count(config.sft["demonstrations"], where),
        pretrain=section(PretrainConfig, {**config.pretrain, "model": shape}, where=where, name="pretrain",
                         seed=config.seed),
        sft=tuned, reward_model=judge, pairs=build(Pairs, config.pairs, where=f"{where}: pairs"),
        pairs_each=None if config.reward_model["pairs"] is None else _count(config.reward_model["pairs"], where),
    )  # fmt: skip


def _count(value: object, where: str) -> int:
    """A whole number of a section; UserError on anything else."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise UserError(f"{where}: {value!r} is no number of rows; give one")
    return value
