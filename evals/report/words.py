"""Numbers and findings in words: formats for the tables, and the sentences that open the report."""

import math
from collections.abc import Mapping, Sequence

from evals.items import Fields, Json
from evals.tables.under_shift.parts import PARTS

DASH = "\u2013"


def num(value: object, digits: int = 3) -> str:
    """A number with a real minus sign, scientific where it is tiny; a dash where there is no number."""
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return DASH
    value = float(value) if abs(value) > 1e-12 else 0.0  # rounding in sums of exact terms
    text = f"{value:.0e}" if value and abs(value) < 0.5 * 10**-digits else f"{value:.{digits}f}"
    return text.replace("-", "\u2212")


def signed(value: object, digits: int = 3) -> str:
    """`num` with a plus sign on positive values."""
    text = num(value, digits)
    return f"+{text}" if isinstance(value, (int, float)) and float(value) > 0 and text != num(0, digits) else text


def interval(pair: Sequence[float] | None, digits: int = 3) -> str:
    """[low, high], or nothing."""
    return "" if pair is None else f"[{num(pair[0], digits)}, {num(pair[1], digits)}]"


def percent(value: object) -> str:
    return f"{num(100 * value, 0)} %" if isinstance(value, (int, float)) else DASH


def p_value(value: object) -> str:
    """`num`, but a tiny p is never shown as 0."""
    return "<1e\u221212" if isinstance(value, (int, float)) and value < 1e-12 else num(value)


def share(value: object) -> str:
    """A share of 1 as 12.3 %."""
    return f"{num(100 * value, 1)} %" if isinstance(value, (int, float)) else DASH


def points(value: object) -> str:
    """A difference of shares in percentage points, with its sign."""
    return signed(100 * value, 1) if isinstance(value, (int, float)) else DASH


def amount(value: float | None) -> str:
    """A count with an SI letter: 1.2 M."""
    if value is None:
        return DASH
    value = float(value)
    for size, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.3g}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return DASH
    seconds = float(seconds)
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.1f} s"


def weights(preference: Sequence[float], names: Sequence[str] | None = None) -> str:
    """A preference in words: '0.25 helpful, 0.75 harmless', or '(0.25, 0.75)' without names."""
    if names is None or len(names) != len(preference):
        return "(" + ", ".join(f"{w:g}" for w in preference) + ")"
    weighed = [f"{w:g} {name}" for w, name in zip(preference, names, strict=True) if w]
    only = next((name for w, name in zip(preference, names, strict=True) if w == 1), None)
    return f"{only} only" if only else ", ".join(weighed)


def reason(gate: object) -> str:
    """Why a row fails, without the word that stands above it."""
    return str(gate).removeprefix("fails: ").removeprefix("fails").strip() if gate else ""


def objectives(summary: Fields) -> list[str]:
    """The objectives' names; plain numbers where the summary has none."""
    named = (summary.get("world_details") or {}).get("objectives") or summary.get("objectives")
    if named:
        return [str(name) for name in named]
    width = max((len(p["values"]) for row in summary["methods"].values() for p in row.get("front") or []), default=0)
    return [f"objective {k + 1}" for k in range(width)]


def controls_of(summary: Fields) -> dict[str, str]:
    """Row -> the control that it stands for."""
    return {str(entry.get("row", name)): name for name, entry in (summary.get("controls") or {}).items()}


def ranked(summary: Fields) -> dict[str, Json]:
    """All rows, controls that stand apart included: by regret share where there is one, else in the order given."""
    rows = {name: dict(entry) for name, entry in summary["methods"].items()}
    for name, entry in (summary.get("controls") or {}).items():
        rows.setdefault(str(entry.get("row", name)), {"gate": entry.get("why"), **entry})

    def key(name: str) -> tuple[bool, float]:
        share = rows[name].get("regret_share")
        return share is None, 0.0 if share is None else float(share)

    return {name: rows[name] for name in sorted(rows, key=key)}


def contenders(summary: Fields) -> dict[str, Json]:
    """The ranked rows that are methods: no controls, not the reference model, not the optimum itself."""
    out = set(controls_of(summary)) | {"reference", "optimum"}
    return {name: row for name, row in ranked(summary).items() if name not in out}


def findings(summary: Fields) -> list[str]:
    """The opening sentences, each one claim with its numbers."""
    rows = contenders(summary)
    sentences = _exact_findings(summary, rows) if summary["kind"] == "testbed" else _sampled_findings(summary, rows)
    sentences += _shift_findings(summary, rows)
    return sentences + _tax_finding(rows)


