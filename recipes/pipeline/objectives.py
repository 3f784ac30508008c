"""Objectives by name: NAME=SOURCE of the command line or a YAML file -> objectives, and what their scores depend on.

A source is KIND:ARGUMENT of one of KINDS, the name of a rule that needs no options, or a reward model (a run, a
directory, a hub id; @LABEL behind it for one of several outputs). `-` before a source turns its sign. An entry of a
YAML file may be a mapping: `{spec: NAME=SOURCE, ...}` with the kind's options, or `{name, kind, ...}` of a rule; both
take `negate: true` and `normalizer: FILE`. On the command line such a mapping is written in quotes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from align.errors import UserError
from align.runs import RUN_FILE, fingerprint, model_dir, open_run, split_head
from recipes.pipeline.inputs import content_key
from recipes.typed import nearest, yaml_value

if TYPE_CHECKING:
    from align.objectives.base import Objective

Entry = str | Mapping[str, object]
COST_MODEL = "cost-model"  # the stage that `align cost-model` records


@dataclass(frozen=True)
class Kind:
    """How a kind is written, how it is made of its argument (with `name` and the options of an entry), the places in an
    argument whose content decides its scores, and whether it is learned from data.
    """

    form: str
    make: Callable[..., list[Objective]]
    places: Callable[[str], Sequence[str]]
    learned: bool


@dataclass(frozen=True)
class Named:
    """An entry taken apart; `kind` is None for a rule and for a reward model."""

    name: str
    source: str
    kind: str | None = None
    argument: str = ""
    negated: bool = False
    normalizer: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)


def _function(argument: str, *, name: str) -> list[Objective]:
    from align.objectives.functions import function

    return function(argument, name=name)


def _verifier(argument: str, *, name: str) -> list[Objective]:
    from align.objectives.verifiers import verifier

    return verifier(argument, name=name)


def _classifier(argument: str, *, name: str, pair: bool = False, batch_size: int = 64) -> list[Objective]:
    from align.objectives.classifier import classifier

    model_dir(split_head(argument)[0])
    return classifier(argument, name=name, pair=pair, batch_size=batch_size)


def _cost(argument: str, *, name: str) -> list[Objective]:
    from align.objectives import Negated, RewardModelObjective

    model_dir(split_head(argument)[0])
    return [Negated(RewardModelObjective(argument, name=name), name=name)]


def _ensemble(argument: str, *, name: str, penalty: float = 1.0) -> list[Objective]:
    from align.objectives import Ensemble

    runs = _members(argument)
    if len(runs) < 2:
        raise UserError(f"an ensemble is written {KINDS['ensemble'].form}; name two runs or more")
    members = [_rule_or_model(Named(run, run)) for run in runs]
    return [Ensemble(members, combine=argument.rpartition(":")[2], penalty=penalty, name=name)]


def _members(argument: str) -> Sequence[str]:
    return [run.strip() for run in argument.rpartition(":")[0].split(",") if run.strip()]


def _judge(argument: str, *, name: str, folder: Path | None = None, **options: object) -> list[Objective]:
    from evals.judges.objective import judge

    known = [option for option in inspect.signature(judge).parameters if option not in OURS]
    _check_options(options, known)
    return judge(argument, name=name, folder=folder, **options)  # type: ignore[arg-type]


def _of_judge(argument: str) -> Sequence[str]:
    from evals.judges.objective import places

    return places(argument)


def _whole(argument: str) -> Sequence[str]:
    return (argument,)


def _nothing(argument: str) -> Sequence[str]:
    return ()


OURS = ("argument", "name", "folder")  # what a kind is given beside the options of an entry


# A new kind is one file and one line here. A source without a kind that ends in .py:NAME is a function.
KINDS: dict[str, Kind] = {
    "judge": Kind("judge:RUBRIC.yaml@http://HOST/v1", _judge, _of_judge, learned=True),
    "classifier": Kind("classifier:DIR@LABEL", _classifier, _whole, learned=True),
    "ensemble": Kind("ensemble:RUN,RUN:mean|min|mean-std", _ensemble, _members, learned=True),
    "cost": Kind("cost:RUN", _cost, _whole, learned=True),
    "verifier": Kind("verifier:exact_match", _verifier, _nothing, learned=False),
    "function": Kind("path/to/file.py:function", _function, lambda text: [text.rpartition(":")[0]], learned=False),
}  # fmt: skip


def load_objectives(entries: Sequence[Entry], *, folder: Path | None = None) -> dict[str, Objective]:
    """Objectives by name, in the order given; one entry may be several (a rubric's criteria, a function's components).

    `folder`: where the answers of judges are kept for later commands. UserError naming the entry and the fix.
    """
    from align.objectives import check_names

    if not entries:
        raise UserError("no objective is given; give --objectives helpful=runs/rm-helpful harmless=runs/rm-harmless")
    objectives = [objective for entry in map(_read, entries) for objective in _made(entry, folder)]
    check_names(objectives)
    return {objective.__name__: objective for objective in objectives}


def answers_beside(out: str | Path) -> Path:
    """Where a command that writes `out` keeps the answers of judges: beside it, so that its neighbours find them."""
    return Path(out).parent / "judge-answers"


def with_columns(
    objectives: Mapping[str, Objective], *, sources: Mapping[str, str], limit: int | None
) -> dict[str, Objective]:
    """The objectives, those that read columns of the rows with these; UserError for a column that no row has, and for a
    value that an objective cannot use.
    """
    from align.data.sources import columns_by_prompt
    from align.objectives.by_content import FromRows, columns_needed, columns_read

    asked = dict.fromkeys(column for objective in objectives.values() for column in columns_read(objective))
    needed = {column for objective in objectives.values() for column in columns_needed(objective)}
    table = columns_by_prompt(sources, tuple(asked), optional=asked.keys() - needed, limit=limit)
    return {n: FromRows(one, table) if columns_read(one) else one for n, one in objectives.items()}


def objective_keys(entries: Sequence[Entry]) -> dict[str, str]:
    """What a fingerprint says about each entry of `load_objectives`."""
    keys: dict[str, str] = {}
    for i, entry in enumerate(entries):
        read = _read(entry)
        if not isinstance(read, Named):
            places = {k: content_key(v) for k, v in read.items() if isinstance(v, str) and Path(v).exists()}
            keys[f"objective {read.get('name', i)}"] = fingerprint({"entry": read, "contents": places})
        elif read == Named(read.name, read.source):  # a rule or a model, and nothing said beside it
            keys[f"objective {read.name}"] = content_key(read.source)
        else:
            named = [read.normalizer] if read.normalizer else []
            named += KINDS[read.kind].places(read.argument) if read.kind else [read.source]
            places = {place: content_key(place) for place in named}
            keys[f"objective {read.name}"] = fingerprint({"entry": entry, "contents": places})
    return keys


def is_learned(entry: Entry) -> bool:
    """Whether an entry's scores come from data or a model, not from a rule."""
    from align.objectives import OBJECTIVES

    read = _read(entry)
    if isinstance(read, Named) and read.kind is not None:
        return KINDS[read.kind].learned
    kind = read.source if isinstance(read, Named) else str(read.get("kind"))
    return kind not in OBJECTIVES or bool(getattr(OBJECTIVES[kind], "learned", False))


