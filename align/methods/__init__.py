"""Training methods: each module is a `Method`; METHODS is the list of them."""

from typing import Any, Protocol

from align.engines.problem import Problem
from align.methods import (
    astar_po,
    best_of_n,
    best_sft,
    chebyshev,
    conditioned_dpo,
    conditioned_rl,
    cpo,
    ctwa,
    dpa,
    dpo,
    genarm,
    gradient_dpo,
    gradient_rl,
    joint_soup,
    kto,
    lagrangian,
    mo_odpo,
    mocan,
    mod,
    modpo,
    morlhf,
    panacea,
    parm,
    pblora,
    personalised_soups,
    ppo,
    rebel,
    rewarded_soups,
    ric,
)
from align.policies.base import PolicyFamily
from align.preferences import Preference
from align.runs import Workspace


class Method(Protocol):
    """A module of this package. `fit` trains in `run.folder`, charges `run.ledger`, and returns a family of policies.

    `Config` is a frozen dataclass of keywords; `ASKED_BY` are the kinds of preference that a problem may have here.
    """

    @property
    def Config(self) -> Any: ...

    @property
    def ASKED_BY(self) -> tuple[type[Preference], ...]: ...

    @property
    def FAMILY(self) -> type[PolicyFamily]: ...

    def fit(self, config: Any, problem: Problem[Any], run: Workspace) -> PolicyFamily: ...


METHODS: dict[str, Method] = {
    "best_of_n": best_of_n,
    "best_sft": best_sft,
    "morlhf": morlhf,
    "ppo": ppo,
    "chebyshev": chebyshev,
    "ctwa": ctwa,
    "lagrangian": lagrangian,
    "mocan": mocan,
    "dpo": dpo,
    "modpo": modpo,
    "rebel": rebel,
    "kto": kto,
    "gradient_dpo": gradient_dpo,
    "gradient_rl": gradient_rl,
    "rewarded_soups": rewarded_soups,
    "personalised_soups": personalised_soups,
    "mod": mod,
    "genarm": genarm,
    "parm": parm,
    "ric": ric,
    "cpo": cpo,
    "dpa": dpa,
    "conditioned_dpo": conditioned_dpo,
    "mo_odpo": mo_odpo,
    "conditioned_rl": conditioned_rl,
    "panacea": panacea,
    "pblora": pblora,
    "joint_soup": joint_soup,
    "astar_po": astar_po,
}
