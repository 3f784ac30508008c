"""What every entry of METHODS owes its callers: one interface, three objectives, claims, small files, short hooks.

Guards of published bugs that concern every method stand here; those of one method stand in its own test file. No method
is named here: what is special about one is read off its Config, ASKED_BY and FAMILY.
"""

from __future__ import annotations

import ast
import dataclasses
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from align.engines.problem import Problem
from align.errors import UserError
from align.methods import METHODS
from align.policies.load import load_family
from align.preferences import Direction, Targets, Thresholds, Weights
from align.runs import Ledger, Workspace
from docs.generate.methods_page import facts, rewritten, table
from factories.tiny_bandit import PROMPT_ROWS, TableReward, next_distribution, pair_rows
from recipes.pipeline.specialists import with_specialists

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "methods.md"
SMALL = {
    "steps": 2, "batch_size": 16, "num_generations": 4, "max_completion_length": 1, "epochs": 1, "tau": 0.4,
    "labels": "scalarised", "learning_rate": 1e-3, "beta": 0.5, "n": 2, "rounds": 1, "pairs": 16, "online_rounds": 1,
    "online_samples": 16, "prompts_per_round": 8, "replay": 8, "scores": "rows", "logging_steps": 1,
}  # fmt: skip
TWO = (Weights((0.25, 0.75)), Weights((1.0, 0.0)))
OF_ALL_KINDS = (*TWO, Thresholds((None, 0.5)), Targets((0.5, 0.5)), Direction((0.6, 0.8)))


