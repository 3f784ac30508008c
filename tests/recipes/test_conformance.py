"""`align conformance`: the page's adapter is run, exact rules are judged, what is no trainer is refused in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from align.errors import UserError
from align.testbed.theory.diagnosis import Trained
from align.testbed.theory.fixed_points import kl
from align.testbed.theory.hypotheses import log_normalise, right
from factories.sources import ROOT
from recipes.commands import conformance
from recipes.conformance import world
from recipes.conformance.case import Case


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("conformance")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world, "FIT", 10)
        world.make_reference(folder / "reference")
    return folder


def test_rules_are_judged_without_training(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conformance.main(["rule:right", "rule:GDPO", "rule:reference", "--out", str(out)])
    shown = capsys.readouterr().out
    assert "rule:right: right: optimises the J" in shown and "rule:reference: learned nothing" in shown
    assert "rule:GDPO: wrong: optimises another trade-off than its weights say" in shown and "budget 24000" in shown
    numbers = json.loads((out / "rule_GDPO" / "conformance.json").read_text())["diagnosis"]
    assert numbers["unfinished"] == pytest.approx(0, abs=1e-6) and numbers["wrong"] > 0.05


def test_the_adapter_of_the_page_learns(out: Path, tmp_path: Path) -> None:
    """A tenth of the budget: far enough to see that it goes along the reward."""
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "conformance.md").read_text(), flags=re.S)[0]
    space: dict[str, object] = {}
    exec(code, space)
    torch.manual_seed(0)
    case = Case(reference=str(out / "reference"), folder=tmp_path, budget=2400)
    run = Trained(case.asked, case.read(space["train"](case)))  # type: ignore[operator]
    assert run.moved > 0.02 and run.efficiency > 0.6
    assert case.objectives["first"].scored == 2400


def test_pairs_are_labelled_at_tau_and_probabilities_are_read_exactly(out: Path, tmp_path: Path) -> None:
    case = Case(reference=str(out / "reference"), folder=tmp_path)
    rows = case.pairs(800)
    margins = [case.score([r["prompt"]] * 2, [r["chosen"], r["rejected"]]) for r in rows]
    assert np.mean([a > b for a, b in margins]) > 0.7
    p = np.exp(case.asked.formed(case.asked.tree.leaf_logref))
    read = case.read(lambda prompt: 0.9 * p[case.prompts.index(prompt)])
    assert case.asked.formed(read) == pytest.approx(np.log(p)) and np.exp(read).sum(-1) == pytest.approx(1)
    assert Trained(case.asked, read).malformed == pytest.approx(0.1)


def test_the_labels_of_12000_pairs_hold_the_optimum(out: Path, tmp_path: Path) -> None:
    """DPO's loss minimised over free distributions, by Newton's method: a Bradley-Terry fit of a prompt's replies."""
    case = Case(reference=str(out / "reference"), folder=tmp_path)
    count, ridge = len(case.replies), 0.1
    wins = np.zeros((len(case.prompts), count, count))
    for pair in case.pairs(12_000):
        sides = (case.replies.index(pair[side].strip()) for side in ("chosen", "rejected"))
        wins[case.prompts.index(pair["prompt"]), *sides] += 1
    score = np.zeros(wins.shape[:2])
    for s, won in zip(score, wins, strict=True):
        for _ in range(60):
            lost = 1 / (1 + np.exp(s[:, None] - s[None, :]))
            slope = (won * lost).sum(1) - (won * lost).sum(0) - ridge * s
            curve = (won + won.T) * lost * (1 - lost)
            s += np.linalg.solve(np.diag(curve.sum(1)) - curve + ridge * np.eye(count), slope)
        assert np.abs(slope).max() < 1e-6
    asked = case.asked
    fitted = log_normalise(asked.formed(asked.tree.leaf_logref) + case.tau / case.beta * score)
    assert kl(fitted, asked.formed(right(asked))).mean() < 0.01


def test_kto_reads_both_sides_of_the_pairs_mixed(out: Path, tmp_path: Path) -> None:
    """TRL reads KTO's rows in order: every batch must have winners and losers."""
    case = Case(reference=str(out / "reference"), folder=tmp_path)
    rows, pairs = case.labelled(800), case.pairs(400)
    assert len(rows) == 800 and sum(bool(row["label"]) for row in rows) == 400
    wins = sorted((row["prompt"], row["completion"]) for row in rows if row["label"])
    assert wins == sorted((pair["prompt"], pair["chosen"]) for pair in pairs)
    shares = [np.mean([bool(row["label"]) for row in rows[i : i + 200]]) for i in range(0, 800, 200)]
    assert min(shares) > 0.35 and max(shares) < 0.65


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["trl:DPOTrainer", "trl:KTOTrainer"])
def test_trainers_on_pairs_train(trainer: str, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A small budget, through TRL: a label turned round would push the reward down."""
    conformance.main([trainer, "--budget", "2400", "--out", str(out)])
    assert "makes the reward small" not in capsys.readouterr().out
    numbers = json.loads((out / trainer.replace(":", "_") / "conformance.json").read_text())
    assert numbers["diagnosis"]["kl"] > 0.02 and sum(numbers["diagnosis"]["acts_at"]) > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name a trainer"), (["trl:PPOTrainer"], "choose RLOOTrainer"), (["ours:nothing"], "no method 'nothing'"),
        (["nowhere.py:train"], "nowhere.py is not a file"), (["something"], "is no trainer"),
        (["rule:right", "--weights", "1", "0", "0"], "weights must be 2 numbers"),
    ],
)  # fmt: skip
def test_what_is_no_trainer_is_refused_in_one_line(arguments: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(words)) as error:
        conformance.main([*arguments, "--out", str(tmp_path)])
    assert "\n" not in str(error.value)
