"""The shift benchmark's own stages: exact cells under shifts, methods trained on several spellings, soups of two runs.

Every function takes plain arguments, writes one run directory through `run_stage`, and is safe to call again.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from align.data.answers import SampledAnswer
from align.runs import RUN_FILE, Ledger, open_run, run_stage
from recipes.testbed import stages as stages
from recipes.testbed.stages import Settings


def evaluate(
    *, out: str, world: Settings, row: str, reference: str, policy: str, weights: Sequence[Sequence[float]],
    shifts: Sequence[str],
) -> None:  # fmt: skip
    """Exact cells, prompt by prompt, of one policy in distribution and under each shift.

    `policy` is the reference itself (asked once, judged at all of `weights`) or a run that holds a family, which is
    asked for the one point that `weights` names. Weights that another row has at that point (a soup at its corner) are
    not enumerated again: `twin` is that row's cells.
    """

    def body(folder: Path, ledger: Ledger) -> Mapping[str, Any]:
        from align.policies.load import load_family
        from align.preferences import Weights
        from evals.measure.answers import append_answers, read_exact

        (folder / "cells.jsonl").unlink(missing_ok=True)
        place, asked = stages.world_of(world), [Weights(tuple(w)) for w in weights]
        tables = stages.reference_tables(place.config, reference, open_run(reference).fingerprint)
        if policy == reference:
            return _write(folder, tables, row=row, weights=asked, shifts=shifts, tables=tables)
        (only,) = asked
        answer = load_family(policy).policy(only)
        same = _weights(answer)
        found = {"weights": same, "samples_per_response": answer.samples_per_response}
        twin = _twin(Path(out), weights=same, about={"reference": inputs["reference"], "shifts": list(shifts)})
        if twin is not None:
            cells = [dataclasses.replace(answer, row=row) for answer in read_exact(twin / "cells.jsonl")]
            append_answers(folder / "cells.jsonl", cells)
            return {**found, "cells": len(cells), "twin": twin.parent.name}
        tree = stages.tree_policy(answer, tables=tables, weights=only, name=row)
        return {**found, **_write(folder, tree, row=row, weights=asked, shifts=shifts, tables=tables)}

    inputs = {"reference": open_run(reference).fingerprint, "policy": open_run(policy).fingerprint}
    inputs |= {"world": stages.world_of(world).hash}
    config = {"row": row, "weights": weights, "shifts": list(shifts)}
    run_stage(out, stage="evaluate under shifts", config=config, body=body, inputs=inputs)


def _weights(answer: Any) -> str | None:
    """A fingerprint of a plain model's weights; None for policies that are more than one model."""
    from align.policies.base import ModelPolicy

    files = sorted(Path(answer.path).glob("*.safetensors")) if isinstance(answer, ModelPolicy) else []
    if len(files) != 1 or (Path(answer.path) / "adapter_config.json").is_file():
        return None
    return hashlib.sha256(files[0].read_bytes()).hexdigest()


def _twin(out: Path, *, weights: str | None, about: Mapping[str, Any]) -> Path | None:
    """A finished run of another row at the same preference, with the same weights, reference and shifts."""
    for other in sorted(out.parents[1].glob(f"*/{out.name}/{RUN_FILE}")) if weights else ():
        run = open_run(other.parent)
        same = {"reference": run.inputs.get("reference"), "shifts": run.config.get("shifts")} == about
        if same and other.parent != out and run.metrics.get("weights") == weights:
            return other.parent
    return None


def closed_form(
    *, out: str, world: Settings, row: str, kind: str, reference: str, weights: Sequence[Sequence[float]],
    options: Settings, shifts: Sequence[str],
) -> None:  # fmt: skip
    """Exact cells of a control in distribution and under each shift: made for the first of `weights`, judged at all."""

    def body(folder: Path, ledger: Ledger) -> Mapping[str, Any]:
        from align.preferences import Weights
        from recipes.testbed.controls import closed_form_policy

        (folder / "cells.jsonl").unlink(missing_ok=True)
        place, asked = stages.world_of(world), [Weights(tuple(w)) for w in weights]
        tables = stages.reference_tables(place.config, reference, open_run(reference).fingerprint)
        tree = closed_form_policy(kind, reference=tables, weights=asked[0], options=options)
        return _write(folder, tree, row=row, weights=asked, shifts=shifts, tables=tables)

    inputs = {"reference": open_run(reference).fingerprint, "world": stages.world_of(world).hash}
    config = {"row": row, "kind": kind, "weights": weights, "options": options, "shifts": list(shifts)}
    run_stage(out, stage="closed form under shifts", config=config, body=body, inputs=inputs)


