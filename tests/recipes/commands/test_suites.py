"""`align suites` and `align compare`, as a user runs them, on the tiny model and made rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align.errors import UserError
from evals.measure.by_name import measures_of
from recipes.commands import compare, evaluate, suites

WORDS = ("tea", "glue", "rope", "bees", "clay", "ink")


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory, write_rows: Callable[..., Path]) -> Path:
    rows = [
        {"id": f"r{i}", "prompt": f"how do I use {w}?", "label": "harmful" if i % 2 else "benign"}
        for i, w in enumerate(WORDS)
    ]
    return write_rows(tmp_path_factory.mktemp("suite") / "made.jsonl", rows)


def run(model: Path, suite: Path, out: Path, *more: str) -> dict[str, Any]:
    arguments = ["--suite", str(suite), "--out", str(out), "--max-new-tokens", "6", "--max-missing", "0.9", *more]
    assert suites.main([str(model), *arguments]) == 0
    return json.loads((out / "table.json").read_text())


def test_one_command_from_model_to_table_and_again(tiny_model: Path, suite: Path, tmp_path: Path) -> None:
    first = run(tiny_model, suite, tmp_path / "a", "--shift", "lowercase", "base64", "--export", "jsonl", "parquet")
    (name,) = first["suites"]
    shifts = first["suites"][name]["outcomes"]["shifts"]
    assert set(shifts) == {"none", "lowercase", "base64"}
    size = (tmp_path / "a" / "cells.jsonl").stat().st_size
    again = run(tiny_model, suite, tmp_path / "a", "--shift", "lowercase", "base64")
    assert again["hash"] == first["hash"] and (tmp_path / "a" / "cells.jsonl").stat().st_size == size
    rows = [json.loads(line) for line in (tmp_path / "a" / f"{name}.jsonl").read_text().splitlines()]
    page = (tmp_path / "a" / "report.html").read_text()
    assert first["hash"] in page and "--shift lowercase base64" in page and str(suite) in page
    assert len(rows) == 18 and {r["request"] for r in rows} == {f"how do I use {w}?" for w in WORDS}
    import pyarrow.parquet

    assert pyarrow.parquet.read_table(tmp_path / "a" / f"{name}.parquet").num_rows == 18


def test_a_family_of_policies_is_asked_for_a_preference(tiny_model: Path, suite: Path, tmp_path: Path) -> None:
    from align.policies.base import PointFamily

    family = tmp_path / "family"
    family.mkdir()
    PointFamily("dpo", {"0.5,0.5": str(tiny_model)}).save(family)
    table = run(family, suite, tmp_path / "out", "--weights", "0.5,0.5", "--measure", "completion")
    assert table["model"] == "family@0.5,0.5"
    with pytest.raises(UserError, match="add --weights"):
        run(family, suite, tmp_path / "out", "--measure", "completion")


def test_a_killed_run_ends_with_the_same_table(tiny_model: Path, suite: Path, tmp_path: Path) -> None:
    whole = run(tiny_model, suite, tmp_path / "a", "--shift", "lowercase", "--batch-size", "2")
    cells = tmp_path / "b" / "cells.jsonl"
    cells.parent.mkdir()
    lines = (tmp_path / "a" / "cells.jsonl").read_text().splitlines(keepends=True)
    cells.write_text("".join(lines[:9]) + lines[9][:40])  # what a kill -9 leaves behind
    assert run(tiny_model, suite, tmp_path / "b", "--shift", "lowercase", "--batch-size", "2")["hash"] == whole["hash"]


def test_two_evaluations_are_compared_item_by_item(
    tiny_model: Path, suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        run(tiny_model, suite, tmp_path / name, "--shift", "lowercase")
    assert compare.main([str(tmp_path / "a"), str(tmp_path / "b"), "--max-missing", "0.9"]) == 0
    assert "lowercase" in capsys.readouterr().out
    table = json.loads((tmp_path / "b" / "comparison.json").read_text())["suites"]
    page = (tmp_path / "b" / "comparison.html").read_text()
    assert json.loads((tmp_path / "a" / "table.json").read_text())["fingerprint"] in page and "lowercase" in page
    (suite_table,) = table.values()
    sides = [side for sides in suite_table["shifts"].values() for side in sides.values()]
    assert all(side["first"] == side["second"] for side in sides), "a policy does not differ from itself"
    changes = [side["change"]["value"] for side in sides if side["change"]]
    assert changes and set(changes) == {0.0} and len(changes) < len(sides), "rules cannot tell who complied"
    with pytest.raises(UserError, match=r"no outcomes\.jsonl; run align suites MODEL"):
        compare.main([str(tmp_path / "a"), str(tmp_path / "no")])
    with pytest.raises(UserError, match="two folders"):
        compare.main([str(tmp_path / "a")])
    before = {path: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    for out, refusal in (
        ("c.html", r"c\.html must end in \.json"),
        ("b/summary.json", "would overwrite .*summary.json"),
        ("b/report.json", "would overwrite .*report.html"),
        ("x/c.json", r"x/c\.json cannot be written: there is no folder"),
    ):
        with pytest.raises(UserError, match=refusal):
            both = [str(tmp_path / "a"), str(tmp_path / "b")]
            compare.main([*both, "--max-missing", "0.9", "--out", str(tmp_path / out)])
    assert {path: path.read_bytes() for path in (tmp_path / "b").iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shift", "base65"], "base6"),
        (["--measure", "vibes"], "no measurement 'vibes'"),
        (["--samples", "3"], "add --temperature"),
        (["--samples", "1000000000", "--temperature", "1"], "samples must be at most 10000, not 1e.09"),
        (["--temperature", "-1"], "temperature must be 0 .greedy. or above, not -1"),
        (["--temperature", ".nan"], "temperature must be 0"),
        (["--max-new-tokens", "0"], "max_new_tokens must be at least 1"),
        (["--max-new-tokens", "1000000000"], "max_new_tokens must be at most"),
        (["--limit", "0"], "limit must be at least 1"),
        (["--max-missing", "1"], "share in"),
        (["--max-missing", ".nan"], "share in"),
        (["--api-key-env", "localhost:1=sk_live_0123"], "no environment variable of that name is set"),
        (["--measure", "rewards"], "needs --objectives"),
        (["--export", "csv"], "cannot export"),
        (["--template", "chat"], "no chat template"),
        (["--judge", "vibes"], "judge 'vibes'"),
        (["--shift", "translation_zulu"], "add --shift-model"),
        (["--weights", "1,0"], "single model"),
        (["--measure", "against_reference"], "no adapter"),
        (["--batch-size", "0"], "at least 1"),
    ],
)
def test_a_mistake_is_one_line(tiny_model: Path, suite: Path, tmp_path: Path, arguments: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        run(tiny_model, suite, tmp_path, *arguments)
    assert "sk_live" not in str(caught.value), "a key may stand where a variable's name belongs"
    assert not (tmp_path / "table.json").exists()


def test_what_is_missing_for_an_export_is_reported_before_the_model_is_loaded(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="--export inspect needs the package inspect_ai"):
        run(Path("no/such/model"), suite, tmp_path, "--export", "inspect")


def test_suites_that_share_a_name_and_empty_ones_are_refused(tiny_model: Path, suite: Path, tmp_path: Path) -> None:
    twin = tmp_path / "other" / suite.name
    twin.parent.mkdir()
    twin.write_bytes(suite.read_bytes())
    with pytest.raises(UserError, match="two suites are called 'made'"):
        run(tiny_model, suite, tmp_path, "--suite", str(twin))
    twin.write_text("")
    with pytest.raises(UserError, match=r"made\.jsonl"):
        suites.main([str(tiny_model), "--suite", str(twin), "--out", str(tmp_path / "out")])


def test_several_models_each_have_a_folder_and_share_none(tiny_model: Path, suite: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.symlink_to(tiny_model)
    flags = ["--suite", str(suite), "--max-new-tokens", "4", "--max-missing", "0.9", "--out", str(tmp_path / "out")]
    assert suites.main([str(tiny_model), str(copy), *flags]) == 0
    tables = [json.loads((tmp_path / "out" / name / "table.json").read_text()) for name in (tiny_model.name, "copy")]
    assert tables[0]["suites"] == tables[1]["suites"] and not (tmp_path / "out" / "table.json").exists()
    assert json.loads((tmp_path / "out" / "copy" / "provenance.json").read_text())["config"]["model"] == str(copy)
    with pytest.raises(UserError, match=f"two models are called '{tiny_model.name}'"):
        suites.main([str(tiny_model), f"./x/{tiny_model.name}", *flags])


def test_the_old_spelling_works_and_names_the_new_one(
    tiny_model: Path, suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(tiny_model), "--suite", str(suite), "--out", str(tmp_path), "--measure", "completion"]
    assert evaluate.main(words) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("align: note: ")]
    assert notes == [f"align: note: policies on suites are now: align suites {' '.join(words)}"]
    assert (tmp_path / "table.json").is_file()


def test_a_config_file_that_names_a_suite_is_understood(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("suite: [xstest]\n")
    assert evaluate.names_a_suite(["m", "--config", str(file)]) and evaluate.names_a_suite(["m", f"--config={file}"])
    file.write_text("runs: [runs/dpo]\n")
    assert not evaluate.names_a_suite(["m", "--config", str(file)])
    assert not evaluate.names_a_suite(["runs/dpo", "--data", "x"])


def test_measurements_follow_the_suites_kind_and_their_needs() -> None:
    from evals.suites import base

    assert measures_of(base.SAFETY) == ["completion", "verdict", "comprehension"]
    assert measures_of(base.CHOICE) == ["choices"]
    assert measures_of(base.TEXT) == ["bits"]
    assert measures_of(base.QA) == ["completion"]
    assert measures_of(base.REWARD_PAIRS) == ["pairs"]
    with pytest.raises(UserError, match="kind vibes has no measurement"):
        measures_of(base.Kind("vibes", {}, ()))
    assert measures_of(base.CHOICE, chosen=("margin", "verdict")) == ["completion", "verdict", "margin"]


def test_items_of_one_base_item_are_one_cluster() -> None:
    from evals.items import Item
    from evals.measure.cells import ask
    from evals.shifts import parse_shifts
    from evals.tables.suite_outcomes import outcomes_of

    items = [Item("a", "x", "harmful", columns={"cluster": "base"}), Item("b", "y", "harmful")]
    plan = ask(items, suite="s", shifts=parse_shifts(["none"]))
    cells = [cell.measured("verdict", {"verdict": "BAD"}) for cell in plan]
    assert [o.cluster for o in outcomes_of(cells)] == ["base", "b"]


def test_a_chat_template_gets_its_arguments_and_stop_words_end_an_answer(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from align.models import load_tokenizer
    from align.models.formats import Choice, settle
    from evals.backends.transformers import TransformersBackend
    from evals.items import Prompt
    from factories.chat_styles import chat_checkpoint

    model, seen = chat_checkpoint("thinking", tmp_path / "model"), []
    kept = TransformersBackend.generate

    def generate(self: TransformersBackend, prompts: Any, *, config: Any, seeds: Any) -> Any:
        seen.append((self.renderer.text(Prompt.user("hi")), config.stop))
        return kept(self, prompts, config=config, seeds=seeds)

    monkeypatch.setattr(TransformersBackend, "generate", generate)
    off = ["--chat-template-kwargs", '{"enable_thinking": false}']
    tables = [run(model, suite, tmp_path / name, *more) for name, more in (("on", []), ("off", [*off, "--stop", "#"]))]
    texts, stops = zip(*seen, strict=True)
    assert {text.endswith("<think>\n\n</think>\n\n") for text, stop in seen if stop} == {True}
    assert {text.endswith("assistant\n") for text, stop in seen if not stop} == {True} and set(stops) == {(), ("#",)}
    assert tables[0]["fingerprint"] != tables[1]["fingerprint"] and len(set(texts)) == 2
    tokenizer = load_tokenizer(model)
    settle(tokenizer, Choice(chat_kwargs={"enable_thinking": False}))
    tokenizer.save_pretrained(model)
    assert run(model, suite, tmp_path / "stored")["fingerprint"] == tables[1]["fingerprint"]
    with pytest.raises(UserError, match="was trained with template chat .*, not hh"):
        run(model, suite, tmp_path / "hh", "--template", "hh")
    with pytest.raises(UserError, match="chat_template_kwargs are for the chat template"):
        run(chat_checkpoint("base", tmp_path / "base"), suite, tmp_path / "x", *off)


def test_answers_are_512_tokens_by_default() -> None:
    from evals.backends.base import Generation
    from evals.measure.sampling import Sampling
    from recipes.commands import attribute

    options = suites.Options(model="m", suite=("s",)), attribute.Config(run="r")
    assert {one.max_new_tokens for one in (*options, Generation(), Sampling())} == {512}
