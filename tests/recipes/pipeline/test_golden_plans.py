"""The guard of the plans: every call of four experiments, its folder, its arguments and what it waits for.

tests/golden/plans.json.gz holds them as they were when each experiment had a planner of its own. Arguments that have
another name or shape since then are brought to one form by RENAMED, in one place.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import pytest

from align.data import CleanConfig
from align.runs import Call, Run, jsonable
from benchmarks.shift import plan as shift
from benchmarks.testbed import plan as testbed
from recipes.commands import demo as demo_command
from recipes.commands import hh as hh_command
from recipes.config import parse
from recipes.pipeline.plan import Plan, ordered, plan
from recipes.pipeline.rows import Row, read_rows
from recipes.pipeline.tasks import check_calls, needs_of
from recipes.real import setting as real
from recipes.testbed import demo

ROOT = Path(__file__).resolve().parents[3]
BENCHMARKS = ROOT / "benchmarks"


def joined(plans: Sequence[Plan]) -> tuple[Call, ...]:
    return ordered(call for one in plans for call in one.calls)


def demo_calls(*words: str) -> Sequence[Call]:
    config, where = parse(demo.Config, list(words), program="x", about="", defaults=demo_command.DEFAULTS)
    return plan(demo.setting_of(config), read_rows(config.rows, where=where, kind=Row)).calls


def hh_calls() -> Sequence[Call]:
    config, where = parse(real.Config, ["--data", "DATA"], program="x", about="", defaults=hh_command.DEFAULTS)
    return plan(*real.setting_of(config, where=where)).calls


def grid_calls(file: str, out: str, worlds: Sequence[str], seeds: Sequence[int], smoke: bool) -> Sequence[Call]:
    found = testbed.read_file(BENCHMARKS / "testbed" / f"{file}.yaml")
    plans = testbed.grid(found, out=Path(out), worlds=worlds, seeds=seeds, rows=found.rows, smoke=smoke)
    return joined(list(plans.values()))


def shift_calls(part: str) -> Sequence[Call]:
    found, arms = shift.read_file(BENCHMARKS / "shift" / "shift.yaml")
    trained = testbed.read_file(BENCHMARKS / "testbed" / "rows.yaml")
    out, seeds = Path("runs/benchmark"), [0, 1]
    if part == "front":
        return joined(list(shift.front_plans(found.front, trained=trained, out=out, seeds=seeds).values()))
    made = shift.mitigation_plans(found.mitigation, list(arms.values()), trained=trained, out=out, seeds=seeds)
    return joined(list(made.values()))


EXPERIMENTS: dict[str, Callable[[], Sequence[Call]]] = {
    "demo": demo_calls,
    "demo-seed-1": lambda: demo_calls("--seed", "1"),
    "hh": hh_calls,
    "testbed": lambda: grid_calls("rows", "runs/benchmark", ["default", "three"], [0, 1], False),
    "testbed-check": lambda: grid_calls("rows", "runs/benchmark-check", ["default"], [0], True),
    "testbed-best": lambda: grid_calls("best", "runs/best", ["default"], [0], False),
    "testbed-harder": lambda: grid_calls("harder", "runs/harder", ["noisy", "sparse"], [0], False),
    "shift-front": lambda: shift_calls("front"),
    "shift-mitigation": lambda: shift_calls("mitigation"),
}


@lru_cache(maxsize=1)
def golden() -> Mapping[str, Sequence[dict]]:
    with gzip.open(ROOT / "tests" / "golden" / "plans.json.gz", "rt", encoding="utf-8") as handle:
        return json.load(handle)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_planner_makes_the_same_runs(name: str) -> None:
    calls = EXPERIMENTS[name]()
    check_calls(calls)
    new, old = {call.name: call for call in calls}, {task["name"]: task for task in golden()[name]}
    assert set(new) == set(old)
    assert {n: str(call.out) for n, call in new.items()} == {n: task["arguments"]["out"] for n, task in old.items()}
    before, after = ({n: waits(needs, n) for n in old} for needs in (
        {n: task["needs"] for n, task in old.items()}, needs_of(calls),
    ))  # fmt: skip
    for n, task in old.items():
        # Nothing new is waited for; what is no longer waited for is what the stage never read.
        assert after[n] <= before[n], n
        assert all(one.startswith(("facts", "two spellings")) for one in before[n] - after[n]), n
        assert form_of_new(new[n]) == form_of_old(task), n


def waits(needs: Mapping[str, Sequence[str]], name: str) -> set[str]:
    """Everything that a call waits for, however many steps away."""
    found, open_ones = set[str](), [name]
    while open_ones:
        for need in needs[open_ones.pop()]:
            if need not in found:
                found.add(need)
                open_ones.append(need)
    return found


def form_of_new(call: Call) -> dict[str, object]:
    """The arguments of a call in the form that both sides are compared in: defaults left out, runs as folders."""
    from align.testbed.world import World
    from recipes.testbed.stages import Corpus

    form: dict[str, object] = {}
    for name, value in call.arguments.items():
        if isinstance(value, Corpus):
            form["corpus"] = value.fingerprint
        elif isinstance(value, World):
            form["world"] = value.hash
        elif isinstance(value, Run):
            form[name] = str(value.path)
        elif isinstance(value, Mapping) and any(isinstance(one, Run) for one in value.values()):
            form[name] = [str(run.path) for run in value.values()]
        elif isinstance(value, (list, tuple)) and any(isinstance(one, Run) for one in value):
            form[name] = [str(run.path) for run in value]
        else:
            form[name] = value
    return flat(form)


def flat(form: dict[str, object]) -> dict[str, object]:
    """Grouped arguments taken apart, weights as lists."""
    for group in ("judged", "fit", "drawn", "data"):
        value = form.pop(group, None)
        if value is not None and not isinstance(value, str):
            # a share of topics came later, and is in no key at its default
            form |= {name: part for name, part in vars(value).items() if (name, part) != ("covers", 1.0)}
        elif value is not None:
            form[group] = value
    training = form.pop("training", None)
    if training is not None:
        form |= {"training": jsonable(training)}
    plain = jsonable(form)
    for part in (plain, plain.get("rows")):  # what `align chat` alone gives
        if isinstance(part, dict) and not part.get("demonstrations"):
            part.pop("demonstrations", None)
    empty: tuple[object, ...] = (None, [], {}, "none")
    return {name: unwrapped(value) for name, value in plain.items() if value not in empty or value is False}


def unwrapped(value: object) -> object:
    """Weights as their numbers."""
    if isinstance(value, dict):
        return value["values"] if set(value) == {"values"} else {k: unwrapped(v) for k, v in value.items()}
    return [unwrapped(v) for v in value] if isinstance(value, list) else value


def form_of_old(task: Mapping) -> dict[str, object]:
    """The arguments as they were, brought to today's names and types."""
    given = {k: v for k, v in task["arguments"].items() if k != "out"}
    for rename in RENAMED:
        rename(task["call"], given)
    empty: tuple[object, ...] = (None, [], {}, "none")
    return {name: value for name, value in given.items() if value not in empty or value is False}


