"""Specialists for the methods that combine them: trained at the vertices before the method is called."""

from __future__ import annotations

from dataclasses import fields, replace

from align.engines import specialists
from align.engines.problem import Problem, Specialists
from align.errors import UserError
from align.methods import METHODS, Method
from align.policies.base import PointFamily
from align.preferences import Weights
from align.runs import Workspace, model_dir


def with_specialists(config: object, problem: Problem, run: Workspace) -> Problem:
    """The problem with the specialists that `config` names, trained below `run.folder / "specialists"` and charged.

    The same problem where the method takes none, or `config` or `problem` has them already. UserError on a config that
    could not use them, an unknown method, one that trains no model per preference, or an unknown key of its config.
    """
    if not isinstance(config, specialists.Config):
        return problem
    config.check(objectives=len(problem.objectives))
    if config.specialists or problem.specialists:
        return problem
    vertices = [Weights.vertex(k, len(problem.objectives)) for k in range(len(problem.objectives))]
    settings = specialist_settings(config)
    place = replace(run, folder=run.folder / "specialists")
    family = METHODS[config.method].fit(settings, replace(problem, preferences=vertices), place)
    assert isinstance(family, PointFamily)  # what FAMILY says, and a test holds it to
    trained = Specialists(
        tuple(model_dir(family.points[vertex.label]) for vertex in vertices),
        f"specialists trained by {config.method} at the vertices",
        getattr(settings, "beta", None),
    )
    return replace(problem, specialists=trained)


def specialist_settings(config: specialists.Config, *, where: str = "") -> object:
    """The Config of the method that trains them; UserError, after `where`, on an unfit method or an unknown key."""
    able = [name for name, module in METHODS.items() if makes_specialists(module)]
    if config.method not in able:
        choices = ", ".join(able)
        raise UserError(f"{where}no method {config.method!r} to train specialists with; choose one of {choices}")
    cls = METHODS[config.method].Config
    known = {f.name for f in fields(cls)}
    for key in config.method_config:
        if key not in known:
            names = ", ".join(sorted(known))
            raise UserError(f"{where}method_config of {config.method} has no key {key!r}, only {names}")
    return cls(**config.method_config)


def makes_specialists(module: Method) -> bool:
    """Whether a method trains one model per preference, given as weights."""
    return module.FAMILY is PointFamily and Weights in module.ASKED_BY
