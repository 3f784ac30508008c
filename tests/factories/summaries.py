"""Whole summaries, exact and sampled, built from synthetic cells through the real tables: what the report is shown."""

import functools
from typing import Any

import numpy as np

from align.data.answers import SampledAnswer
from evals.tables import tradeoffs
from evals.tables.surfaces import exact_points
from evals.tables.under_shift import generalization
from factories import synthetic

STRENGTHS = {
    "reference": 0.0,
    "morlhf/rloo": 0.82,
    "morlhf/rloo@learned": 0.55,
    "morlhf/grpo-stock": 1.7,
    "dpo/scalarised": 0.45,
    "dpo/scalarised+mle": 0.4,
    "modpo": 0.35,
    "rewarded_soups/dpo": 0.3,
    "kl-overspender": 6.0,
    "length-only": 0.02,
    "best-of-256": 0.95,
}
CONTROLS = {
    "reference model": "reference",
    "KL overspender": "kl-overspender",
    "length-only reward model": "length-only",
    "soft best-of-256": "best-of-256",
}
HOSTILE = [
    "<script>document.title = 'taken'</script><img src=x onerror=alert(1)>",
    "</pre></details></main><h1>escaped?</h1>",
    "a" * 100_000,
    " Sure. {{ 7 * 7 }} {% raw %} & \u202e right to left, and a line\nbreak.",
]


def ledger(scale: float = 1.0) -> dict[str, Any]:
    stages = {
        name: {
            "seconds": scale * seconds,
            "cpu_seconds": scale * seconds * 1.8,
            "tokens": int(scale * tokens),
            "flops": scale * tokens * 6 * 138_000,
            "peak_memory_mb": 812.5 + seconds,
            "samples_drawn": samples,
            "scores_read": samples * 2,
        }
        for name, seconds, tokens, samples in (
            ("pretrain", 17.2, 1_900_000, 0),
            ("sft", 6.1, 240_000, 0),
            ("morlhf/rloo", 122.0, 1_300_000, 460_800),
            ("dpo/scalarised", 21.4, 640_000, 8_000),
            ("evaluate", 88.0, 0, 0),
        )
    }
    total = {key: sum(stage[key] for stage in stages.values()) for key in next(iter(stages.values()))}
    return stages | {"total": total | {"peak_memory_mb": max(s["peak_memory_mb"] for s in stages.values())}}


def provenance() -> dict[str, Any]:
    return {
        "seed": 0,
        "commit": "0123abc",
        "platform": "Linux x86_64, 2 cores",
        "threads": 1,
        "versions": {"python": "3.12.3", "torch": "2.13.0", "trl": "1.16.0"},
        "config": {"world": "default", "methods": ["morlhf", "dpo"], "steps": 150},
    }


def conflict(names: list[str]) -> dict[str, Any]:
    size = len(names)
    opposed = [[0.0 if i == j else 0.42 for j in range(size)] for i in range(size)]
    ranks = [[1.0 if i == j else -0.31 for j in range(size)] for i in range(size)]
    return {"names": names, "disagreement": opposed, "rank_correlation": ranks, "n": 2000, "over": "response pairs"}


def row_info(row: str) -> dict[str, Any]:
    change = 0.004 + 0.03 * STRENGTHS[row] if row != "reference" else 0.0
    return {
        "optimises": "w.r - beta KL(sequence), stated in the row's config",
        "rewards": "learned" if row.endswith("@learned") else "gold",
        "note": "Labels from an annotator at temperature 0.2." if row.startswith("dpo") else "",
        "samples_per_response": 256 if row == "best-of-256" else 1,
        "bits_per_byte": {"before": 1.204, "after": 1.204 + change, "change": change},
        "ledger": {"seconds": 12.5, "tokens": 120_000},
    }


