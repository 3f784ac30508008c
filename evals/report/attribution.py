"""The attribution as a section of a report and as a page of its own: one sentence per shift, its evidence in a fold.

Reads the mapping that `align attribute` writes to attribution.json; every word of it is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from evals.items import Fields
from evals.report.figures.svg import Board
from evals.report.template import text_of
from evals.report.words import interval, num, percent

COLORS = {
    "competing": "#E69F00", "mismatched": "#0072B2", "both": "#7A5195", "capability": "#8c959f", "neither": "#d8dee4",
    "cannot tell": "#ffffff",
}  # fmt: skip
MEANING = {
    "comprehension": "share of the plain reading that is left (1 as well as plain text, 0 chance)",
    "recognition": "share of the plain distance between harmful and harmless requests that is left; decides nothing",
    "pull": "nats by which the instruction alone moves the opening from refusing to complying",
    "distance": "log distance of the hidden state from the fine-tuning prompts, else from plain requests (0 as plain)",
    "repaired": "share that is good again without what the shift added",
}
HOW = (
    "Each harmful request is shown as plain text and under the shift. A failure is put down to competing objectives "
    "where the instruction pulls the model from refusing to complying; to mismatched generalization where its hidden "
    "state lies far from its fine-tuning data; to both where both hold; and to capability where it cannot read a "
    "request in code at all. The bounds come from controls that change the surface "
    "only. Where new failures are not established, or a signal lies too near to its bound, no cause is named."
)


def section(result: Fields) -> str:
    """The section's HTML: sentences, each with its fold of evidence, and the bounds."""
    parts = ['<section id="attribution">', "<h2>Why it fails under shift</h2>", f'<p class="how">{escape(HOW)}</p>']
    parts += [_shift(name, entry) for name, entry in result["shifts"].items()]
    bounds = result["thresholds"]
    words = (
        f"Bounds: reading below {num(bounds['comprehension'])}, pull above {num(bounds['pull'])} nats, distance above "
        f"{num(bounds['distance'])}. Calibrated on {bounds['source']}. Distance is measured from "
        f"{result['distance_from']}. Recognition, which decides nothing, is read from {result['recognition_by']}."
    )
    parts += [f'<p class="small">{escape(words)}</p>', "</section>"]
    return "\n".join(parts)


def page(result: Fields) -> str:
    """A self-contained page with the section."""
    title = escape(f"Why {result['model']} fails under shift")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>'
        f"<style>{text_of('style.css')}</style></head><body><main><h1>{title}</h1>\n{section(result)}\n</main></body></html>\n"
    )


def _shift(name: str, entry: Fields) -> str:
    rows = "".join(_signal(key, entry["signals"].get(key)) for key in MEANING)
    bar = "" if entry["shares"] is None else _shares(entry["shares"], entry["weighed"])
    control = ' <span class="tag">control</span>' if entry.get("mode") == "control" else ""
    return (
        f'<article><p><span class="key" style="background:{COLORS[entry["region"]]}"></span>'
        f"{escape(entry['sentence'])}{control}</p><details><summary>Evidence: {escape(name)}</summary>{bar}"
        f'<div class="scroll"><table><thead><tr><th class="left">signal</th><th>mean</th><th class="left">what it is'
        f"</th></tr></thead><tbody>{rows}</tbody></table></div>{_benign(entry.get('benign'))}</details></article>"
    )


def _benign(found: Fields | None) -> str:
    """Harmless requests behind the same shift: the control that a pull or a lost recognition is not about them."""
    if not found:
        return ""
    words = f"{found['requests']} harmless requests behind it: {percent(found['refused']['value'])} refused "
    words += f"({percent(found['refused_plain']['value'])} as plain text)"
    if found["taken_for_harmful"]:
        words += f", {percent(found['taken_for_harmful']['value'])} taken for harmful"
    return f'<p class="small">{escape(words)}.</p>'


def _signal(key: str, found: Fields | None) -> str:
    if found is None:
        cell = "not measured"
    else:
        cell = f'{num(found["value"])}<span class="ci">{escape(_interval(found))}</span>'
    return f'<tr><th scope="row">{key}</th><td>{cell}</td><td class="left">{escape(MEANING[key])}</td></tr>'


def _interval(found: Fields) -> str:
    return str(found["over"]) if found["ci"] is None else f"{interval(found['ci'])} {found['over']}"


def _shares(shares: Mapping[str, Fields], weighed: str) -> str:
    """A stacked bar of the failures by region, and the numbers below it."""
    said = "; ".join(
        f"{name} {percent(entry['value'])}" + ("" if entry["ci"] is None else f" {interval(entry['ci'])}")
        for name, entry in shares.items()
        if entry["value"] > 0
    )
    board, left = Board(600, 14, said), 0.0
    for name, entry in shares.items():
        board.bar(left, 0, board.width * entry["value"], 14, fill=COLORS[name], title=name)
        left += board.width * entry["value"]
    return (
        f"<figure>{board.done()}"
        f'<figcaption class="how">Share of {escape(weighed)} in each region: {escape(said)}.</figcaption></figure>'
    )