def _exact_findings(summary: Fields, rows: Mapping[str, Fields]) -> list[str]:
    shares = {name: row["regret_share"] for name, row in rows.items() if row.get("regret_share") is not None}
    if not shares:
        return []
    best = min(shares, key=lambda name: shares[name])
    limits = interval(rows[best].get("regret_share_ci"))
    text = [
        f"{best} comes closest to the best possible trade-off: averaged over preferences it leaves {num(shares[best])} "
        f"{limits + ' ' if limits else ''}of the reference model's regret (0 is the exact optimum, 1 is no training at "
        "all)."
    ]
    if not limits and len(shares) > 1:
        text.append("Fewer than three training seeds: other seeds may order the methods otherwise.")
    passing = [name for name, row in rows.items() if row.get("passes")]
    verdict = f"{len(passing)} of {len(rows)} rows pass the gate"
    controls = summary.get("controls") or {}
    wrong = [name for name, entry in controls.items() if entry.get("passes")]
    if controls:
        fail = f"all {len(controls)} controls fail it, as they must"
        verdict += "; " + (f"but so do the controls {', '.join(wrong)}: do not trust it" if wrong else fail)
    text.append(verdict + ".")
    pairs = [(name, f"{name}@learned") for name in shares if f"{name}@learned" in shares]
    text += [
        f"Trained on learned reward models instead of the gold rewards, {gold} has a regret share of "
        f"{num(shares[learned])} against {num(shares[gold])}."
        for gold, learned in pairs
    ]
    regret = (summary.get("optimum") or {}).get("regret")
    if regret is not None:
        text.append(f"Sent through the same evaluator, the exact optimum has a regret of {num(regret)}.")
    return text


def _sampled_findings(summary: Fields, rows: Mapping[str, Fields]) -> list[str]:
    gains = {name: row["raw_hypervolume"] for name, row in rows.items() if row.get("raw_hypervolume") is not None}
    if not gains:
        return []
    best = max(gains, key=lambda name: gains[name])
    row = rows[best]
    return [
        f"{best} gains the most hypervolume over the reference model, {num(gains[best])} "
        f"{interval(row.get('raw_hypervolume_ci'))}, at a mean KL of {num(row.get('kl'), 2)} nats; the gain counts in "
        "judge-score units, is not comparable across different KL, and was not tested against the other rows'.",
        "Responses here are sampled and scored by learned judges, so there is no exact optimum and no regret.",
    ]


def _shift_findings(summary: Fields, rows: Mapping[str, Fields]) -> list[str]:
    text = []
    for shift, entries in (summary.get("shifts") or {}).items():
        name = next((name for name in rows if (entries.get(name) or {}).get("gap") is not None), None)
        if name is None:
            continue
        entry, pair = entries[name], entries[name].get("gap_ci")
        objective = entry["gap_of"]["objective"]
        if pair is not None and not (pair[0] > 0 or pair[1] < 0):
            sentence = (
                f"Under \u201c{shift}\u201d, the gap of {name} asked for {objective} only is not told from 0: "
                f"{signed(entry['gap'])} {interval(pair)} against the reference model"
            )
        else:
            sentence = (
                f"Under \u201c{shift}\u201d, {name} asked for {objective} only loses {num(abs(entry['gap']))} "
                f"{'more' if entry['gap'] >= 0 else 'less'} of it than the reference model does {interval(pair)}"
            ).rstrip()
        if entry.get("mismatched") is not None:
            sentence += f"; {_parts_words(entry)}"
        text.append(sentence + ".")
    return text


def part(name: str, *, conflict: bool = True) -> str:
    """A part's name in a sentence: "competing" is said only where two objectives disagree, else it is a pull."""
    return "pull" if name == "competing" and not conflict else name.replace("_", " ")


def _parts_words(entry: Fields) -> str:
    """The drop in J as a sum of its parts."""
    shown = ", ".join(f"{signed(entry[name], 4)} {part(name, conflict=entry['conflict'])}" for name in PARTS)
    return f"its mean J {'falls' if entry['drop'] >= 0 else 'rises'} by {num(abs(entry['drop']), 4)}: {shown}"


def _tax_finding(rows: Mapping[str, Fields]) -> list[str]:
    changes = {
        name: row["bits_per_byte"]["change"]
        for name, row in rows.items()
        if (row.get("bits_per_byte") or {}).get("change") is not None
    }
    if not changes:
        return []
    least, most = min(changes, key=lambda name: changes[name]), max(changes, key=lambda name: changes[name])
    if changes[least] == changes[most]:
        return [f"Alignment tax on held-out text: {signed(changes[most])} bits per byte for every row."]
    return [
        f"Alignment tax on held-out text: from {signed(changes[least])} bits per byte ({least}) to "
        f"{signed(changes[most])} ({most})."
    ]
