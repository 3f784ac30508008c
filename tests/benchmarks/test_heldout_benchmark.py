"""The held-out benchmark: it runs on a tiny world, its differences are signed right, and what it refuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from align.data.answers import ExactAnswer
from align.errors import UserError
from align.testbed.world import World, WorldConfig, spelling_split
from align.training.consistency.settings import PromptPair
from benchmarks.heldout import plan as planning
from benchmarks.heldout.page import page
from benchmarks.heldout.stages import likeness, spelt_reply
from benchmarks.heldout.table import changes, collect, levels, reached
from recipes.pipeline.tasks import check_calls, run_calls

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "heldout" / "heldout.yaml"
WORLD = World(WorldConfig(name="two words", max_tokens=1, spellings=2, heldout_topics_per_level=11))


@pytest.fixture(scope="module")
def file() -> tuple[planning.Spec, tuple[planning.Candidate, ...]]:
    return planning.read_file(FILE)


def test_every_family_is_held_out_once_and_never_trained_on(
    file: tuple[planning.Spec, tuple[planning.Candidate, ...]], tmp_path: Path
) -> None:
    spec, candidates = dataclasses.replace(file[0], families=()), file[1]
    world = World(WorldConfig(name="spellings", max_tokens=3, spellings=4))
    made = planning.plan_of(spec, candidates, world=world, seed=0, out=tmp_path)
    check_calls(made.calls)
    for family in range(1, 5):
        others = {1, 2, 3, 4} - {family}
        assert set(made.made[f"bct_restored_{family}"].arguments["spellings"]) == others
        assert spelling_split(family) in made.cells[f"bct_{family}"].arguments["judged"].shifts
    graft = made.made["bct_layers_1"].arguments
    assert graft["keep"] == "layers" and graft["part"].path == made.made["bct_1"].out
    assert set(made.made["augmented_1"].arguments["fit"].spellings) == {0, 2, 3, 4}
    assert made.made["nothing"].arguments["fit"].spellings == (0,)
    assert {"restored", "dictionary"} <= set(made.cells)  # which depend on no family
    shared = [one for one in candidates if not one.explains]
    kinds = {(one.consistency.get("kind"), one.consistency.get("embeddings")) for one in shared}
    assert {("outputs", None), ("outputs", "frozen"), ("outputs", "restored")} <= kinds
    assert {("activations", None), ("activations", "restored")} <= kinds


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"what": "x"}, "either consistency, augmented"),
        ({"what": "x", "augmented": True, "dictionary": True}, "either consistency, augmented"),
        ({"what": "x", "graft": {"layers": "later"}}, "name of a candidate above"),
        ({"what": "x", "graft": {"heads": "nothing"}}, "layers: or embeddings:"),
        ({"what": "x", "consistency": {"kind": "inputs"}}, "outputs, activations"),
        ({"what": "x", "shift": "y"}, "shift"),
    ],
)
def test_what_no_candidate_can_be_is_refused(
    entry: dict[str, Any], words: str, file: tuple[planning.Spec, tuple[planning.Candidate, ...]]
) -> None:
    spec = dataclasses.replace(file[0], candidates={"odd": entry})
    with pytest.raises(UserError, match=words):
        planning.checked(spec)
    with pytest.raises(UserError, match="nobody"):
        planning.checked(file[0], only=["nobody"])


def test_only_some_candidates_come_with_what_they_are_made_of(
    file: tuple[planning.Spec, tuple[planning.Candidate, ...]],
) -> None:
    assert [one.name for one in planning.checked(file[0], only=["augmented_restored"])] == [
        "augmented", "augmented_restored"
    ]  # fmt: skip


def test_a_reply_is_written_in_the_shifted_prompts_spelling_or_not_at_all() -> None:
    plain = World(WorldConfig(name="spellings", spellings=4)).train_prompts[0]
    pair = PromptPair(plain.text, plain.spelt(2, split="train").text)
    assert spelt_reply(pair, " sure f1") == " ^vxuh ^i1"  # three letters on
    assert spelt_reply(pair, "") == ""
    assert spelt_reply(pair, " sure present") is None
    assert spelt_reply(PromptPair(plain.text, plain.text), " sure f1") == " sure f1"


def test_likeness_by_hand() -> None:
    """Two spellings that hold the same things, moved as a whole, are alike; in another order nothing is found."""
    things = np.array([[1.0, 0.0], [-1.0, 1.0], [0.0, -1.0]])
    same = likeness(things + 5, [things, 2 * things])
    assert same.found == 1 and same.cosine == pytest.approx(1)
    other = likeness(things[[1, 2, 0]], [things])
    # centred already; cosines of neighbours: -1/sqrt(2), -1/sqrt(2), 0
    assert other.found == 0 and other.cosine == pytest.approx(-(2**0.5) / 3)


def answer(row: str, shift: str, item: str, *, J: float, regret: float, carried: float | None) -> ExactAnswer:
    more = {} if carried is None else {"J_star_control": J + regret, "regret_carried": carried}
    return ExactAnswer(
        row=row, preference=(0.5, 0.5), shift=shift, item=item, prompt=item, values=(0.0, 0.0), kl=0.0, J=J,
        J_star=J + regret, regret=regret, values_star=(0.0, 0.0), kl_star=0.0, malformed=0.0, **more,
    )  # fmt: skip


def made_up(seed: int, *, plain_loss: float = 0.0) -> list[ExactAnswer]:
    """Nothing: regret .2 on the family, .05 of it carried over. The candidate: .1 and .05, so .10 of .15 goes."""
    return [
        one
        for item in ("a", "b")
        for one in (
            answer("nothing", "none", item, J=0.6, regret=0.02, carried=None),
            answer("nothing", "cipher", item, J=0.4, regret=0.2 + seed / 1000, carried=0.05),
            answer("bct_1", "none", item, J=0.6 - plain_loss, regret=0.02 + plain_loss, carried=None),
            answer("bct_1", "cipher", item, J=0.5, regret=0.1 + seed / 1000, carried=0.05),
        )
    ]


def test_what_goes_is_above_zero_and_the_bar_has_three_conditions() -> None:
    runs = {seed: made_up(seed) for seed in (0, 1, 2)}
    found = changes(runs, [planning.Place("bct_1", "cipher")])
    assert found["mismatched_lowered"]["value"] == pytest.approx(0.1)
    assert found["regret_lowered"]["value"] == pytest.approx(0.1)
    assert found["share"]["value"] == pytest.approx(np.mean([0.1 / 0.15, 0.1 / 0.151, 0.1 / 0.152]))
    assert found["by_seed"]["2"]["cipher"]["mismatched_before"] == pytest.approx(0.152)
    assert found["reached"] == {"mismatched": True, "regret": True, "cost": True, "all": True}
    dear = changes({seed: made_up(seed, plain_loss=0.03) for seed in (0, 1, 2)}, [planning.Place("bct_1", "cipher")])
    assert dear["plain_change"]["value"] == pytest.approx(-0.03)
    assert not dear["reached"]["cost"] and not dear["reached"]["all"]
    few = changes({0: made_up(0)}, [planning.Place("bct_1", "cipher")])
    assert not few["reached"]["mismatched"], "one seed has no interval"
    level = levels(runs, [planning.Place("nothing", "cipher")])
    assert level["J_plain"]["value"] == pytest.approx(0.6) and level["carried_over"]["value"] == pytest.approx(0.03)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One seed of a world of two words and two other spellings, at a budget of seconds."""
    fast = {"save_steps": None, "logging_steps": 1, "batch_size": 100, "epochs": 1.0}
    spec = planning.Spec(
        world="two words", weights=(0.5, 0.5), method="morlhf",
        model={"architecture": "llama", "hidden": 16, "layers": 1, "heads": 2, "intermediate": 16, "context": 16},
        pretrain={"documents": 3000, "packed": False, "block": 16, "learning_rate": 0.03, **fast},
        sft={"documents": 300, "learning_rate": 0.01, **fast},
        settings={"steps": 1, "batch_size": 16, "num_generations": 4, "learning_rate": 0.01},
        consistency={
            "batch_size": 64, "max_steps": 1, "learning_rate": 0.01, "replies": 4, "max_new_tokens": 2,
            "save_steps": None,
        },
        candidates={
            "restored": {"what": "embeddings put back", "graft": {"layers": "nothing"}},
            "bct_frozen": {"what": "BCT", "consistency": {"kind": "outputs", "embeddings": "frozen"}},
            "act_carried": {"what": "ACT", "consistency": {"kind": "activations", "target": "carried"}},
            "bct_layers": {"what": "half", "graft": {"layers": "bct_frozen"}, "explains": True},
            "sharpened": {"what": "a power", "sharpened": True, "explains": True},
            "dictionary": {"what": "oracle", "dictionary": True, "explains": True},
        },
    )  # fmt: skip
    candidates, out = planning.checked(spec), tmp_path_factory.mktemp("heldout")
    plans = {3: planning.plan_of(spec, candidates, world=WORLD, seed=3, out=out)}
    assert run_calls(plans[3].calls, workers=0, label="test") == 0
    return collect(spec, candidates, plans, world=WORLD)


