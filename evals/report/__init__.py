"""From summary.json to one self-contained report.html: no model, no network, every word of model output escaped.

Its `kind` says which page: `suites` (recipes/commands/suites.py writes it), `comparison`
(recipes/commands/compare.py), else the
page of trade-offs. What that one reads beside the keys of the methods, shifts, controls and conflict tables (all
optional, a missing part is left out): `reward_models` as rows {scorer, trained_on, tested_on, pairs, accuracy, ci, n,
over}, `samples` as rows {prompt, row, preference, completion, values}, `ledger` as {stage: {seconds, cpu_seconds,
tokens, flops, peak_memory_mb, ...}} with a `total`, `provenance` as {config, versions, seed, commit, platform,
threads}, `notes` as a list of sentences, `tables` as {title, how, head, rows} of text.
"""

import json
from pathlib import Path

from align.errors import UserError
from align.runs import write_text
from evals.items import Fields


def render(summary: Fields) -> str:
    """The whole page as text. UserError naming the key where the summary lacks what no report can do without."""
    from evals.report import comparison_page, page, suite_page

    pages = {"suites": suite_page.build, "comparison": comparison_page.build}
    if summary.get("kind") in pages:
        return pages[str(summary["kind"])](summary)
    for key in ("title", "kind", "methods"):
        if key not in summary:
            raise UserError(f"summary: no '{key}'; write summary.json with align evaluate or align suites")
    return page.build(summary)


def write_report(summary_path: Path | str, html_path: Path | str) -> Path:
    """Read summary.json, write report.html; returns its path. UserError for a missing or broken summary."""
    source, target = Path(summary_path), Path(html_path)
    try:
        summary = json.loads(source.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{source}: no such summary; run the evaluation first") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{source}: cannot be read ({error}); run the evaluation again") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{source}:{error.lineno}: not valid JSON ({error.msg}); run the evaluation again") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source}: unreadable JSON ({error}); run the evaluation again") from error
    if not isinstance(summary, dict):
        raise UserError(f"{source}: not a JSON object; run the evaluation again")
    try:
        html = render(summary)
    except (TypeError, ValueError, LookupError, AttributeError) as error:  # a part of another shape
        raise UserError(f"{source}: damaged or of another version ({error!r}); run the evaluation again") from error
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, html)
    except OSError as error:
        raise UserError(f"{target}: cannot write the report ({error.strerror}); free some space and retry") from error
    return target
