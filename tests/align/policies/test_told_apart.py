"""The KL between opposite extremes of a tagged policy, against the one-token world's own distributions."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from align.models import load_model, load_tokenizer, save_model
from align.policies.base import ModelPolicy
from align.policies.tagged import TaggedFamily, Tags, tag_ids, tagged_checkpoint
from align.policies.told_apart import ToldApart, extremes_kl
from align.preferences import Weights
from align.runs import open_run
from factories.tagged_bandit import law
from factories.tagged_styles import IN_CONTEXT, checkpoint, trained
from factories.tiny_bandit import PROMPTS, kl

TAGS = Tags(("one", "two"), tokens=True)


@pytest.fixture(scope="module")
def start(reference: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return tagged_checkpoint(reference, tags=TAGS, out=tmp_path_factory.mktemp("tagged") / "model")


def test_the_kl_is_that_of_the_extremes_own_distributions(start: str) -> None:
    """Every token ends a response there, so that the exact KL of the first token is all of it."""
    family = TaggedFamily("ric", start, TAGS)
    one, two = (family.policy(Weights.vertex(k, 2)) for k in (0, 1))
    state = torch.get_rng_state()
    found = extremes_kl(family, list(PROMPTS), seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    pairs = [(law(a, p), law(b, p)) for p in PROMPTS for a, b in ((one, two), (two, one))]
    expected = sum(kl(p, q) for p, q in pairs) / len(pairs)
    assert found == pytest.approx(expected, rel=1e-4) and expected > 0.01


def test_tags_that_all_look_alike_tell_nothing_apart(
    start: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = load_model(start), load_tokenizer(start)
    ids = tag_ids(tokenizer, TAGS)
    with torch.no_grad():
        model.get_input_embeddings().weight[ids] = model.get_input_embeddings().weight[ids[0]].clone()
    flat = extremes_kl(TaggedFamily("ric", str(save_model(model, tokenizer, tmp_path / "m")), TAGS), PROMPTS, seed=0)
    assert flat == pytest.approx(0, abs=1e-6)
    told = ToldApart(flat, 0.7, tokens=True)
    told.tell(method="ric")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("align: warning: ric: the tags seem not to be learned") and "before training by 0.7" in line
    assert told.metrics() == {"tags_kl": flat, "tags_kl_untrained": 0.7}


def test_one_objective_and_prompts_without_room_have_no_extremes(start: str, reference: str, tmp_path: Path) -> None:
    alone = Tags(("one",), tokens=True)
    family = TaggedFamily("ric", tagged_checkpoint(reference, tags=alone, out=tmp_path / "m"), alone)
    assert extremes_kl(family, PROMPTS, seed=0) is None
    assert extremes_kl(TaggedFamily("ric", start, TAGS), ["x " * 14 + ":"], seed=0) is None
    assert extremes_kl(TaggedFamily("ric", start, TAGS), [], seed=0) is None


@pytest.mark.parametrize(
    ("after", "before", "tokens", "flat"),
    [
        (0.002, 0.001, False, True),
        (0.2, 0.3, False, True),  # text tags that do no more than they did
        (0.2, 0.3, True, False),  # embeddings drawn at random are far apart
        (0.3, 0.1, False, False),
    ],
)
def test_when_tags_count_as_not_learned(after: float, before: float, tokens: bool, flat: bool) -> None:
    assert ToldApart(after, before, tokens=tokens).flat is flat


@pytest.mark.parametrize("method", IN_CONTEXT)
def test_every_in_context_method_writes_it_down_and_leaves_out_what_has_no_user_turn(
    method: str, tmp_path: Path
) -> None:
    unsaid = {"prompt": "\n\nSystem: be kind\n\nAssistant:"}
    family = trained(method, reference=checkpoint("chatml", tmp_path / "m"), run=tmp_path / "run", unsaid=unsaid)
    runs = [open_run(Path(family.model).parent), *(open_run(p.parent) for p in (tmp_path / "run").glob("*/run.json"))]
    last, metrics = runs[0].metrics, [run.metrics for run in runs]
    assert last["tags_kl"] >= 0 and math.isfinite(last["tags_kl_untrained"])
    assert sum("tags_kl" in m for m in metrics[1:]) == 1  # the last part alone
    assert any(m.get("prompts_dropped_by_no_user_turn") for m in metrics)
    assert isinstance(family.policy(Weights((1.0, 0.0))), ModelPolicy)
