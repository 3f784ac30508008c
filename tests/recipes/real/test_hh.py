"""The hh recipe end to end through its real command on made rows, and its data layouts."""

from __future__ import annotations

import gzip
import json
import math
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from align.data.real import capped, comparison_sources, load_pairs, passages, text_sources
from align.errors import UserError
from evals.baselines.reward_accuracy import accuracies

Command = Callable[..., subprocess.CompletedProcess[str]]
NAMES = ("helpful", "harmless")
THINGS = ["bread", "cheese", "tea", "boats", "rope", "glue", "knives", "bees", "clay", "paint", "ink", "wool"]
TINY = [
    "rows.cleaning.near_duplicates=false", "rows.parts={train: 0.5, judge: 0.3, test: 0.2}", "rows.validation_texts=8",
    "architecture={hidden: 32, layers: 1, heads: 2, context: 128}",
    "pretrain={block: 32, batch_size: 4, max_steps: 2, save_steps: 1}",
    "sft={demonstrations: 8, max_steps: 2, batch_size: 4, save_steps: null}",
    "reward_model={pairs: 16, max_steps: 2, batch_size: 8, save_steps: null}",
    "pairs={prompts: 12, max_new_tokens: 6, batch_size: 16}",
    "methods.dpo.settings.batch_size=8",
    "methods.dpo.settings.epochs=1.0",
    "methods.modpo={method: modpo, settings: {labels: objectives, batch_size: 8}}",
    "sampling={samples: 2, max_new_tokens: 6, batch_size: 16}", "controls.n=2",
]  # fmt: skip