def _read(entry: Entry) -> Named | Mapping[str, object]:
    """An entry taken apart; a mapping of a rule as it is."""
    if isinstance(entry, str) and entry.lstrip().startswith("{"):
        read = yaml_value(entry, f"objective {entry[:80]}")
        if not isinstance(read, Mapping):
            raise UserError(f"objective {entry[:80]} is no mapping; write {{spec: NAME=SOURCE, ...}}")
        entry = read
    if isinstance(entry, str):
        return _taken_apart(entry, options={})
    if "spec" not in entry:
        return entry
    options = {str(key): value for key, value in entry.items() if key != "spec"}
    negate, normalizer = options.pop("negate", False), options.pop("normalizer", None)
    if normalizer is not None and not isinstance(normalizer, str):
        raise UserError(f"objective {entry['spec']}: normalizer is {normalizer!r}; name a file that a fit has saved")
    read = _taken_apart(str(entry["spec"]), options=options)
    return Named(
        read.name, read.source, read.kind, read.argument, read.negated != bool(negate), normalizer, read.options
    )


def _taken_apart(text: str, *, options: Mapping[str, object]) -> Named:
    name, equals, source = text.partition("=")
    if not name or (equals and not source):
        raise UserError(f"objective {text!r} is not NAME=SOURCE; give both sides")
    source = source if equals else text
    negated, source = source.startswith("-"), source.removeprefix("-")
    kind, colon, argument = source.partition(":")
    if colon and kind in KINDS and not Path(source).exists():
        return Named(name, source, kind, argument, negated, options=options)
    if ".py:" in source:
        return Named(name, source, "function", source, negated, options=options)
    return Named(name, source, None, "", negated, options=options)


