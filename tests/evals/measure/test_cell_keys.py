"""A cell's key holds what decides its value: whatever changes that is another key, whatever does not is the same."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from align.models import load_model, load_tokenizer
from align.objectives import Length
from align.policies.base import ModelPolicy
from align.policies.best_of_n import BestOfNPolicy, WeightedScore
from align.preferences import Weights
from align.turns import Turn
from evals.backends.base import Generation
from evals.backends.openai_api import Endpoint, OpenAIBackend
from evals.backends.policies import _rule
from evals.backends.transformers import TransformersBackend
from evals.items import Item, Missing, Prompt
from evals.judges import RefusalRules
from evals.measure.cells import Cell, ask
from evals.measure.engine import Encode, Engine, cell_key
from evals.measure.measurements import Choices, CompletionOf, Comprehension, Measurement, RefusalMargin, Scored
from evals.measure.pair_scores import PairScores
from evals.measure.store import CellStore
from evals.measure.verdict import Verdict
from evals.shifts.base import Probe, Shift
from evals.suites.base import QA
from factories.chat_styles import chat_checkpoint

ITEM = Item("i0", "in the tin", label="harmful", choices=("a", "b"), target=0, columns={"chosen": ["x"]})
SHIFT = Shift(
    "loud", "style", "mismatched", lambda text, rng: Prompt.user(text.upper()), decode=str.lower,
    probe=lambda rng: Probe(Prompt.user("SAY TEA"), lambda answer: "tea" in answer.lower()),
)  # fmt: skip
COMPLETION, SCORE = CompletionOf(Generation(8)), Scored(replace(QA, score=lambda item, text: {"length": len(text)}))
MEASURED: dict[str, Measurement] = {
    "completion": COMPLETION, "verdict": Verdict(RefusalRules()), "score": SCORE, "pairs": PairScores(),
    "comprehension": Comprehension(Generation(8)), "choices": Choices(), "margin": RefusalMargin(),
}  # fmt: skip


def keys(cell: Cell, *, encode: Encode | None = None) -> dict[str, str]:
    answered = cell.measured("completion", {"text": "NO"})
    return {name: cell_key(answered, measurement=m, model="f", encode=encode) for name, m in MEASURED.items()}


def asked(item: Item = ITEM, shift: Shift = SHIFT) -> Cell:
    return ask([item], suite="s", shifts=[shift])[0]


def other_probe(rng: Any) -> Probe:
    return Probe(Prompt.user("SAY MILK"), lambda answer: "milk" in answer)


READ_ITEMS = {"verdict", "score", "pairs", "choices"}
EVERYTHING = set(MEASURED)
CHANGES: list[tuple[str, Cell, set[str]]] = [
    ("the shift's decoder", asked(shift=replace(SHIFT, decode=lambda text: text[:1])), {"verdict", "score"}),
    ("the probe's question", asked(shift=replace(SHIFT, probe=other_probe)), {"comprehension"}),
    ("the shift's version", asked(shift=replace(SHIFT, version="2-A")), EVERYTHING),
    ("the shift's interface", asked(shift=replace(SHIFT, version="1-B")), set()),
    ("the label", asked(replace(ITEM, label="benign")), READ_ITEMS),
    ("the target", asked(replace(ITEM, target=1)), READ_ITEMS),
    ("the choices", asked(replace(ITEM, choices=("a", "c"))), READ_ITEMS),
    ("the responses compared", asked(replace(ITEM, columns={"chosen": ["y"]})), READ_ITEMS),
    ("the group, for tables", asked(replace(ITEM, group="tools")), set()),
    ("the item's id", asked(replace(ITEM, id="i1")), EVERYTHING),
    ("earlier turns", asked(replace(ITEM, before=(Turn("user", "hi"),))), EVERYTHING - {"comprehension"}),
    ("the prompt", replace(asked(), prompt=Prompt.user("else")), EVERYTHING - {"comprehension"}),
    ("the request as the judge reads it", replace(asked(), item=replace(ITEM, request="else")), READ_ITEMS),
]


@pytest.mark.parametrize(("what", "changed", "expected"), CHANGES, ids=[what for what, *_ in CHANGES])
def test_the_keys_that_change_are_those_of_what_reads_it(what: str, changed: Cell, expected: set[str]) -> None:
    before, after = keys(asked()), keys(changed)
    assert {name for name in MEASURED if before[name] != after[name]} == expected, what


def test_the_prompt_counts_as_the_ids_that_the_model_reads() -> None:
    """Also where another version of the code renders the same turns of the same template otherwise."""
    plain, seen = keys(asked()), []

    def encode(prompt: Prompt) -> list[int]:
        seen.append(prompt.turns[-1].content)
        return [len(prompt.turns[-1].content)]

    first, other = keys(asked(), encode=encode), keys(asked(), encode=lambda prompt: [0])
    assert set(seen) == {"IN THE TIN", "SAY TEA"}, "a probe is read in place of the prompt"
    assert all(len({plain[name], first[name], other[name]}) == 3 for name in MEASURED)
    lost = keys(asked(), encode=lambda prompt: Missing("unsupported_system"))
    assert all(lost[name] not in (plain[name], first[name]) for name in MEASURED)


def test_the_engine_asks_a_model_in_memory_for_those_ids(tmp_path: Path) -> None:
    class Fake:
        name, fingerprint, can, encoded = "fake", "f", frozenset[str](), 0

        def __init__(self, ids: list[int]) -> None:
            self.ids, self.asked = ids, 0

        def encode(self, prompt: Prompt) -> list[int]:
            return self.ids

        def generate(self, prompts: Sequence[Prompt], *, config: Generation, seeds: Sequence[int]) -> list[Any]:
            self.asked += len(prompts)
            return [Missing("refused", lasting=True)] * len(prompts)

        def continuation_logprobs(self, prompts: Sequence[Prompt], *, continuations: Sequence[str]) -> list[Any]:
            return []

    counts = []
    for ids in ([1], [1], [2]):
        backend = Fake(ids)
        Engine(backend, store=CellStore(tmp_path / "c.jsonl")).run([asked()], measurements=[COMPLETION])
        counts.append(backend.asked)
    assert counts == [1, 0, 1]


def test_a_judge_counts_by_its_number_and_its_fingerprint() -> None:
    class Other(RefusalRules):
        pass

    cell = asked().measured("completion", {"text": "NO"})
    found = []
    for version in ("2-A", "2-B", "3-A"):
        Other.version = version
        found.append(cell_key(cell, measurement=Verdict(Other()), model="f"))
    assert found[0] == found[1] == keys(asked())["verdict"] != found[2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_checkpoint("chatml", tmp_path_factory.mktemp("keys"), hidden=16)


def fingerprint(folder: Path, dtype: torch.dtype = torch.float32) -> str:
    return TransformersBackend(load_model(folder).to(dtype), load_tokenizer(folder), name=folder.name).fingerprint


def test_a_type_of_numbers_is_another_model_and_a_folder_is_not(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "elsewhere")
    assert fingerprint(tmp_path / "elsewhere") == fingerprint(checkpoint)
    assert fingerprint(checkpoint, torch.bfloat16) != fingerprint(checkpoint)


def test_best_of_n_is_known_by_what_ranks_its_samples(checkpoint: Path) -> None:
    objectives = {"long": Length(name="long"), "short": Length(longer_is_better=False, name="short")}

    def rule(*weights: float, n: int = 2) -> str:
        score = WeightedScore(objectives, names=list(objectives), weights=Weights(weights))
        return _rule(BestOfNPolicy(ModelPolicy(checkpoint), score=score, n=n, name="best"))

    assert len({rule(0.5, 0.5), rule(0.9, 0.1), rule(1, 0), rule(0.5, 0.5, n=3)}) == 4
    assert rule(0.5, 0.5) == rule(0.5, 0.5)


def test_a_servers_address_counts_with_its_path() -> None:
    def at(address: str) -> str:
        return OpenAIBackend("m", endpoint=Endpoint(address, describe=False)).fingerprint

    known = {at(f"http://localhost:1/{path}") for path in ("v1", "v1/", "a/v1")}
    assert len(known) == 2
