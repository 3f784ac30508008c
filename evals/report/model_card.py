"""A model card of a run: the front, the J that is optimised at each point, data, seeds, cost; pure, from run.json.

Every number is copied from the run or from a summary of `align evaluate`; what they do not say is not in the card.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from align.policies.base import FAMILY_FILE
from align.preferences import Preference
from align.runs import RUN_FILE, Run, model_dir, open_run, read_json

TAGS = ("alignment", "multi-objective", "align-tradeoffs")


def model_card(source: str | Path, *, name: str, preference: Preference | None, summary: Path | None = None) -> str:
    """The text of README.md for the model at `preference` of the run `source` (a bare model directory: what its own
    folder says), with the front of a summary.json where one is given.
    """
    run = open_run(source) if (Path(source) / RUN_FILE).is_file() else None
    family = read_json(Path(source) / FAMILY_FILE) if (Path(source) / FAMILY_FILE).is_file() else {}
    parts = [_head(run), f"# {name}", _what(run, family if isinstance(family, dict) else {}, preference)]
    if summary is not None:
        parts.append(_front(read_json(summary), summary))
    if run is not None:
        parts += [_training(run), _cost(run)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(run: Run | None) -> str:
    """The front matter that the hub reads."""
    base = None if run is None else run.metrics.get("reference") or run.config.get("model")
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    lines += ["tags:", *(f"- {tag}" for tag in TAGS)]
    if isinstance(base, str) and "/" in base and not Path(base).exists():
        lines.append(f"base_model: {base}")  # a hub id
    return "\n".join([*lines, "---"])


def _what(run: Run | None, family: Mapping[str, Any], preference: Preference | None) -> str:
    lines = []
    if family:
        point = f" at w = {preference.label}" if preference else ""
        lines.append(f"A policy made by the method `{family['method']}`{point}.")
    elif run is not None:
        lines.append(f"A model made by the stage `{run.stage}`.")
    names = run.metrics.get("objectives") if run is not None else None
    if isinstance(names, Sequence) and not isinstance(names, str):
        named = [f"`{entry.get('name', entry) if isinstance(entry, Mapping) else entry}`" for entry in names]
        lines.append(f"Objectives, in the order of the weights (higher is better): {', '.join(named)}.")
    claims: Mapping[str, str] = family.get("optimises", {})
    if preference is not None and preference.label in claims:
        lines.append(f"What it optimises: {claims[preference.label]}.")
    elif claims:
        listed = [f"- {label}: {text}" for label, text in claims.items()]
        lines.append("What each point optimises:\n\n" + "\n".join(listed))
    return "\n\n".join(lines)


def _front(content: object, place: Path) -> str:
    """One table for each method of the summary: values of the objectives and KL at every preference."""
    if not isinstance(content, dict) or not isinstance(content.get("methods"), dict):
        return ""
    objectives = content.get("world_details", {}).get("objectives", [])
    lines = ["## Front", f"From `{place.parent.name}/{place.name}` ({content.get('title', 'evaluation')})."]
    for method, row in content["methods"].items():
        header = ["preference", *objectives, "KL (nats)"]
        table = ["| " + " | ".join(header) + " |", "| " + " | ".join("---" for _ in header) + " |"]
        for point in row.get("front", []):
            cells = [_label(point["preference"]), *(f"{v:.4g}" for v in point["values"]), f"{point['kl']:.3g}"]
            table.append("| " + " | ".join(cells) + " |")
        lines += [f"### {method}", "\n".join(table)]
    return "\n\n".join(lines)


def _label(preference: object) -> str:
    values = preference.get("values") if isinstance(preference, dict) else preference
    return ",".join(f"{v:.6g}" for v in values) if isinstance(values, (list, tuple)) else str(values)


def _training(run: Run) -> str:
    """Data by their fingerprints and counts, seeds and settings, as the run recorded them."""
    settings = run.config.get("training", run.config)
    lines = ["## Training", f"Run key `{run.fingerprint}`, commit `{run.environment.get('commit')}`."]
    lines.append("Inputs:\n\n" + "\n".join(f"- {name}: `{key}`" for name, key in run.inputs.items()))
    counts = {k: v for k, v in run.metrics.items() if k in ("comparisons", "prompts", "rows", "trained_on", "dropped")}
    if counts:
        lines.append("Rows: " + ", ".join(f"{name} {json.dumps(value)}" for name, value in counts.items()) + ".")
    if isinstance(settings, Mapping):
        lines.append("Seed: " + str(settings.get("seed", run.config.get("seed", "not recorded"))) + ".")
        lines.append("```json\n" + json.dumps(settings, indent=1, sort_keys=True) + "\n```")
    return "\n\n".join(lines)


def _cost(run: Run) -> str:
    cost = run.ledger
    return "\n\n".join(
        [
            "## Cost",
            f"{cost['seconds']:.0f} s, {cost['tokens']:.3g} tokens, {cost['flops']:.3g} FLOPs (estimated), "
            f"{cost['samples_drawn']:.0f} samples drawn, {cost['scores_read']:.0f} scores read.",
        ]
    )


def default_name(source: str | Path, preference: Preference | None) -> str:
    """A title: the folder's name, and the weights."""
    name = Path(source).name if Path(source).exists() else model_dir(source)
    return name if preference is None else f"{name} at {preference.label}"