def _write(
    folder: Path, tree: Any, *, row: str, weights: Sequence[Any], shifts: Sequence[str], tables: Any
) -> Mapping[str, Any]:
    from align.testbed.answers import exact_answers
    from evals.measure.answers import append_answers

    cells = exact_answers(tree, row=row, weights=weights, shifts=("none", *shifts), tables=tables)
    append_answers(folder / "cells.jsonl", cells)
    return {"cells": len(cells), "samples_per_response": tree.samples_per_response}


def fit(
    *, out: str, world: Settings, method: str, settings: Settings, reference: str,
    weights: Sequence[Sequence[float]], spellings: Sequence[int],
) -> None:  # fmt: skip
    """An on-policy method on the fine-tuning prompts in these spellings, all in equal numbers.

    Steps and samples per step are those of the settings, whatever the number of spellings.
    """

    def body(folder: Path, ledger: Ledger) -> Mapping[str, Any]:
        from align.engines.problem import Problem
        from align.methods import METHODS
        from align.preferences import Weights
        from align.runs import Workspace
        from align.testbed.gold import gold_objectives

        place, asked = stages.world_of(world), [Weights(tuple(w)) for w in weights]
        prompts = [p.spelt(s, split="train") for s in spellings for p in place.train_prompts]
        problem = Problem(
            reference=f"{reference}/model",
            objectives=gold_objectives(place),
            preferences=asked,
            prompts=[{"id": p.text, "prompt": p.text} for p in prompts],
        )
        family = METHODS[method].fit(METHODS[method].Config(**settings), problem, Workspace(folder, ledger))
        family.save(folder)
        return {"prompts": len(prompts), "optimises": dict(family.optimises)}

    inputs = {"reference": open_run(reference).fingerprint, "world": stages.world_of(world).hash}
    config = {"method": method, "settings": settings, "weights": weights, "spellings": list(spellings)}
    run_stage(out, stage=f"fit {method}", config=config, body=body, inputs=inputs)


def average(*, out: str, parts: Sequence[str], weights: Sequence[Sequence[float]]) -> None:
    """At each preference the even average of the weights of two runs' policies, as a family of points."""

    def body(folder: Path, ledger: Ledger) -> Mapping[str, Any]:
        from align.policies.base import PointFamily
        from align.policies.load import load_family
        from align.policies.soups import merge
        from align.preferences import Weights

        points, families = {}, [load_family(part) for part in parts]
        for w in weights:
            label = Weights(tuple(w)).label
            models = [family.points[label] for family in families]
            points[label] = merge(models, weights=[1 / len(models)] * len(models), out=folder / label)
        PointFamily("average", points).save(folder)
        return {"points": len(points)}

    inputs = {f"part {i}": open_run(part).fingerprint for i, part in enumerate(parts)}
    run_stage(out, stage="average", config={"weights": weights}, body=body, inputs=inputs)


def graft(*, out: str, part: str, reference: str, keep: str, weights: Sequence[Sequence[float]]) -> None:
    """At each preference the reference with one half of what a run's policy learned: where a gain sits.

    keep: `layers` takes the trained layers and leaves the reference's word embeddings (its output words, too);
    `embeddings` is the other way round.
    """

    def body(folder: Path, ledger: Ledger) -> Mapping[str, Any]:
        from align.models import load_model, load_tokenizer, save_model
        from align.policies.base import PointFamily
        from align.policies.load import load_family
        from align.preferences import Weights

        points, moved = {}, {}
        for w in weights:
            label = Weights(tuple(w)).label
            trained, base = load_model(load_family(part).points[label]), load_model(f"{reference}/model")
            words = {id(m.weight) for m in (trained.get_input_embeddings(), trained.get_output_embeddings())}
            theirs = dict(base.named_parameters())
            for name, weight in trained.named_parameters():
                if (id(weight) in words) == (keep == "layers"):
                    weight.data.copy_(theirs[name].data)
                else:
                    moved[name] = tuple(weight.shape)
            save_model(trained, load_tokenizer(f"{reference}/model"), folder / label)
            points[label] = str(folder / label)
        PointFamily("graft", points).save(folder)
        return {"points": len(points), "taken": sorted(moved)}

    inputs = {"part": open_run(part).fingerprint, "reference": open_run(reference).fingerprint}
    run_stage(out, stage="graft", config={"weights": weights, "keep": keep}, body=body, inputs=inputs)


