"""The shift benchmark's own stages: policies made of trained ones by averaging or grafting their weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from align.runs import Metrics, Run, Workspace, stage

if TYPE_CHECKING:
    from align.preferences import Weights


@stage
def average(work: Workspace, *, parts: Sequence[Run], weights: tuple[Weights, ...]) -> Metrics:
    """At each preference the even average of the weights of several runs' policies, as a family of points."""
    from align.policies.base import PointFamily
    from align.policies.load import load_family
    from align.policies.soups import merge

    families = [load_family(part.path) for part in parts]
    points = {
        w.label: merge(
            [family.points[w.label] for family in families], weights=[1 / len(parts)] * len(parts),
            out=work.folder / w.label,
        )
        for w in weights
    }  # fmt: skip
    PointFamily("average", points).save(work.folder)
    return {"points": len(points)}


@stage
def graft(work: Workspace, *, part: Run, reference: Run, keep: str, weights: tuple[Weights, ...]) -> Metrics:
    """At each preference the reference with one half of what a run's policy learned: where a gain sits.

    keep: `layers` takes the trained layers and leaves the reference's word embeddings (its output words, too);
    `embeddings` is the other way round.
    """
    from align.models import load_model, load_tokenizer, save_model
    from align.policies.base import PointFamily
    from align.policies.load import load_family

    points, moved, base = {}, set[str](), f"{reference.path}/model"
    theirs = dict(load_model(base).named_parameters())
    for w in weights:
        trained = load_model(load_family(part.path).points[w.label])
        words = {id(m.weight) for m in (trained.get_input_embeddings(), trained.get_output_embeddings())}
        for name, weight in trained.named_parameters():
            if (id(weight) in words) == (keep == "layers"):
                weight.data.copy_(theirs[name].data)
            else:
                moved.add(name)
        save_model(trained, load_tokenizer(base), work.folder / w.label)
        points[w.label] = str(work.folder / w.label)
    PointFamily("graft", points).save(work.folder)
    return {"points": len(points), "taken": sorted(moved)}