def made_rows(name: str) -> list[dict[str, Any]]:
    pairs = [(a, b) for a in THINGS for b in THINGS if a != b][:60]
    better, worse = ("yes {a} goes well with {b} and more", "no")
    rows = []
    for i, (a, b) in enumerate(pairs):
        sides = [text.format(a=a, b=b) + f" {a}" for text in (better, worse)]
        chosen, rejected = sides if name == "helpful" else sides[::-1]
        prompt = f"\n\nHuman: {name} question about {a} and {b}?\n\nAssistant:"
        rows.append({"id": str(i), "prompt": prompt, "chosen": chosen, "rejected": rejected})
    return rows


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The layout of the shared data: two files of comparisons and one of text."""
    place = tmp_path_factory.mktemp("hh") / "data"
    for name in NAMES:
        write_lines(place / "hh_rlhf" / f"{name}_single_turn.jsonl.gz", made_rows(name))
    texts = [{"text": f"People sell {a} beside the {b} and keep some for winter."} for a in THINGS for b in THINGS]
    write_lines(place / "c4_sample" / "c4_demo.jsonl.gz", texts)
    return place


def settings(*more: str) -> list[str]:
    return [word for assignment in (*TINY, *more) for word in ("--set", assignment)]


def without_cost(summary: dict[str, Any]) -> dict[str, Any]:
    kept = {k: v for k, v in summary.items() if k not in ("ledger", "provenance")}
    for row in kept["methods"].values():
        row.pop("ledger", None)
    return kept


def test_a_run_from_scratch_is_complete_and_resumes_to_the_same_summary(
    folder: Path, tmp_path: Path, run_command: Command
) -> None:
    arguments = ["hh", "--data", folder, "--workers", "0", "--vocab-size", "300", "--prompts", "6", "--texts", "4"]
    command = [*arguments, "--preference-steps", "2", "--out", tmp_path / "run", *settings()]
    done = run_command(*command)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert set(summary["methods"]) == {"reference", "dpo", "modpo", "rewarded_soups", *summary["controls"]}
    assert [len(summary["methods"][r]["front"]) for r in ("dpo", "modpo", "rewarded_soups")] == [3, 3, 3]
    assert summary["methods"]["reference"]["kl"] == 0
    assert summary["methods"]["best_of_n"]["samples_per_response"] == 2
    bound = math.log(2) - 1 / 2
    assert summary["methods"]["best_of_n"]["kl"] == pytest.approx(bound, abs=1e-4)
    assert not any(entry["passes"] for entry in summary["controls"].values())
    table = {(r["scorer"], r["trained_on"], r["tested_on"], r["pairs"]): r for r in summary["reward_models"]}
    assert {key[0] for key in table} == {"ours", "judge", "bag of words", "length only"}
    # by construction the longer reply is chosen for helpful and rejected for harmless
    assert table["length only", "helpful", "helpful", "all pairs"]["accuracy"] == 1
    assert table["length only", "helpful", "harmless", "all pairs"]["accuracy"] == 0
    assert set(summary["world_details"]["language_model"]["ngram_bits_per_byte"]) == {"kneser-ney", "back-off"}
    assert summary["world_details"]["dropped"]["helpful"] == {}
    page = (tmp_path / "run" / "report.html").read_text()
    assert summary["samples"] and "Reward models" in page
    # a later stage lost, as after a kill: the same command makes it again, and the numbers agree
    shutil.rmtree(tmp_path / "run" / "methods" / "dpo" / "1,0")
    (tmp_path / "run" / "summary.json").unlink()
    again = run_command(*command)
    assert again.returncode == 0, again.stderr
    assert without_cost(json.loads((tmp_path / "run" / "summary.json").read_text())) == without_cost(summary)


def test_a_given_model_and_a_hugging_face_data_set_skip_pretraining(
    tiny_model: Path, tmp_path: Path, run_command: Command
) -> None:
    """`--data` in the layout of the published data set: transcripts without a prompt column, a folder per objective."""
    from datasets import Dataset

    for name in NAMES:
        rows = [{side: f"{r['prompt']} {r[side]}" for side in ("chosen", "rejected")} for r in made_rows(name)]
        Dataset.from_list(rows).save_to_disk(str(tmp_path / "data" / f"{name}-base"))
    arguments = ["hh", "--data", tmp_path / "data", "--model", tiny_model, "--workers", "0", "--prompts", "4"]
    few = settings("methods={dpo: {method: dpo, settings: {labels: scalarised, batch_size: 8}}}")
    command = [*arguments, "--preference-steps", "1", "--texts", "3", "--out", tmp_path / "run", *few]
    done = run_command(*command, "--set", "controls.preferences=['1,0']")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["world_details"]["language_model"] == {}
    assert not (tmp_path / "run" / "pretrain").exists() and (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: (p / "hh_rlhf" / "harmless_single_turn.jsonl.gz").unlink(), "harmless_single_turn.jsonl.gz"),
        (
            lambda p: (p / "hh_rlhf" / "helpful_single_turn.jsonl.gz").write_bytes(
                (p / "hh_rlhf" / "helpful_single_turn.jsonl.gz").read_bytes()[:200]
            ),
            "cut off",
        ),
    ],
)
def test_bad_data_is_one_line(
    change: Callable[[Path], Any], words: str, folder: Path, tmp_path: Path, run_command: Command
) -> None:
    copy = tmp_path / "data"
    shutil.copytree(folder, copy)
    change(copy)
    done = run_command("hh", "--data", copy, "--workers", "0", "--out", tmp_path / "run")
    assert done.returncode == 2 and words in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run" / "rows").exists()


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("sft.epoch=2", "sft: unknown key 'epoch'; did you mean epochs?"),
        ("rows.part=1", "rows: unknown key 'part'"),
        ("methods.dpo.settings.betta=1", "unknown key 'betta'"),
        ("controls.preferences=['0.3,0.7']", "none of preferences"),
        ("rows.parts={train: 1.0}", "parts"),
    ],
)
def test_a_wrong_section_is_told_before_any_work(assignment: str, words: str, folder: Path, tmp_path: Path) -> None:
    from recipes.commands.hh import main

    with pytest.raises(UserError, match=words):
        main(["--data", str(folder), "--out", str(tmp_path / "run"), "--set", assignment])
    assert not (tmp_path / "run").exists()


def test_where_rows_come_from(folder: Path, tmp_path: Path) -> None:
    assert comparison_sources("Anthropic/hh-rlhf", names=NAMES) == {
        "helpful": "Anthropic/hh-rlhf/helpful-base",
        "harmless": "Anthropic/hh-rlhf/harmless-base",
    }
    assert comparison_sources(str(tmp_path / "rows.jsonl"), names=NAMES) == {"": str(tmp_path / "rows.jsonl")}
    assert text_sources(str(tmp_path), files=["c4_sample/c4_demo.jsonl.gz"]) == []
    assert len(text_sources(str(folder), files=["c4_sample/c4_demo.jsonl.gz"])) == 1


def test_rows_that_name_their_objective(tmp_path: Path) -> None:
    from align.data import CleanConfig

    rows = [{**r, "objective": name} for name in NAMES for r in made_rows(name)[:5]]
    write_lines(tmp_path / "rows.jsonl", rows)
    cleaning = CleanConfig(near_duplicates=False)
    kept, drops = load_pairs(str(tmp_path / "rows.jsonl"), names=NAMES, limit=None, cleaning=cleaning)
    assert len(kept) == 10 and len({row["id"] for row in kept}) == 10 and drops == {"helpful": {}, "harmless": {}}
    write_lines(tmp_path / "rows.jsonl", made_rows("helpful"))
    with pytest.raises(UserError, match="objective"):
        load_pairs(str(tmp_path / "rows.jsonl"), names=NAMES, limit=None, cleaning=cleaning)


def test_passages_keep_every_character_and_objectives_take_turns() -> None:
    text = "one two three four\nfive six " * 9 + "x" * 50
    assert "".join(passages(text, size=20)) == text and max(map(len, passages(text, size=20))) <= 20
    rows = [{"objective": n, "i": i} for n in ("harmless", "helpful") for i in range(3)]
    assert [(r["objective"], r["i"]) for r in capped(rows, names=NAMES, each=2)] == [
        ("helpful", 0), ("harmless", 0), ("helpful", 1), ("harmless", 1),
    ]  # fmt: skip


def test_the_table_says_who_beats_whom() -> None:
    """Ours is right on 3 of 4 pairs, length on 1 of 4 (the chosen is longer once): a lead of one half."""
    lengths = ((3, 1), (1, 3), (1, 3), (1, 3))
    pairs = [{"prompt": f"p{i}", "chosen": " c" * a, "rejected": " r" * b} for i, (a, b) in enumerate(lengths)]
    right = {"p0": 1, "p1": 1, "p2": 1, "p3": -1}
    scorers = {
        ("ours", "helpful"): lambda p, c: [right[q] * (1.0 if " c" in t else -1.0) for q, t in zip(p, c, strict=True)],
        ("length only", "helpful"): lambda p, c: [float(len(t)) for t in c],
    }
    table, leads = accuracies(scorers, tests={"helpful": pairs})
    assert [row["accuracy"] for row in table] == [0.75, 0.25]  # no length-matched pair, so no such rows
    assert [(lead["objective"], lead["lead"]) for lead in leads] == [("helpful", 0.5), ("both", 0.5)]
    low, high = leads[0]["ci"]  # 2 of 4 pairs better, none worse: McNemar p .5, and a share's change is at most 1
    assert -1 < low <= 0 < high < 1 and leads[0]["over"] == "95% over 4 prompts, paired"
