"""The report: self-contained, harmless whatever a model wrote, and with the summary's numbers in it. CPU, ~15 s."""

import copy
import json
import re
from pathlib import Path

import pytest

from align.errors import UserError
from evals import report
from evals.report import words
from evals.report.figures import conflict as conflict_figure
from evals.report.figures import fronts as figures
from evals.report.figures import svg
from factories import summaries
from factories.html import Tags


@pytest.fixture(scope="module", params=["exact", "exact with three objectives", "sampled"])
def summary(request: pytest.FixtureRequest) -> dict:
    made = {
        "exact": summaries.exact_summary,
        "exact with three objectives": lambda: summaries.exact_summary(3),
        "sampled": summaries.sampled_summary,
    }
    return made[request.param]()


@pytest.fixture(scope="module")
def page(summary: dict) -> Tags:
    return Tags(report.render(summary))


def test_self_contained(summary: dict, page: Tags) -> None:
    assert all(link.startswith("#") for link in page.links)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & set(page.names)
    html = report.render(summary)
    assert "url(" not in html and "@import" not in html and "default-src 'none'" in html


def test_every_row_shift_and_stage_is_named(summary: dict, page: Tags) -> None:
    for name in (*summary["methods"], *summary["shifts"], *summary["ledger"], *summary["provenance"]["versions"]):
        assert name in page.text
    for text in ("Trade-off", "Conflict between the objectives", "Compute ledger", "Provenance", "0123abc"):
        assert text in page.text


def test_numbers_are_the_summary_s(summary: dict, page: Tags) -> None:
    for row in summary["methods"].values():
        shown = row["regret_share"] if summary["kind"] == "testbed" else row["raw_hypervolume"]
        assert words.num(shown) in page.text
    for rows in summary["shifts"].values():
        for row in rows.values():
            assert words.signed(row["gap"]) in page.text and words.interval(row["gap_ci"]) in page.text


def test_every_interval_says_over_what(summary: dict, page: Tags) -> None:
    assert "95% over 9 base items, paired" in page.text or "95% over 20 base items, paired" in page.text
    if summary["kind"] == "testbed":
        assert "no interval: 1 training seed, at least 3 are needed" in page.text
        assert "(9 against 6 others, unpaired)" in page.text
    else:
        assert "95% over 40 prompts, 40 samples" in page.text and "95% (Wilson) over held-out comparisons" in page.text


def test_findings_of_the_exact_page() -> None:
    summary = summaries.exact_summary()
    text = " ".join(words.findings(summary))
    assert text.startswith("morlhf/rloo comes closest")  # not the best-of-256 control, though its share is smaller
    assert "Fewer than three training seeds: other seeds may order the methods otherwise." in text
    seeds = copy.deepcopy(summary)
    seeds["methods"]["morlhf/rloo"]["regret_share_ci"] = [0.01, 0.09]
    several = words.findings(seeds)
    assert words.interval([0.01, 0.09]) in several[0] and "Fewer than three" not in " ".join(several)
    assert "all 4 controls fail it" in text and "Under “cipher spelling”, morlhf/rloo asked for harmlessness" in text
    wrong = copy.deepcopy(summary)
    wrong["controls"]["KL overspender"]["passes"] = True
    assert "but so do the controls KL overspender: do not trust it" in " ".join(words.findings(wrong))


def test_hostile_completions_are_only_text() -> None:
    summary = summaries.sampled_summary()
    html = report.render(summary)
    assert "<script" not in html and "<img" not in html and "<h1>escaped" not in html
    assert "&lt;script&gt;document.title" in html and "{{ 7 * 7 }}" in html
    assert "a" * 2001 not in html and "98000 more characters" in html


@pytest.mark.parametrize("place", ["row", "shift", "objective", "title", "note", "control", "stage"])
def test_hostile_names_are_only_text(place: str) -> None:
    summary, bad = copy.deepcopy(summaries.exact_summary()), "<script>alert(1)</script>\"'"
    if place == "row":
        summary["methods"][bad] = summary["methods"]["modpo"]
        for rows in summary["shifts"].values():
            rows[bad] = rows["modpo"]
    elif place == "shift":
        summary["shifts"][bad] = summary["shifts"]["cipher spelling"]
    elif place == "objective":
        summary["world_details"]["objectives"] = [bad, "harmlessness"]
    elif place == "control":
        summary["controls"][bad] = {"row": bad, "regret_share": 2.0, "passes": False, "why": bad}
    elif place == "stage":
        summary["ledger"][bad] = {"seconds": 1.0}
    elif place == "note":
        summary["methods"]["modpo"] |= {"note": bad, "optimises": bad, "gate": bad}
    else:
        summary["title"] = bad
    html = report.render(summary)
    assert "<script" not in html and "alert(1)" in html
    Tags(html)


