"""Training methods: each module has a `Config` and `fit(...) -> policy family`; METHODS is the list of them."""

from types import ModuleType

from align.methods import dpo, modpo, morlhf, rewarded_soups

METHODS: dict[str, ModuleType] = {
    "dpo": dpo,
    "morlhf": morlhf,
    "modpo": modpo,
    "rewarded_soups": rewarded_soups,
}
