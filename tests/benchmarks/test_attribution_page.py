"""The attribution page: what an estimate claims and what its interval does, fresh seeds, signals that earn a place."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from align.errors import UserError
from benchmarks.attribution.page import PARTS, Planting, check_fresh, collect, earning, protocol, verdict, write_page
from evals.items import Json
from recipes.commands.planted import DEFAULTS
from recipes.config import build, read_yaml
from recipes.testbed.planted import Config, Plant, Reference
from recipes.testbed.planted_stages import SPLITS


def test_a_bar_is_met_by_the_interval_only_where_its_lower_end_reaches_it() -> None:
    sure, wide = {"value": 0.98, "ci": [0.96, 0.99]}, {"value": 1.0, "ci": [0.887, 1.0]}
    assert verdict([sure], bar=0.95).endswith("by the lower end of the interval too")
    assert verdict([sure, wide], bar=0.95).endswith("**met** by the estimate alone; the interval begins at 0.887")
    assert verdict([{"value": 1.0, "ci": None}], bar=0.95).endswith("there is no interval")
    assert "**not met**" in verdict([sure, {"value": 0.94, "ci": [0.9, 0.97]}], bar=0.95)


def test_a_fresh_seed_is_one_that_nothing_was_chosen_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = build(Config, read_yaml(DEFAULTS), where="planted.yaml")
    check_fresh(config, published=tmp_path / "attribution.json")
    with pytest.raises(UserError, match="seed 0 is in development and fresh"):
        check_fresh(dataclasses.replace(config, fresh=(0, 11)), published=None)
    page = tmp_path / "attribution.json"
    seeds = {"development": list(config.development), "fresh": list(config.fresh)}
    page.write_text(json.dumps({"seeds": seeds, "protocol": protocol(config)}))
    check_fresh(config, published=page)  # the same page made again
    changed = dataclasses.replace(config, samples=config.samples + 1)
    with pytest.raises(UserError, match=f"seed {min(config.fresh)} was looked at there"):
        check_fresh(changed, published=page)
    check_fresh(dataclasses.replace(changed, fresh=(98, 99)), published=page)
    with monkeypatch.context() as other, pytest.raises(UserError, match="was looked at there"):
        other.setattr("evals.attribution.regions.DECIDES", ("comprehension", "recognition", "pull", "distance"))
        check_fresh(config, published=page)  # another rule is another protocol: its seeds are seen
    with pytest.raises(UserError, match="looked at"):  # pages of before had no protocol
        page.write_text(json.dumps({"seeds": {"development": [0], "fresh": list(config.fresh)}}))
        check_fresh(config, published=page)


def test_a_signal_earns_its_place_by_an_interval_above_0() -> None:
    gains = {"pull": [0.1, 0.3], "distance": [0.0, 0.2], "comprehension": None}
    result = {"ablations": {f"without {name}": {"gain": {"ci": pair}} for name, pair in gains.items()}}
    assert earning(result) == ["pull"]


LEADS = {"comprehension": 1 / 5, "pull": 2 / 5, "distance": 2 / 5}  # classes of five that an ablation loses


def made_signals(about: Reference, plant: Plant, *, reading: float, pull: float, kept: bool) -> dict[str, list[Json]]:
    """What probes would see of a model: every cause at full strength, twelve topics, one of them never failing."""
    rows: dict[str, list[Json]] = {}
    for split in SPLITS:
        coded, pulled = split.startswith("cipher"), split.endswith("compliance")
        lost = coded and not kept
        failed = 0.0 if split == "control" else 0.9 if lost or (pulled and pull > 0) else 0.1
        rows[split] = [
            {
                "item": f"t{k}", "cluster": f"t{k}", "shift": split, "failed": failed if k else 0.1,
                "failed_plain": 0.1,
                "comprehension": reading if coded else None, "recognition": 0.0 if lost else 1.0,
                "pull": pull if pulled else 0.0, "distance": 2.0 if lost else 0.0, "repaired": 0.9,
            }
            for k in range(12)
        ]  # fmt: skip
    return rows


def test_the_page_holds_accuracy_ablations_and_parts_of_what_is_finished(tmp_path: Path) -> None:
    config = build(Config, {**read_yaml(DEFAULTS), "development": [0], "fresh": [1, 2]}, where="planted.yaml")
    references = {"full": Reference(), "blind": Reference(pulled=0.0, coded=0.0)}
    plants = {
        0.0: Plant(name="out", method="dpo", weights="0,1"),
        1.0: Plant(name="in", method="dpo", weights="0,1", covers=1),
    }
    every = []
    for seed in (0, 1, 2):
        for name, about in references.items():
            folders = tmp_path / f"{name}-{seed}-exact", tmp_path / f"{name}-{seed}-sampled"
            parts: Json = {}
            for covers, plant in plants.items():
                place = tmp_path / f"{name}-{seed}-{plant.name}"
                if (name, seed) != ("blind", 2):
                    place.mkdir()
                    found = made_signals(about, plant, reading=about.coded, pull=3.0 * about.pulled, kept=covers == 1)
                    (place / "signals.json").write_text(json.dumps({"signals": found}))
                numbers = {part: {"value": 0.1 * seed + covers, "ci": [0.0, 2.0]} for part in PARTS}
                parts[plant.name] = dict.fromkeys(SPLITS, numbers)
                every.append(Planting(plant, about, f"{name} {seed}", seed, place, folders))
            for folder in folders:
                folder.mkdir()
                (folder / "parts.json").write_text(json.dumps(parts))
    table = collect(config, plants=every, count=8)
    assert table["missing"] == ["blind 2"] and table["seeds"] == {"development": [0], "fresh": [1, 2]}
    fresh = table["results"]["fresh"]
    assert fresh["balanced_accuracy"]["value"] == 1.0 and fresh["references"] == 3 and fresh["models"] == 6
    # unread at 0 is no more "neither" without comprehension: of five classes, capability alone is lost
    lost = {name.split()[-1]: entry["gain"]["value"] for name, entry in fresh["ablations"].items()}
    # nobody is pulled: competing and both are lost; nothing is far: mismatched and both are
    assert lost == {name: pytest.approx(share) for name, share in LEADS.items()}
    assert [entry["gain"]["value"] for entry in fresh["other_rules"].values()] == [0, 0], "here they say the same"
    assert 0 < fresh["shift_name"]["value"] < 1 and len(fresh["shift_name"]["ci"]) == 2
    assert table["parts"]["by_verdict"]["mismatched"]["surface"] == pytest.approx(0.1)  # seeds 0, 1, 2, covered by none
    write_page(table, folder=tmp_path, command="run")
    text = (tmp_path / "attribution.md").read_text()
    assert "references blind 2" in text and "| without pull |" in text and "**met**" in text
    assert "| with recognition beside distance (the rule before) |" in text and "| without recognition |" not in text
    assert json.loads((tmp_path / "attribution.json").read_text())["protocol"] == protocol(config)
