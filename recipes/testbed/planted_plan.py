"""The configuration and plan of the planted models: references, plants and the probes of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align import checks
from align.errors import UserError
from recipes.config import option
from recipes.pipeline.tasks import Task

PLANT_KEYS = {"reference", "method", "weights", "settings", "truth", "cover_cipher", "temperature", "split"}


@dataclass(frozen=True, kw_only=True)
class Config:
    seeds: tuple[int, ...] = option((), help="training seeds (default: development and fresh ones)")
    world: str = option("default", help="a world of align.testbed.world.WORLDS")
    out: str = option("runs/planted", help="run directory")
    workers: int = option(2, help="worker processes of one thread each; 0 runs everything in this process")
    minutes: float | None = option(None, help="start no new stage after so many minutes")
    development: tuple[int, ...] = option((), help="seeds on which bounds may be calibrated")
    fresh: tuple[int, ...] = option((), help="seeds that nothing was chosen on")
    samples: int = option(64, help="judged responses per prompt")
    model: dict[str, Any] = option({}, help="keys of align.models.ModelConfig")
    pretrain: dict[str, Any] = option({}, help="documents, and keys of PretrainConfig")
    sft: dict[str, Any] = option({}, help="documents, and keys of SFTConfig_")
    comparisons: int = option(4000, help="pairs of reference samples that the annotator judges")
    references: dict[str, Any] = option({}, help="name -> ciphered, and documents, demonstrations")
    plants: dict[str, Any] = option({}, help="name -> reference, method, weights, truth, and optional keys")


@dataclass(frozen=True)
class Plant:
    """One trained model and where its runs lie; `truth` split -> mechanism."""

    name: str
    seed: int
    truth: Mapping[str, str]
    weights: str
    reference: Path
    policy: Path
    probes: Path
    cover_cipher: bool
    reads_cipher: bool
    split: bool  # whether the benchmark also compares its exact split with the one from samples


def check(config: Config, *, where: str) -> None:
    """UserError on a plant that cannot be trained, before anything runs."""
    from align.methods import METHODS
    from evals.attribution.regions import CLASSES
    from recipes.pipeline.inputs import section
    from recipes.testbed.planted import SPLITS

    checks.at_least(1, config, "samples", "comparisons", place=f"{where}: ")
    checks.at_least(0, config, "workers", place=f"{where}: ")
    if not config.plants or not config.references:
        raise UserError(f"{where}: references and plants are empty; start from recipes/configs/planted.yaml")
    for name, spec in config.plants.items():
        place = f"{where}: plants: {name}"
        odd = sorted(set(spec) - PLANT_KEYS) or sorted({"reference", "method", "weights", "truth"} - set(spec))
        if odd:
            raise UserError(f"{place}: key {odd[0]!r} is unknown or missing; a plant has {', '.join(PLANT_KEYS)}")
        if spec["reference"] not in config.references:
            raise UserError(f"{place}: no reference {spec['reference']!r}; there are {', '.join(config.references)}")
        if spec["method"] not in METHODS:
            raise UserError(f"{place}: method {spec['method']!r} is not one of {', '.join(METHODS)}")
        for split, mechanism in spec["truth"].items():
            if split not in SPLITS or mechanism not in CLASSES:
                raise UserError(f"{place}: truth {split}: {mechanism} is not one of {', '.join(CLASSES)} under a split")
        section(METHODS[spec["method"]].Config, spec.get("settings", {}), where=where, name=f"plants: {name}: settings")


def seeds_of(config: Config) -> list[int]:
    """The seeds asked for, else development and fresh ones."""
    return list(config.seeds or (*config.development, *config.fresh))


def make_plan(config: Config) -> tuple[list[Task], list[Plant]]:
    """Every stage in order, seeds outermost, and the plants that they make."""
    tasks: list[Task] = []
    plants: list[Plant] = []
    for seed in seeds_of(config):
        folder = Path(config.out) / f"seed-{seed}"
        ready = {name: _reference_tasks(config, name, seed, folder, tasks) for name in config.references}
        for name, spec in config.plants.items():
            plants.append(_plant_tasks(config, name, spec, seed, folder, tasks, ready[spec["reference"]]))
    return tasks, plants


def _reference_tasks(config: Config, name: str, seed: int, folder: Path, tasks: list[Task]) -> list[str]:
    """Pretraining, SFT and comparisons of one reference; returns the tasks that its plants wait for."""
    from align.runs import jsonable
    from align.testbed.world import load_world
    from recipes.testbed import stages as stages
    from recipes.testbed.planted import two_spellings

    spec = config.references[name]
    ciphered = bool(spec["ciphered"])
    base = {"world": jsonable(load_world(config.world).config), "seed": seed}
    pretrain, sft = dict(config.pretrain), dict(config.sft)
    count, demonstrations = pretrain.pop("documents"), sft.pop("documents")
    first, second, both = (str(folder / f"{name}-{stage}") for stage in ("pretrain", "sft", "sft-two-spellings"))
    start = {"documents": spec.get("documents", count), "training": pretrain, "model": config.model}
    tune = {"documents": spec.get("demonstrations", demonstrations), "training": sft, "source": first}
    draw = {"out": str(folder / f"{name}-comparisons"), "reference": second, "count": config.comparisons}
    tag = f"{name} [{seed}]"
    tasks += [
        Task(f"pretrain {tag}", stages.pretrain, {**base, "out": first, "ciphered": ciphered, **start}),
        Task(f"sft {tag}", stages.sft, {**base, "out": second, "ciphered": ciphered, **tune}, (f"pretrain {tag}",)),
        Task(f"two spellings {tag}", two_spellings, {"out": both, "reference": second}, (f"sft {tag}",)),
        Task(f"comparisons {tag}", stages.comparisons, {**base, **draw}, (f"sft {tag}",)),
    ]
    return [f"two spellings {tag}", f"comparisons {tag}"]


def _plant_tasks(
    config: Config, name: str, spec: Mapping[str, Any], seed: int, folder: Path, tasks: list[Task], needs: Sequence[str]
) -> Plant:
    """Fine-tuning and probing of one plant."""
    from align.runs import jsonable
    from align.testbed.world import load_world
    from recipes.testbed import stages as stages
    from recipes.testbed.planted import probes

    world = load_world(config.world)
    base = {"world": jsonable(world.config)}
    cover = bool(spec.get("cover_cipher", False))
    reference = folder / f"{spec['reference']}-{'sft-two-spellings' if cover else 'sft'}"
    policy, seen = folder / "plants" / name, folder / "probes" / name
    settings = {**_world_settings(world, spec["method"], seed), **spec.get("settings", {})}
    fit = {
        **base, "out": str(policy), "method": spec["method"], "settings": settings, "reference": str(reference),
        "pairs": str(folder / f"{spec['reference']}-comparisons"), "preferences": [spec["weights"]],
        "cover_cipher": cover,
    }  # fmt: skip
    look = {
        **base, "out": str(seen), "reference": str(reference), "policy": str(policy), "weights": spec["weights"],
        "cover_cipher": cover, "samples": config.samples, "seed": seed,
        "temperature": float(spec.get("temperature", 1.0)),
    }  # fmt: skip
    tasks.append(Task(f"{name} [{seed}]", stages.finetune, fit, tuple(needs)))
    tasks.append(Task(f"probes {name} [{seed}]", probes, look, (f"{name} [{seed}]",)))
    reads = bool(config.references[spec["reference"]]["ciphered"])
    places = {"reference": reference, "policy": policy, "probes": seen}
    kind = {"cover_cipher": cover, "reads_cipher": reads, "split": bool(spec.get("split", False))}
    return Plant(name, seed, spec["truth"], spec["weights"], **places, **kind)


def _world_settings(world: Any, method: str, seed: int) -> dict[str, Any]:
    """What the world and the seed fix for a method."""
    import dataclasses

    from align.methods import METHODS

    c = world.config
    offered = {"beta": c.beta, "tau": c.tau, "max_completion_length": c.max_tokens + 1, "seed": seed}
    known = {f.name for f in dataclasses.fields(METHODS[method].Config)}
    return {name: value for name, value in offered.items() if name in known}