def test_a_bare_summary_renders() -> None:
    """Only what cannot be missing; everything else is left out, not broken."""
    page = Tags(report.render({"title": "Bare", "kind": "testbed", "methods": {}}))
    assert "Bare" in page.text and "Under shift" not in page.text
    rows = {"dpo": {"regret_share": 0.4, "passes": False}, "reference": {"regret_share": 1.0, "front": []}}
    assert "0.400" in Tags(report.render({"title": "B", "kind": "testbed", "methods": rows})).text
    with pytest.raises(UserError, match="no 'kind'"):
        report.render({"title": "x", "methods": {}})


def test_write_report(tmp_path: Path) -> None:
    source, target = tmp_path / "summary.json", tmp_path / "out" / "report.html"
    source.write_text(json.dumps(summaries.sampled_summary()))
    assert report.write_report(source, target).read_text().startswith("<!doctype html>")
    assert [path.name for path in target.parent.iterdir()] == ["report.html"]
    source.write_text('{"title": ')
    with pytest.raises(UserError, match="summary.json:1: not valid JSON"):
        report.write_report(source, target)
    with pytest.raises(UserError, match="no such summary"):
        report.write_report(tmp_path / "absent.json", target)


def test_rendering_is_deterministic() -> None:
    assert report.render(summaries.exact_summary()) == report.render(summaries.exact_summary())


def test_scale_and_ticks() -> None:
    scale = svg.Scale(0.0, 1.0, 10, 110)
    assert scale(0.25) == 35 and scale.ticks(5) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert svg.Scale(-0.13, 0.32, 0, 1).ticks(4) == pytest.approx([0, 0.2])
    low, high = svg.padded([2.0, 2.0])
    assert low < 2 < high


def test_a_point_lands_where_its_values_say() -> None:
    """Further right is more of the first objective, further up more of the second (SVG's y grows downwards)."""
    point = {"kl": 0.1, "regret": 0.1, "nondominated": True}
    front = [
        point | {"preference": [0, 1], "values": [0.0, 1.0]},
        point | {"preference": [1, 0], "values": [1.0, 0.0], "nondominated": False},
    ]
    drawn = figures.front({"title": "", "kind": "testbed", "methods": {"dpo": {"front": front}}}, width=600)
    spots = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="4.5"[^>]*opacity="([\d.]+)"', drawn)
    (x0, y0, solid), (x1, y1, faint) = [tuple(map(float, spot)) for spot in spots]
    assert x0 < x1 and y0 < y1 and solid == 1 and faint < 0.5


def test_numbers_in_words() -> None:
    assert words.num(-0.5) == "−0.500" and words.num(None) == "–" and words.num(-0.00001, 2) == "−1e−05"
    assert words.num(8e-17) == "0.000" and words.signed(0.0) == "0.000" and words.signed(0.25) == "+0.250"
    assert words.amount(1_234_567) == "1.23 M" and words.duration(5400) == "1.5 h" and words.percent(0.634) == "63 %"
    assert words.weights([0.25, 0.75], ["a", "b"]) == "0.25 a, 0.75 b" and words.weights([0, 1], ["a", "b"]) == "b only"


# ------------------------------------------------------------------------------------------- conflict during training

HOSTILE_NAME = "<script>alert('x')</script> & \"down\""


def trained(values: list, *, names: tuple[str, ...] = ("helpfulness", "harmlessness")) -> dict:
    """What one point logged: `values[i]` are its objectives' covariances at step 2 (i + 1)."""
    pairs = [[a, b] for i, a in enumerate(names) for b in names[i + 1 :]]
    ranks = [-0.5] * len(pairs)
    trace = [{"step": 2 * (i + 1), "covariance": row, "rank_correlation": ranks} for i, row in enumerate(values)]
    return {"asked": "0.25,0.75", "names": list(names), "pairs": pairs, "advantage": "centred, with KL", "trace": trace}


