"""The held-out benchmark's own stages: consistency training on spellings, a dictionary of words, what spellings share.

Legend: N things that every spelling has a word or a prompt for, H hidden units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from align.preferences import Weights
from align.runs import Metrics, Run, Workspace, stage
from align.testbed.vocabulary import TOKEN_ID, VOCABULARY, encode
from align.testbed.world import ALPHABET, COLON, END, PAD, TOPICS, World, cipher, spelling_of
from recipes.testbed.stages import Judged, reference_tables, write_cells

if TYPE_CHECKING:
    from torch import Tensor

    from align.testbed.answers import ReferenceTables
    from align.testbed.world import Prompt
    from align.training.consistency.settings import ConsistencyConfig, PromptPair

Array = NDArray[np.float64]
POWERS = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0)
PLAIN_WORDS = tuple(w for w in VOCABULARY if not spelling_of(w) and w not in (PAD, END, COLON))


def spelt_reply(pair: PromptPair, reply: str) -> str | None:
    """A plain reply in the spelling of the pair's shifted prompt; None for one that leaves the response alphabet."""
    words = reply.split()
    if any(word not in ALPHABET for word in words):
        return None
    return "".join(f" {cipher(word, spelling_of(pair.shifted))}" for word in words)


@stage(name="consistency on spellings")
def consistent(
    work: Workspace, *, world: World, policy: Run, reference: Run, spellings: tuple[int, ...], weights: Weights,
    training: ConsistencyConfig,
) -> Metrics:  # fmt: skip
    """The policy at a preference, trained to do in these spellings what it does on the plain fine-tuning prompts."""
    from align.policies.base import ModelPolicy, PointFamily
    from align.policies.load import load_family
    from align.training.consistency.settings import Models, PromptPair
    from align.training.consistency.stage import consistency

    pairs = [PromptPair(p.text, p.spelt(s, split="train").text) for s in spellings for p in world.train_prompts]
    point = load_family(policy.path).points[weights.label]
    metrics = consistency(
        training, models=Models(ModelPolicy(point), f"{reference.path}/model"), pairs=pairs, out=work.folder,
        ledger=work.ledger, written=spelt_reply if training.kind == "outputs" else None,
    )  # fmt: skip
    PointFamily("consistency", {weights.label: str(work.folder / "model")}).save(work.folder)
    return metrics


@stage(name="words changed by a dictionary")
def dictionary(work: Workspace, *, world: World, policy: Run, reference: Run, weights: Weights) -> Metrics:
    """The policy, whose words in every spelling get the change that training made to their plain twins' embeddings.

    It needs to know which word is which, as no mitigation does: it shows what would be enough.
    """
    import torch

    from align.models import load_model, load_tokenizer, save_model
    from align.policies.base import PointFamily
    from align.policies.load import load_family
    from align.training.consistency.settings import embedding_weights

    point = load_family(policy.path).points[weights.label]
    model = load_model(point)
    tables = zip(embedding_weights(model), embedding_weights(load_model(f"{reference.path}/model")), strict=True)
    plain = ids_of(PLAIN_WORDS, 0)
    with torch.no_grad():
        for own, their in tables:
            change = own[plain] - their[plain]
            for spelling in range(1, world.config.spellings + 1):
                spelt = ids_of(PLAIN_WORDS, spelling)
                own[spelt] = their[spelt] + change
    save_model(model, load_tokenizer(point), work.folder / "model")
    PointFamily("dictionary", {weights.label: str(work.folder / "model")}).save(work.folder)
    return {"words": len(plain) * world.config.spellings}


class Sharpened:
    """The reference's own leaf distribution to a power, normalised: what it holds likely becomes likelier."""

    samples_per_response = 1

    def __init__(self, tables: ReferenceTables, power: float, *, name: str) -> None:
        self.tables, self.power, self.name = tables, power, name

    def leaf_logprobs(self, world: World, prompt: Prompt) -> Tensor:
        """(N, V) log-probability of every leaf."""
        scaled_NV = self.power * self.tables.leaves(prompt)
        return scaled_NV - scaled_NV.flatten().logsumexp(0)


@stage(name="sharpened reference")
def sharpened(work: Workspace, *, world: World, row: str, reference: Run, judged: Judged) -> Metrics:
    """Exact cells of the reference to the power with the best J on plain prompts: a gain that knows no word."""
    from align.testbed.answers import exact_answers

    tables = reference_tables(world, reference)
    gains = {}
    for power in POWERS:
        policy = Sharpened(tables, power, name=row)
        answers = exact_answers(policy, row=row, weights=judged.weights, shifts=(judged.home,), tables=tables)
        gains[power] = float(np.mean([answer.J for answer in answers]))
    power = max(gains, key=lambda one: gains[one])
    best = Sharpened(tables, power, name=row)
    return {"cells": write_cells(work.folder, best, row=row, tables=tables, judged=judged), "power": power}


def ids_of(words: Sequence[str], spelling: int) -> list[int]:
    """Token ids of plain words in a spelling."""
    return [TOKEN_ID[cipher(word, spelling)] for word in words]


@dataclass(frozen=True)
class Likeness:
    """Of the N things in one spelling, looked up among their means over other spellings, each spelling's mean removed.

    `found`: share whose nearest mean (by cosine) is their own; `cosine`: mean cosine to their own.
    """

    found: float
    cosine: float


def likeness(held_out_NH: Array, others: Sequence[Array]) -> Likeness:
    """How alike a spelling lies to others; removing the means forgives a shift that is the same for all things."""
    first, second = (
        centred / np.linalg.norm(centred, axis=1, keepdims=True)
        for centred in (
            held_out_NH - held_out_NH.mean(0),
            np.mean([table - table.mean(0) for table in others], axis=0),
        )  # fmt: skip
    )
    cosine_NN = first @ second.T
    return Likeness(float((cosine_NN.argmax(1) == np.arange(len(first))).mean()), float(np.diag(cosine_NN).mean()))


@stage(name="what spellings share")
def shared_words(work: Workspace, *, world: World, reference: Run) -> Metrics:
    """Likeness in the reference of each spelling to all others, its means over spellings, and chance.

    Of three things: the response words' embeddings, the topics', and the last layer's state behind the held-out prompts
    (one for each topic), which is what the first word of a response is read from.
    """
    import torch

    from align.models import load_model
    from align.training.consistency.activations import residual_states

    model = load_model(f"{reference.path}/model").eval()
    words = model.get_input_embeddings().weight.detach().double().numpy()
    prompts = world.test_prompts("none")
    tables: dict[str, list[Array]] = {"response words": [], "topic words": [], "states": []}
    for spelling in range(world.config.spellings + 1):
        ids_BT = torch.tensor([encode(p.spelt(spelling, split="none").text) for p in prompts])
        with torch.no_grad():
            states_LBPH = residual_states(model, ids_BT, torch.ones_like(ids_BT), width=1)
        tables["response words"].append(words[ids_of(ALPHABET, spelling)])
        tables["topic words"].append(words[ids_of(TOPICS, spelling)])
        tables["states"].append(states_LBPH[-1, :, 0].double().numpy())
    metrics: dict[str, object] = {}
    for name, by_spelling in tables.items():
        found = [
            asdict(likeness(own, [other for t, other in enumerate(by_spelling) if t != s]))
            for s, own in enumerate(by_spelling) if s > 0
        ]  # fmt: skip
        means = {key: float(np.mean([one[key] for one in found])) for key in ("found", "cosine")}
        metrics[name] = means | {"chance": 1 / len(by_spelling[0])}
    return metrics