def _world(call: str, given: dict) -> None:
    """A world is known by its hash, and the stages that read its text alone by that text."""
    from align.testbed.world import World, WorldConfig

    if "world" in given:
        world = World(WorldConfig(**given.pop("world")))
        text = call in ("pretrain", "sft")
        given["corpus" if text else "world"] = world.corpus_key if text else world.hash


def _training(call: str, given: dict) -> None:
    """Sections are typed settings, and the seed and the model's shape are among them."""
    from align.models import ModelConfig
    from align.training.pretrain import PretrainConfig
    from align.training.reward_model import RewardModelConfig
    from align.training.sft import SFTConfig_

    kinds = {"pretrain": PretrainConfig, "sft": SFTConfig_, "reward_model": RewardModelConfig}
    if call in kinds:
        shape = {"model": ModelConfig(**given.pop("model"))} if call == "pretrain" else {}
        settings = {**given["training"], **shape, "seed": given.pop("seed")}
        given["training"] = unwrapped(jsonable(kinds[call](**settings)))
    if call == "pretrain" and given.get("ciphered") is None:
        given.pop("ciphered", None)


def _weights(call: str, given: dict) -> None:
    """Preferences are weights, not labels, and a training's are its `preferences`."""
    numbers = [[float(x) for x in label.split(",")] for label in given.get("preferences", [])]
    if numbers:
        given["preferences"] = numbers
    if call == "fit":
        given["preferences"] = given.pop("weights")
    one = isinstance(given.get("weights"), list) and given["weights"] and not isinstance(given["weights"][0], list)
    if one and call in ("prediction", "evaluate") and "judges" not in given:
        given["weights"] = [given["weights"]]


def _judged(call: str, given: dict) -> None:
    """Which prompts and preferences are judged."""
    if "split" in given:
        given["home"] = given.pop("split")
    if "shift_weights" in given:
        given["away"] = given.pop("shift_weights")
        given["bits"] = given.pop("seed")
    if call == "closed_form":
        given["kind"] = "best_of_n" if given["kind"].startswith("best_of") else given["kind"]
    thresholds = given.pop("asks", "weights") == "thresholds"
    if call in ("fit", "evaluate") and not thresholds:
        given.pop("facts", None)  # read at thresholds alone


def _spellings(call: str, given: dict) -> None:
    """`cover_cipher` is the second spelling among those of the fine-tuning prompts."""
    if "cover_cipher" in given:
        covered = given.pop("cover_cipher")
        given["spellings"] = [0, 1] if covered else [] if call == "finetune" else [0]


def _real(call: str, given: dict) -> None:
    """Real data: runs by objective are given in its order, options one by one, the data by what it names."""
    for name in ("reward_models", "judges"):
        if isinstance(given.get(name), dict):
            given[name] = [given[name][objective] for objective in real.NAMES]
    if call == "prepare":
        given |= {"path": given.pop("data"), "files": given["rows"]["text"]}
        given["rows"]["cleaning"] = jsonable(CleanConfig(**given["rows"]["cleaning"]))
        given.pop("data_key")  # the fingerprint of the same files
    if call == "reward_table":
        models = given.pop("models")
        given |= {new: [models[old][n] for n in real.NAMES] for new, old in (("ours", "ours"), ("judges", "judge"))}
    if call == "evaluate" and "judges" in given:
        given |= given.pop("options")
        given["prompts"] = given["prompts"]["none"]


def _train_all(call: str, given: dict) -> None:
    """`rest` of the conditioned adapters is called `train_all`."""
    settings = given.get("settings")
    if isinstance(settings, dict) and "rest" in settings:
        settings["train_all"] = settings.pop("rest")


RENAMED = (_world, _training, _weights, _judged, _spellings, _real, _train_all)