def test_covariances_are_drawn_over_steps_below_zero_for_what_is_trained_down() -> None:
    summary = summaries.exact_summary() | {}
    point = trained([[-0.2, 0.4], [-0.1, 0.2], [-0.05, 0.1]])
    summary["conflict"] = summary["conflict"] | {"training": {"morlhf/rloo": [point], "dpo": []}}
    drawn = conflict_figure.training(summary, width=600)
    down, up = ([tuple(map(float, spot.split(","))) for spot in line.split()]
                for line in re.findall(r'<polyline points="([^"]*)"', drawn))  # fmt: skip
    zero = float(re.findall(r'<line [^>]*y1="([\d.]+)"[^>]*stroke-width="1.2"', drawn)[0])
    assert all(y > zero for _, y in down) and all(y < zero for _, y in up)  # SVG's y grows downwards
    heights = [zero - y for _, y in up]
    assert heights[0] == pytest.approx(2 * heights[1], rel=0.02) and [x for x, _ in up] == sorted(x for x, _ in up)
    assert zero - up[0][1] == pytest.approx(2 * (down[0][1] - zero), rel=0.02)
    page = Tags(report.render(summary))
    for text in ("During training", "an objective below zero is being trained down", "centred, with KL"):
        assert text in page.text
    assert "morlhf/rloo, 0.25,0.75: helpfulness \u22120.050 at step 6" in page.text
    assert page.names.count("svg") > Tags(report.render(summaries.exact_summary())).names.count("svg")


def test_a_gap_breaks_the_line_and_a_row_without_a_trace_has_no_panel() -> None:
    gap = trained([[0.1, 0.1], [0.2, None], [0.3, None], [0.2, 0.1], [0.1, 0.2]])
    summary = {"kind": "testbed", "methods": {}, "conflict": {"training": {"a": [gap], "b": [trained([])]}}}
    drawn = conflict_figure.training(summary, width=600)
    assert [len(line.split()) for line in re.findall(r'<polyline points="([^"]*)"', drawn)] == [5, 2]
    assert drawn.count("asked for") == 1
    for empty in (None, {}, {"training": {}}, {"training": {"b": [trained([])]}}):
        assert conflict_figure.training(summary | {"conflict": empty}, width=600) == ""
        assert conflict_figure.caption(summary | {"conflict": empty}) == ""


@pytest.mark.parametrize("width", [330, 1040])
def test_many_policies_of_three_objectives_fit_and_what_is_left_out_is_said(width: int) -> None:
    points = [trained([[0.1, 0.0, -0.1]] * 3, names=("one", "two", "three"))] * 7
    summary = {"kind": "testbed", "methods": {}, "conflict": {"training": {"first": points, "second": points}}}
    drawn = conflict_figure.training(summary, width=width)
    assert drawn.count("<polyline") == 12 * 3 and "The first 12 of 14 policies" in conflict_figure.caption(summary)
    lines = " ".join(re.findall(r'<polyline points="([^"]*)"', drawn))
    assert max(float(x) for x in re.findall(r"([\d.]+),", lines)) <= width
    ranks = conflict_figure.training(summary, width=width, key="rank_correlation")
    assert "one with two" in ranks and "two with three" in ranks


def test_names_of_objectives_and_rows_are_only_text() -> None:
    summary = copy.deepcopy(summaries.exact_summary())
    names = (HOSTILE_NAME, "harmlessness")
    point = trained([[0.1, 0.2]] * 2, names=names) | {"advantage": HOSTILE_NAME, "asked": HOSTILE_NAME}
    summary["conflict"] |= {
        "names": list(names),
        "training": {HOSTILE_NAME: [point]},
        "gradient_cosines": [[1.0, -0.7], [-0.7, 1.0]],
        "gradient_cosines_over": HOSTILE_NAME,
    }
    html = report.render(summary)
    assert "<script" not in html and "alert(" in html
    Tags(html)


def test_gradient_cosines_stand_beside_the_other_tables() -> None:
    summary = copy.deepcopy(summaries.exact_summary())
    assert "Policy gradients" not in Tags(report.render(summary)).text
    summary["conflict"] |= {
        "gradient_cosines": [[1.0, -0.73], [-0.73, 1.0]],
        "gradient_cosines_over": "3,456 reference samples",
        "dpo_gradient_cosines": [[1.0, None], [None, None]],
        "dpo_gradient_cosines_over": "1,024 comparisons",
    }
    text = Tags(report.render(summary)).text
    assert "Policy gradients" in text and "3,456 reference samples" in text and "\u22120.73" in text
    assert "Gradients of DPO losses" in text and "1,024 comparisons" in text
    assert "n = 2000, response pairs" in text