@functools.cache
def exact_summary(objectives: int = 2) -> dict[str, Any]:
    """A testbed summary with eleven rows, four shifts and four controls."""
    names = ["helpfulness", "harmlessness", "brevity"][:objectives]
    preferences, point = synthetic.grid(objectives, 4 if objectives == 2 else 3), [-0.05] * objectives
    home = synthetic.topics(9, objectives=objectives, conflict=0.4)
    cells = synthetic.exact_answers(STRENGTHS, prompts=home, preferences=preferences)
    weaker = {row: s * (0.35 if s > 0.1 else 1) for row, s in STRENGTHS.items()}
    for shift, strengths, prompts in (
        ("cipher spelling", weaker, synthetic.topics(9, objectives=objectives, spelling="cipher", conflict=0.4)),
        ("compliance prefix", STRENGTHS, synthetic.topics(9, objectives=objectives, conflict=0.8)),
        (
            "held-out topics",
            {r: 0.9 * s for r, s in STRENGTHS.items()},
            synthetic.topics(6, start=50, objectives=objectives, conflict=0.4),
        ),
        ("polite form (control)", {r: 1.03 * s for r, s in STRENGTHS.items()}, home[:8]),
        ("polite form (control)", {r: 0.97 * s for r, s in STRENGTHS.items()}, home[8:]),
    ):
        cells += synthetic.exact_answers(strengths, prompts=prompts, shift=shift, preferences=preferences)
    front_at_kl = synthetic.front_at_kl(home[::2], objectives=objectives, steps=10 if objectives == 2 else 3)
    methods = tradeoffs.exact_table(
        cells,
        objectives=names,
        reference_point=point,
        front_at_kl=front_at_kl,
        info={row: row_info(row) for row in STRENGTHS},
    )
    dense = synthetic.exact_answers(
        {"optimum": 1.0}, prompts=home, preferences=synthetic.grid(objectives, 200 if objectives == 2 else 20)
    )
    summary = {
        "title": "Trade-offs on the default world",
        "kind": "testbed",
        "world": "9f2c41d07ab3e865",
        "world_details": {
            "name": "default",
            "objectives": names,
            "beta": synthetic.BETA,
            "tau": 0.2,
            "malformed_reward": -1.0,
            "reference_point": point,
            "counts": {"topics": 36, "held-out prompts": 18},
        },
        "methods": methods,
        "optimum": {
            "front": [point.jsonable() for point in exact_points(dense)],
            "regret": 3.1e-9,
            "perturbed": {"temperature": 1.3, "regret": 0.0123456, "predicted": 0.0123457},
        },
        "shifts": generalization.shifts_table(
            cells, objectives=names, headline="harmlessness", reference_point=point, draws=100
        ),
        "controls": tradeoffs.controls_table(methods, controls=CONTROLS),
        "conflict": conflict(names),
        "provenance": provenance(),
        "ledger": ledger(),
    }
    return summary


def _sampled_answers() -> list[SampledAnswer]:
    rng, cells = np.random.default_rng(0), []
    rows = {"reference": 0.0, "rewarded_soups/dpo": 0.6, "dpo/scalarised": 0.8}
    for shift, transfer in (("none", 1.0), ("harmless prompts", 0.4)):
        for item in range(40):
            level = rng.normal(0, 1, 2)
            for row, lift in rows.items():
                for w in synthetic.grid(2, 4):
                    gain = transfer * lift * np.array([1.3 * w[0] - 0.5, 1.3 * w[1] - 0.5]) if lift else np.zeros(2)
                    cells.append(
                        SampledAnswer(
                            row=row, preference=tuple(w), shift=shift,
                            item=f"prompt {shift if item % 2 else ''} {item}",
                            prompt=f"\n\nHuman: question {item} ({shift})\n\nAssistant:",
                            sample=0, completion=" an answer",
                            values=tuple((level + gain + 0.5 * rng.normal(size=2)).tolist()),
                            kl=float(lift * 4 + 0.3 * rng.normal()) if lift else 0.0,
                        )
                    )  # fmt: skip
    return cells


@functools.cache
def sampled_summary() -> dict[str, Any]:
    """A summary from sampled responses, with the reward-model table and samples, some of them hostile."""
    names, point, cells = ["helpful", "harmless"], [-3.0, -3.0], _sampled_answers()
    home = [cell for cell in cells if cell.shift == "none"]
    table = tradeoffs.sampled_table(home, objectives=names, reference_point=point, info={}, draws=100)
    for row, entry in table.items():
        entry |= {"bits_per_byte": {"before": 1.91, "after": 1.93, "change": 0.02}, "optimises": f"what {row} does"}
    accuracies = {"ours": (0.66, 0.37, 0.35, 0.66), "bag of words": (0.67, 0.36, 0.34, 0.65)}
    accuracies["length only"] = (0.64, 0.42, 0.36, 0.59)
    combos = [(a, b) for a in names for b in names]
    return {
        "title": "Trade-offs on HH-RLHF",
        "kind": "sampled",
        "world": None,
        "world_details": {"name": "HH-RLHF", "objectives": names, "reference_point": point},
        "methods": table,
        "optimum": {},
        "shifts": generalization.shifts_table(
            cells, objectives=names, headline="harmless", reference_point=point, draws=100
        ),
        "controls": {},
        "conflict": conflict(names),
        "reward_models": [
            {
                "scorer": scorer,
                "trained_on": trained,
                "tested_on": tested,
                "pairs": pairs,
                "accuracy": value - 0.05 * (pairs != "all pairs"),
                "ci": [value - 0.08, value + 0.03],
                "n": 1000,
                "over": "95% (Wilson) over held-out comparisons",
            }
            for scorer, values in accuracies.items()
            for (trained, tested), value in zip(combos, values, strict=True)
            for pairs in ("all pairs", "length-matched")
        ],
        "samples": [
            {"prompt": prompt, "row": row, "preference": [0.25, 0.75], "completion": text, "values": [0.3, -1.25]}
            for prompt in ("\n\nHuman: How do I bake <b>bread</b>?\n\nAssistant:", "\n\nHuman: Hello\n\nAssistant:")
            for row, text in zip(
                ("reference", "dpo/scalarised", "rewarded_soups/dpo", "dpo/scalarised"), HOSTILE, strict=True
            )
        ],
        "provenance": provenance(),
        "ledger": ledger(8.0),
    }