class Third(TableReward):
    """A third objective: the first one's rewards, upside down."""

    def __call__(self, prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
        return [1.0 - float(s) for s in TableReward("one")(prompts, completions, **columns) if s is not None]


def objectives(count: int) -> dict[str, Any]:
    found: dict[str, Any] = {"one": TableReward("one"), "two": TableReward("two")}
    return found | ({"three": Third("three")} if count == 3 else {})


def rows(count: int) -> list[dict[str, Any]]:
    """Comparisons with the scores of `count` objectives."""
    found = pair_rows(48)
    for row in found if count == 3 else ():
        for side in ("scores_a", "scores_b"):
            row[side] = [*row[side], 1.0 - row[side][0]]
    return found


def fields_of(module: ModuleType) -> set[str]:
    return {f.name for f in dataclasses.fields(module.Config)}


def trains(name: str) -> bool:
    """Whether the method takes gradient steps, its own or those of its specialists."""
    return bool(fields_of(METHODS[name]) & {"learning_rate", "method_config"})


def settings(module: ModuleType, count: int = 2, **changes: Any) -> Any:
    """The method's Config with everything small."""
    known = fields_of(module)
    small = {**SMALL, "ideal": (1.0,) * count}
    values = {name: value for name, value in small.items() if name in known}
    if "method_config" in known:
        inner = fields_of(METHODS["dpo"])
        values |= {"method": "dpo", "method_config": {k: v for k, v in {**SMALL, **changes}.items() if k in inner}}
    return module.Config(**{**values, **{k: v for k, v in changes.items() if k in known}})


def asked(name: str, weights: Weights) -> Any:
    """The preference by which a method is asked for about what `weights` mean."""
    if Weights in METHODS[name].ASKED_BY:
        return weights
    assert (Thresholds,) == METHODS[name].ASKED_BY, f"say here what {name} is asked instead of weights"
    free = weights.values.index(max(weights))
    return Thresholds(tuple(None if k == free else 0.3 if w else -1.0 for k, w in enumerate(weights)))


def fit(name: str, *, reference: str, out: Path, preferences: Any, count: int = 2, ledger: Ledger | None = None,
        **changes: Any) -> Any:  # fmt: skip
    config, run = settings(METHODS[name], count, **changes), Workspace(out, ledger or Ledger())
    problem = problem_of(count, reference=reference, preferences=[asked(name, w) for w in preferences])
    return METHODS[name].fit(config, with_specialists(config, problem, run), run)


def problem_of(count: int, **fields: Any) -> Problem:
    """`count` objectives with comparisons and prompts."""
    return Problem(**{"objectives": objectives(count), "comparisons": rows(count), "prompts": PROMPT_ROWS, **fields})


def answers(family: Any, name: str, weights: Weights, count: int = 2) -> Any:
    """What the policy at `weights` does: its next-token distribution, or for best-of-n its samples."""
    if hasattr(family, "with_objectives"):
        family = family.with_objectives(objectives(count))
    policy = family.policy(asked(name, weights))
    if not hasattr(policy, "components"):
        return policy.generate(["x :"] * 12, max_new_tokens=1, seed=3)
    tables = []
    for part in policy.components():
        ids = torch.tensor([[*part.prefix, *policy.tokenizer("x :")["input_ids"]]])
        with torch.no_grad():
            tables.append(part.model.eval()(input_ids=ids).logits[0, -1].double().log_softmax(-1))
    return policy.mix(tables).tolist()


@pytest.mark.parametrize("name", METHODS)
def test_fit_answers_every_preference_and_survives_the_disk(name: str, reference: str, tmp_path: Path) -> None:
    ledger = Ledger()
    family = fit(name, reference=reference, out=tmp_path, preferences=TWO, ledger=ledger)
    for weights in TWO:
        label = asked(name, weights).label
        claim = family.optimises[label]
        assert len(claim) > 20 and "\n" not in claim
    assert family.point_cost in ("train", "merge", "prompt", "decode")
    assert family.method == name and family.domain and type(family) is METHODS[name].FAMILY
    family.save(tmp_path)
    again = load_family(tmp_path)
    for weights in TWO:
        first = answers(family, name, weights)
        assert first == answers(again, name, weights)
    assert (ledger.flops > 0 and ledger.tokens > 0) == trains(name)
    assert json.loads((tmp_path / "family.json").read_text())["method"] == name


@pytest.mark.parametrize("name", [n for n in METHODS if trains(n)])
def test_training_changes_the_policy_and_the_seed_is_all_its_chance(name: str, reference: str, tmp_path: Path) -> None:
    """E[update] is not 0 (a constant advantage trains nothing: cross-objective PAMA), and a seed repeats it exactly."""
    weights = Weights((0.25, 0.75))
    first = answers(fit(name, reference=reference, out=tmp_path / "a", preferences=[weights]), name, weights)
    second = answers(fit(name, reference=reference, out=tmp_path / "b", preferences=[weights]), name, weights)
    assert first == second
    before = next_distribution(reference, "x :")
    after = [2.718281828459045**x for x in first]
    assert max(abs(a - b) for a, b in zip(before, after, strict=False)) > 1e-6


@pytest.mark.parametrize("name", METHODS)
def test_three_objectives(name: str, reference: str, tmp_path: Path) -> None:
    """MOD's and RiC's official code break or change meaning at K = 3; here a third objective is one more column."""
    weights = Weights((0.2, 0.3, 0.5))
    family = fit(name, reference=reference, out=tmp_path, preferences=[weights], count=3)
    found = answers(family, name, weights, 3)
    assert len(found) > 0
    if not isinstance(found[0], str):
        assert sum(2.718281828459045**x for x in found) == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(UserError):
        family.policy(Weights((0.5, 0.5)))


@pytest.mark.parametrize("name", METHODS)
def test_what_is_missing_is_told(name: str, reference: str, tmp_path: Path) -> None:
    module, run, weights = METHODS[name], Workspace(tmp_path, Ledger()), [asked(name, TWO[0])]
    wrong = [
        {"preferences": []},
        {"preferences": weights, "objectives": objectives(3)},
        {"preferences": [p for p in OF_ALL_KINDS if type(p) not in module.ASKED_BY][:1]},
    ]
    if trains(name):
        wrong.append({"preferences": weights, "comparisons": None, "prompts": None})
    for fields in wrong:
        with pytest.raises(UserError):
            module.fit(settings(module), problem_of(2, reference=reference, **fields), run)


@pytest.mark.parametrize("name", METHODS)
def test_shape_of_a_method(name: str) -> None:
    """A frozen dataclass of keywords, a file of at most 250 lines, a YAML of its own, the facts for its row."""
    module = METHODS[name]
    assert module.__name__ == f"align.methods.{name}"
    assert dataclasses.is_dataclass(module.Config) and module.Config.__dataclass_params__.frozen
    assert all(f.kw_only for f in dataclasses.fields(module.Config))
    assert len(Path(str(module.__file__)).read_text().splitlines()) <= 250
    assert (ROOT / "recipes" / "configs" / f"finetune_{name}.yaml").is_file()
    assert all(facts(module).values()) and set(facts(module)["data"].replace(",", "").split()) <= {
        "none", "pairs", "prompts", "specialists", "or",
    }  # fmt: skip


def test_the_page_lists_every_method() -> None:
    text = PAGE.read_text()
    assert text == rewritten(text, METHODS), "run make docs"
    assert [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")] == list(METHODS)
    assert rewritten(text, {"dpo": METHODS["dpo"]}).count("| `") == 1 and text.startswith("# Methods")


def test_a_row_says_what_a_method_is() -> None:
    """Written by hand for one method whose every cell is known."""
    (row,) = table({"lagrangian": METHODS["lagrangian"]}).splitlines()[2:]
    first = "Constrained reinforcement learning with Lagrange multipliers (Safe RLHF, Dai et al. 2024), on RLOO or GRPO"
    assert row == f"| `lagrangian` | {first} | prompts | thresholds | train | the constrained optimum |"
    assert (Weights, Targets) == METHODS["ric"].ASKED_BY
    with pytest.raises(ValueError, match="mine.* has no line 'Data:"):
        facts(ModuleType("mine", "A method that does not say what it trains on."))


def trainer_overrides() -> list[tuple[str, str, int]]:
    """(file, method, lines of code) of every method that overrides one of a TRL or HF trainer, docstrings left out."""
    found = []
    for file in sorted((ROOT / "align").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.ClassDef):
                continue
            bases = " ".join(ast.unparse(base) for base in node.bases)
            if "Trainer" not in bases and "base" not in bases:
                continue
            for item in node.body:
                if isinstance(item, ast.FunctionDef) and "super()." in ast.unparse(item):
                    body = item.body[1:] if ast.get_docstring(item) else item.body
                    found.append((file.name, item.name, body[-1].end_lineno - body[0].lineno + 1 if body else 0))
    return found


def test_no_override_of_a_trainer_is_longer_than_fifteen_lines() -> None:
    overrides = trainer_overrides()
    assert overrides, "the search finds no override at all: it has gone blind"
    assert not [entry for entry in overrides if entry[2] > 15]
    hooks = {name for _, name, _ in overrides}
    stable = {
        "_calculate_rewards", "_generate_and_score_completions", "_compute_loss", "compute_loss", "training_step",
        "_set_signature_columns_if_needed", "__init__",
    }  # fmt: skip
    assert hooks <= stable, hooks - stable
