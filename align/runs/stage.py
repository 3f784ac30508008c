"""`@stage`: a function that writes one run directory, known by its signature, so that no parameter goes unrecorded.

    @stage
    def sft(work: Workspace, *, source: Run, training: SFTSettings, seed: int = 0) -> Metrics: ...

    run = sft("runs/sft", source=open_run("runs/base"), training=SFTSettings(), seed=1)  # works once, then only reads

The key of a run has these parts:

- a parameter annotated `Run`, `Run | None`, `Sequence[Run]` or `Mapping[str, Run]` is an input, known by the
  fingerprint of that run and by the parameter's name: a run directory that has moved stays finished;
- a value with a text attribute `fingerprint` is an input, too, known by that text alone (a world, a file's content);
- every other parameter is configuration, known by its JSON; of a dataclass, the fields that differ from their default.

What equals its default is no part of the key, so a new parameter with a default leaves finished runs finished; a
changed default does, too: delete them, or give another `out`. `run.json` records every parameter with its default
filled in, but a mapping of overrides (the settings of a method in a plan) as it was given, without the defaults.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Concatenate, Generic, ParamSpec, overload

from align.runs.folders import Identity
from align.runs.ledger import Ledger, Workspace
from align.runs.lifecycle import finish
from align.runs.reading import Run, open_run
from align.runs.signature import Metrics, check_argument, folders_of, keyed, opened, parameters_of, recorded
from align.runs.values import fingerprint, jsonable

P = ParamSpec("P")


class _PlannedRun(Run):
    """A run that may not exist yet: only its path is known until something else of it is read."""

    def __init__(self, path: Path) -> None:
        object.__setattr__(self, "path", path)

    def __getattr__(self, name: str) -> object:
        if name not in {field.name for field in dataclasses.fields(Run)} - {"path"}:
            raise AttributeError(name)
        return getattr(open_run(self.path), name)

    def __repr__(self) -> str:
        return f"planned({str(self.path)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _PlannedRun) and self.path == other.path

    def __hash__(self) -> int:
        return hash(self.path)

    def __reduce__(self) -> tuple[Callable[[str | Path], Run], tuple[Path]]:
        return planned, (self.path,)


def planned(path: str | Path) -> Run:
    """The run that will stand at `path` when a stage that takes it starts; reading more than its path opens it."""
    return _PlannedRun(Path(path))


class Stage(Generic[P]):
    """A function made a stage by `@stage`: call it with an `out` folder and its arguments; picklable by its name."""

    def __init__(self, function: Callable[Concatenate[Workspace, P], Metrics], name: str) -> None:
        functools.update_wrapper(self, function)
        self.function, self.name = function, name
        self.parameters = parameters_of(function)

    def __reduce__(self) -> str:
        return self.function.__qualname__

    def __repr__(self) -> str:
        return f"<stage {self.name}>"

    def __call__(self, out: str | Path, /, *args: P.args, **arguments: P.kwargs) -> Run:
        """Run the stage in `out` unless it is finished there, and return the finished run.

        A run may be given by its path. Raises TypeError on an argument that the stage does not take, and UserError as
        `run_stage` does.
        """
        return self.call(out, *args, **arguments).finish(replace=False)

    def call(self, out: str | Path, /, *args: P.args, **arguments: P.kwargs) -> Call:
        """The same call, to be made later: its runs need not exist yet. TypeError on an unknown or missing argument."""
        try:
            inspect.signature(self.function).bind(None, *args, **arguments)
        except TypeError as error:
            raise TypeError(f"stage {self.name!r}: {error}") from None
        for parameter in self.parameters:
            if parameter.name in arguments:
                check_argument(parameter, arguments[parameter.name])
        return Call(self, Path(out), dict(arguments), Path(out).name)


@dataclass(frozen=True)
class Call:
    """One stage with its arguments, to be run later and in any process: an entry of a plan."""

    stage: Stage[...]
    out: Path
    arguments: Mapping[str, object]
    name: str

    def named(self, name: str) -> Call:
        """The same call under the name that a plan shows."""
        return dataclasses.replace(self, name=name)

    @property
    def run(self) -> Run:
        """The run that this call will leave: what a later call takes."""
        return planned(self.out)

    @property
    def needs(self) -> tuple[Path, ...]:
        """The folders of the runs that it takes, each once, in the order of its parameters."""
        folders = [
            folder
            for parameter in self.stage.parameters
            if parameter.runs
            for folder in folders_of(self.arguments.get(parameter.name)).values()
        ]
        return tuple(dict.fromkeys(folders))

    def __call__(self) -> Run:
        """Run it as a part of a plan: an earlier run of this stage with another key is set aside."""
        return self.finish(replace=True)

    def finish(self, *, replace: bool) -> Run:
        """Run it; `replace` as in `run_stage`."""
        given: dict[str, object] = dict(self.arguments)
        for parameter in self.stage.parameters:
            if parameter.runs and parameter.name in given:
                given[parameter.name] = opened(given[parameter.name])

        def body(folder: Path, ledger: Ledger) -> Metrics:
            return self.stage.function(Workspace(folder, ledger), **given)

        return finish(self.out, identity=self.identity(), body=body, replace=replace)

    def identity(self) -> Identity:
        """What the run is known by. Opens its input runs: UserError where one is missing or damaged."""
        inputs: dict[str, str] = {}
        record: dict[str, object] = {}
        key: dict[str, object] = {}
        for parameter in self.stage.parameters:
            value = self.arguments.get(parameter.name, parameter.default)
            mark = getattr(value, "fingerprint", None)
            if parameter.runs and value is not None:
                for part, folder in folders_of(value).items():
                    inputs[f"{parameter.name}{part}"] = open_run(folder).fingerprint
            elif isinstance(mark, str):
                inputs[parameter.name] = mark
                record[parameter.name] = recorded(value, otherwise=mark)
            else:
                record[parameter.name] = jsonable(value)
                if not parameter.has_default(value):
                    key[parameter.name] = keyed(value, parameter.annotation)
        return Identity(
            stage=self.stage.name,
            config=record,
            inputs=inputs,
            fingerprint=fingerprint({"stage": self.stage.name, "config": key, "inputs": inputs}),
        )


@overload
def stage(function: Callable[Concatenate[Workspace, P], Metrics], /) -> Stage[P]: ...
@overload
def stage(*, name: str) -> Callable[[Callable[Concatenate[Workspace, P], Metrics]], Stage[P]]: ...
def stage(
    function: Callable[Concatenate[Workspace, P], Metrics] | None = None, /, *, name: str | None = None
) -> Stage[P] | Callable[[Callable[Concatenate[Workspace, P], Metrics]], Stage[P]]:
    """Make a function a stage; `name` is what its runs record, by default the function's own name.

    TypeError when a parameter after the workspace is not keyword-only, has no annotation, or is a path: a path says
    nothing about what lies there.
    """

    def make(body: Callable[Concatenate[Workspace, P], Metrics]) -> Stage[P]:
        return Stage(body, name or body.__name__)

    return make if function is None else make(function)