def sample(
    *, out: str, row: str, policy: str, weights: Sequence[float], data: str, reference: str, pairs: str,
    reward_models: Mapping[str, str], judges: Mapping[str, str], shifts: Sequence[str], prompts: int, samples: int,
    max_new_tokens: int, options: Settings,
) -> None:  # fmt: skip
    """Sampled cells of one policy of an hh run on the same prompts, plain and under each shift.

    Only prompts that every shift can change are asked, the objectives' prompts taking turns; how many were passed over
    is in the metrics. `values` are the judges' on the plain prompt, `values_shifted` those on the prompt as asked.
    """

    def body(folder: Path, ledger: Ledger) -> Mapping[str, Any]:
        from align.objectives import RewardModelObjective
        from align.policies.base import ModelPolicy
        from align.preferences import Weights
        from evals.measure.answers import append_answers
        from recipes.real.judging import policy_of_row

        base = ModelPolicy(reference, name="reference")
        made = policy_of_row(
            row, Weights(tuple(weights)), policy=policy, reference=reference, pairs=pairs,
            reward_models=reward_models, options=options, folder=folder,
        )  # fmt: skip
        judging = [RewardModelObjective(path, name=name) for name, path in judges.items()]
        asked, passed = shifted_prompts(data, shifts=shifts, count=prompts, tokenizer=base.tokenizer)
        cells = []
        for name, rows in asked.items():
            for number in range(samples):
                completions, ratios = _drawn(
                    made, None if row == "reference" else base, [r["prompt"] for r in rows], number=number,
                    new=max_new_tokens,
                )  # fmt: skip
                ledger.add(samples_drawn=len(rows) * made.samples_per_response)
                plain, shifted = _judged(judging, rows, completions, shift=name)
                cells += [
                    SampledAnswer(
                        row=row, preference=tuple(weights), shift=name, item=r["item"], prompt=r["prompt"],
                        values=plain[i], kl=ratios[i], sample=number, completion=completions[i],
                        values_shifted=shifted[i],
                    )
                    for i, r in enumerate(rows)
                ]  # fmt: skip
                ledger.add(scores_read=2 * len(rows) * len(judging))
        (folder / "cells.jsonl").unlink(missing_ok=True)
        append_answers(folder / "cells.jsonl", cells)
        return {"cells": len(cells), "passed_over": passed, "samples_per_response": made.samples_per_response}

    from recipes.pipeline.inputs import content_key

    paths = {"reference": reference, "policy": policy, "data": data, **{f"judge {n}": p for n, p in judges.items()}}
    inputs = {name: content_key(path) for name, path in paths.items()}
    config = {"row": row, "weights": list(weights), "shifts": list(shifts), "prompts": prompts, "samples": samples}
    config |= {"max_new_tokens": max_new_tokens, "options": options}
    run_stage(out, stage="sample under shifts", config=config, body=body, inputs=inputs)


def shifted_prompts(
    data: str, *, shifts: Sequence[str], count: int, tokenizer: Any, longest: int = 400
) -> tuple[dict[str, list[dict[str, str]]], dict[str, int]]:
    """({"none" and each shift: rows of item, plain, prompt}, how many prompts were passed over, by reason).

    The first `count` of the test part's prompts that every shift changes into a text of at most `longest` tokens.
    """
    from collections import Counter

    from evals.items import Missing
    from evals.shifts import SHIFTS
    from recipes.real import data as hh_data
    from recipes.real.augment import shifted_prompt

    asked: dict[str, list[dict[str, str]]] = {"none": [], **{name: [] for name in shifts}}
    passed: Counter[str] = Counter()
    for row in hh_data.unique_prompts(hh_data.read_rows(Path(data) / "test.jsonl")):
        texts = {name: shifted_prompt(row["prompt"], shift=SHIFTS[name]) for name in shifts}
        reasons = [f"{name}: {text.reason}" for name, text in texts.items() if isinstance(text, Missing)]
        reasons += [
            f"{name}: too long"
            for name, text in texts.items()
            if isinstance(text, str) and len(tokenizer(text)["input_ids"]) > longest
        ]
        if reasons:
            passed.update(reasons[:1])
            continue
        for name, text in {"none": row["prompt"], **texts}.items():
            asked[name].append({"item": row["item"], "plain": row["prompt"], "prompt": text})
        if len(asked["none"]) == count:
            break
    return asked, dict(passed)


def _drawn(made: Any, base: Any, texts: Sequence[str], *, number: int, new: int) -> tuple[list[str], list[float]]:
    """One sample per prompt and its log-ratio, 0 where `base` is None (the reference); rows share their seeds."""
    completions = made.generate(texts, max_new_tokens=new, seed=number, batch_size=64)
    if base is None:
        return completions, [0.0] * len(texts)
    own, theirs = (p.sequence_logprobs(texts, completions, max_new_tokens=new) for p in (made, base))
    return completions, [a - b for a, b in zip(own, theirs, strict=True)]


def _judged(
    judging: Sequence[Any], rows: Sequence[Mapping[str, str]], completions: Sequence[str], *, shift: str
) -> list[list[tuple[float, ...]]]:
    """The judges' scores of the decoded responses: on the plain prompts, and on the prompts as asked."""
    from evals.shifts import SHIFTS

    answers = [SHIFTS[shift].decode(completion) for completion in completions]
    by_side = [[judge([r[side] for r in rows], answers) for judge in judging] for side in ("plain", "prompt")]
    return [[tuple(float(scores[i]) for scores in side) for i in range(len(rows))] for side in by_side]
