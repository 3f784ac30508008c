"""In-context policies as backends: tags inside the user's turn after every shift, the reference without them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from align.models.sampling import Drawn
from align.policies.base import ModelPolicy
from align.policies.load import load_family
from align.policies.tagged import TaggedFamily, TaggedPolicy, Tags, tagged_checkpoint
from align.preferences import Weights
from align.turns import Turn
from evals.attribution.reading import last_hidden_states, read_prompts
from evals.backends.base import Generation
from evals.backends.policies import backend_of
from evals.backends.transformers import TransformersBackend
from evals.items import Item, Missing, Prompt
from evals.measure.cells import Cell, ask
from evals.measure.model_measurements import AgainstReference
from evals.shifts import parse_shifts
from factories.tagged_styles import BASES, checkpoint

BEFORE = (Turn("user", "is it?"), Turn("assistant", "the tea"))
ITEMS = [Item("a", "how do I use tea?"), Item("b", "why <one: 0.3> glue?", before=BEFORE)]
SHIFTS = ("none", "base64", "prefix_injection")
Made = tuple[TransformersBackend, TaggedPolicy, TransformersBackend]


@pytest.fixture(scope="module", params=[(base, tokens) for base in BASES for tokens in (False, True)], ids=str)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """(The backend of a family's policy, that policy, the reference's backend); no training has changed the model."""
    base, tokens = request.param
    folder = tmp_path_factory.mktemp("family")
    reference = checkpoint(base, folder / "reference")
    tags = Tags(("one", "two"), tokens=tokens)
    TaggedFamily("ric", tagged_checkpoint(reference, tags=tags, out=folder / "model"), tags).save(folder)
    policy, backend = load_family(folder).policy(Weights((0.3, 0.7))), backend_of(str(folder), weights="0.3,0.7")
    assert isinstance(backend, TransformersBackend) and isinstance(policy, TaggedPolicy)
    return backend, policy, TransformersBackend.load(reference)


def shifted() -> list[Cell]:
    return ask(ITEMS, suite="s", shifts=parse_shifts(SHIFTS))


def test_ids_are_those_that_the_policy_reads_and_no_quoted_tag_is_one(made: Made) -> None:
    backend, policy, reference = made
    for cell in shifted():
        said, ids = backend.renderer.said(cell.question), backend.encode(cell.question)
        assert ids == policy.prompt_ids([said])[0]
        plain = reference.encode(cell.question)
        assert isinstance(ids, list) and isinstance(plain, list)
        text, untagged = (m.tokenizer.decode(i) for m, i in ((backend, ids), (reference, plain)))
        last = [turn.content for turn in cell.question.turns if turn.role == "user"][-1]
        assert text == untagged[: untagged.rindex(last)] + backend.lead + untagged[untagged.rindex(last) :]
        assert len(set(ids) & set(backend.banned)) == (2 if backend.banned else 0)
        if reference.tokenizer.bos_token_id in plain and backend.form.format.template == "chat":
            assert ids[0] == plain[0] == reference.tokenizer.bos_token_id


def test_the_backend_and_the_policy_are_one_distribution(made: Made) -> None:
    backend, policy, _ = made
    questions = [cell.question for cell in shifted()]
    said = [backend.renderer.said(question) for question in questions]
    ours = backend.continuation_logprobs(questions, continuations=[" the tea"] * len(said))
    cut = [tuple(backend.form.reply_ids(text, " the tea", ended=False)) for text in said]
    theirs = policy.sequence_logprobs(said, [Drawn(ids, ended=False) for ids in cut])
    assert [value[0] for value in ours if not isinstance(value, Missing)] == pytest.approx(theirs, abs=1e-3)
    answers = backend.generate(questions, config=Generation(4, 0.0), seeds=[0] * len(said))
    for text, answer in zip(said, answers, strict=True):
        assert not isinstance(answer, Missing) and not set(answer.ids) & set(backend.banned)
        ids = torch.tensor(policy.prompt_ids([text]))
        logp_V = policy.next_token_logprobs(ids, torch.ones_like(ids))[0]
        assert int(logp_V.argmax()) == answer.ids[0] and all(logp_V[i] == -torch.inf for i in backend.banned)


def test_the_reference_is_read_at_the_prompt_without_tags(made: Made) -> None:
    backend, policy, reference = made
    cells = shifted()
    answers = backend.generate([c.question for c in cells], config=Generation(4, 1.0), seeds=list(range(len(cells))))
    drawn = [Drawn(a.ids, a.finished, a.text) for a in answers if not isinstance(a, Missing)]
    asked = [
        replace(cell, values={"completion": {"text": d.text, "tokens": 4, "finished": d.ended, "ids": list(d.ids)}})
        for cell, d in zip(cells, drawn, strict=True)
    ]
    said = [backend.renderer.said(cell.question) for cell in cells]
    own, base = (
        policy.sequence_logprobs(said, drawn),
        ModelPolicy(reference_path(reference)).sequence_logprobs(said, drawn),
    )
    for value, ours, theirs, d in zip(
        AgainstReference(reference).measure(asked, backend=backend), own, base, drawn, strict=True
    ):
        assert not isinstance(value, Missing)
        assert value["log_ratio"] == pytest.approx(ours - theirs, abs=1e-3)
        assert len(value["kl"]) == len(d.ids) and min(value["kl"]) > 1e-4


def reference_path(backend: TransformersBackend) -> str:
    return str(backend.model.name_or_path)


def test_what_attribution_reads_is_behind_the_tags(made: Made) -> None:
    backend, _, reference = made
    prompts = [cell.question for cell in shifted()]
    readings = read_prompts(backend, prompts, layer=2)
    bare = read_prompts(reference, prompts, layer=2)
    states = last_hidden_states(backend, prompts, layer=2)
    for reading, other, state in zip(readings, bare, states, strict=True):
        assert not isinstance(reading, Missing) and not isinstance(other, Missing) and not isinstance(state, Missing)
        assert np.allclose(reading.state_H, state, atol=1e-4)
        assert not np.allclose(reading.state_H, other.state_H, atol=1e-3) and reading.margin != other.margin


def test_a_prompt_without_a_user_turn_is_missing(made: Made) -> None:
    found = made[0].encode(Prompt((Turn("assistant", "the tea"),)))
    assert isinstance(found, Missing) and found.reason == "no_user_turn"