def test_a_tiny_world_goes_from_text_to_a_page(table: dict[str, Any]) -> None:
    assert list(table["candidates"]) == [
        "restored",
        "bct_frozen",
        "act_carried",
        "bct_layers",
        "sharpened",
        "dictionary",
    ]
    assert table["families"] == ["cipher", "cipher_2"] and table["seeds"] == [3]
    for name, one in table["levels"].items():
        drop = one["J_plain"]["value"] - one["J"]["value"]
        named = sum(one[part]["value"] for part in ("surface", "competing", "carried_over", "mismatched"))
        assert named == pytest.approx(drop, abs=1e-9), name
    assert table["levels"]["reference"]["mismatched"]["value"] == pytest.approx(0, abs=1e-9)
    assert table["levels"]["bct_frozen"]["seen"] is not None and table["levels"]["restored"]["seen"] is None
    text = page(table)
    assert (
        "No candidate reaches the bar" in text
        and "## Why" in text
        and "| act_carried |" in text
        and "| *dictionary* |" in text
    )
    assert set(table["shared"]) == {"response words", "topic words", "states"}


def test_a_regret_that_is_not_told_from_0_is_no_fall() -> None:
    change = {
        "share": {"value": 0.7}, "mismatched_lowered": {"ci_seeds": [0.01, 0.1]}, "plain_change": {"value": -0.01},
        "regret_lowered": {"value": 0.03, "ci_seeds": [-0.01, 0.07]},
    }  # fmt: skip
    assert reached(change) == {"mismatched": True, "regret": False, "cost": True, "all": False}
    assert reached(change | {"regret_lowered": {"value": 0.03, "ci_seeds": [0.01, 0.07]}})["all"]
    assert not reached(change | {"regret_lowered": {"value": 0.03, "ci_seeds": None}})["regret"]