def _made(read: Named | Mapping[str, object], folder: Path | None) -> list[Objective]:
    """The objectives of an entry."""
    from align.objectives import Negated, Normalized, build_objective, load_normalizer

    if not isinstance(read, Named):
        return [build_objective(read)]
    try:
        made = _of_kind(read, folder) if read.kind is not None else [_rule_or_model(read)]
    except UserError as error:
        spec = f"{read.name}={read.source}"
        raise error if spec in str(error) else type(error)(f"objective {spec}: {error}") from error
    if read.negated:
        made = [Negated(objective, name=objective.__name__) for objective in made]
    if read.normalizer is not None:
        made = [Normalized(objective, load_normalizer(read.normalizer)) for objective in made]
    return made


def _of_kind(read: Named, folder: Path | None) -> list[Objective]:
    kind = KINDS[str(read.kind)]
    taken = inspect.signature(kind.make).parameters
    if "options" not in taken:
        _check_options(read.options, [name for name in taken if name not in OURS])
    place = {"folder": folder} if "folder" in taken else {}
    try:
        return kind.make(read.argument, name=read.name, **place, **read.options)
    except (TypeError, ValueError) as error:
        raise UserError(f"an option is of the wrong type ({error}); fix it") from error


def _rule_or_model(read: Named) -> Objective:
    from align.objectives import OBJECTIVES, Negated, build_objective
    from align.objectives.pooled_reward import is_pooled

    kind, place = read.source, split_head(read.source)[0]
    given = {"name": read.name}
    if kind not in OBJECTIVES or Path(kind).exists():
        if not Path(place).exists() and "/" not in place:
            forms = ", ".join(one.form for one in KINDS.values())
            raise UserError(
                f"objective {read.name}={place}: {place} is no folder, no kind of rule ({', '.join(OBJECTIVES)}) and "
                f"no hub id (OWNER/NAME); other kinds are written {forms}"
            )
        kind = "pooled_reward" if is_pooled(place) else "reward_model"
        if kind == "reward_model":
            model_dir(place)  # now, not after a minute or hours
        given["path"] = read.source
    _check_options(read.options, [n for n in inspect.signature(OBJECTIVES[kind]).parameters if n not in given])
    made = build_objective({**read.options, **given, "kind": kind})
    return Negated(made, name=read.name) if "path" in given and is_cost_model(place) else made


def is_cost_model(place: str) -> bool:
    """Whether a place is the run of a cost model, whose output is lower for what is safer."""
    return (Path(place) / RUN_FILE).is_file() and open_run(place).stage == COST_MODEL


def _check_options(options: Mapping[str, object], known: Sequence[str]) -> None:
    for option in options:
        if option not in known:
            raise UserError(f"no option {option!r}; {nearest(option, known) if known else 'it takes none'}")
