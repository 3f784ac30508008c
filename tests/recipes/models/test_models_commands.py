"""align merge, score and push: ordinary folders, scores of every row, a card that copies what the run says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from align.methods import dpo
from align.models import attach_lora, load_model, load_tokenizer, save_model
from align.policies.soups import SoupFamily
from align.preferences import Weights
from align.runs import Ledger, Workspace, run_stage, write_json
from factories.tiny_bandit import PAIRS, pair_rows, problem_of
from recipes.cli import main

ENDS = Weights.vertices(2)


def disturbed(reference: str, folder: Path, seed: int) -> str:
    model = load_model(reference)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return str(save_model(model, load_tokenizer(reference), folder))


def same(one: Any, other: dict[str, torch.Tensor]) -> bool:
    found = one.state_dict()
    return all(torch.allclose(found[name].float(), value.float(), atol=1e-5) for name, value in other.items())


# ---------------------------------------------------------------------------------------------------------------- merge


def test_a_soup_point_is_an_ordinary_folder(reference: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    specialists = tuple(disturbed(reference, tmp_path / f"s{k}", k) for k in (0, 1))
    run = tmp_path / "run"
    run.mkdir()
    SoupFamily(specialists=specialists, folder=run, preferences=(Weights((0.3, 0.7)),)).save(run)
    out = tmp_path / "merged"
    assert main(["merge", str(run), "--weights", "0.3,0.7", "--out", str(out)]) == 0
    first, second = (load_model(path).state_dict() for path in specialists)
    mean = {name: 0.3 * first[name] + 0.7 * second[name] for name in first}
    assert same(AutoModelForCausalLM.from_pretrained(out), mean)
    assert AutoTokenizer.from_pretrained(out)("x")["input_ids"] == load_tokenizer(reference)("x")["input_ids"]


def test_an_adapter_is_merged_and_stored_as_asked(reference: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = attach_lora(load_model(reference), 2)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    save_model(model, load_tokenizer(reference), tmp_path / "adapter")
    assert main(["merge", str(tmp_path / "adapter"), "--out", str(tmp_path / "m"), "--dtype", "bfloat16"]) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype="auto")
    assert merged.dtype == torch.bfloat16 and not (tmp_path / "m" / "adapter_config.json").exists()
    expected = model.merge_and_unload().state_dict()
    assert same(merged, {name: value.bfloat16() for name, value in expected.items()})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["FAMILY"], "is a policy family; give the weights"),
        (["FAMILY", "--weights", "0.4,0.6"], "has no policy at 0.4,0.6"),
        (["MODEL", "--weights", "1,0"], "holds no policy family"),
        (["MODEL", "--dtype", "float7"], "dtype 'float7' is none of torch's"),
        (["MODEL", "--out", "MODEL"], "exists; give another --out"),
    ],
)
def test_what_cannot_be_merged_is_one_line(
    arguments: list[str], words: str, reference: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {"kind": "points", "method": "dpo", "points": {"1,0": reference}, "optimises": {}, "point_cost": "train"}
    (tmp_path / "family").mkdir()
    write_json(tmp_path / "family" / "family.json", content)
    names = {"FAMILY": str(tmp_path / "family"), "MODEL": reference}
    given = [names.get(word, word) for word in arguments]
    given += [] if "--out" in given else ["--out", str(tmp_path / "out")]
    assert main(["merge", *given]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------------------------------- score


def written(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_every_row_gets_its_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": "p", "completion": "a b c", "id": 7}, {"prompt": "q", "completion": ""}]
    data, out = written(tmp_path / "rows.jsonl", rows), tmp_path / "scores.jsonl"
    assert main(["score", data, "--objectives", "words=length", "--out", str(out)]) == 0
    scored = [json.loads(line) for line in out.read_text().splitlines()]
    assert scored == [{**rows[0], "scores": {"words": 3.0}}, {**rows[1], "scores": {"words": 0.0}}]
    assert "2 rows; words 1.5 over 2 rows" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "p"}, "line 2: no column 'completion'"),
        ({"prompt": "p", "completion": None}, "line 2: completion is 'None', not text"),
        ({"prompt": " ", "completion": "c"}, "line 2: the prompt is empty"),
    ],
)
def test_a_bad_row_is_one_line_and_nothing_is_written(
    row: dict[str, Any], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = written(tmp_path / "rows.jsonl", [{"prompt": "p", "completion": "c"}, row])
    assert main(["score", data, "--objectives", "words=length", "--out", str(tmp_path / "o.jsonl")]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and not (tmp_path / "o.jsonl").exists()


# ----------------------------------------------------------------------------------------------------------------- push


def trained(reference: str, out: Path) -> Path:
    config = dpo.Config(**{**PAIRS, "epochs": 1.0}, seed=5)
    problem = problem_of(reference, preferences=ENDS, comparisons=pair_rows(16))

    def body(folder: Path, ledger: Ledger) -> dict[str, object]:
        family = dpo.fit(config, problem, Workspace(folder, ledger))
        family.save(folder)
        return {"method": "dpo", "reference": "someone/base-model", "objectives": ["one=runs/rm", "two=length"]}

    keyed = {"method": "dpo", "training": config, "preferences": ENDS}
    return run_stage(out, stage="finetune", config=keyed, body=body, inputs={"data pairs": "0123abcd"}).path


def test_the_card_says_what_the_run_says(reference: str, tmp_path: Path) -> None:
    run = trained(reference, tmp_path / "run")
    points = [{"preference": [1.0, 0.0], "values": [0.5, 0.25], "kl": 1.5}]
    (tmp_path / "evaluation").mkdir()
    summary = {"title": "t", "world_details": {"objectives": ["one", "two"]}, "methods": {"dpo": {"front": points}}}
    write_json(tmp_path / "evaluation" / "summary.json", summary)
    out = tmp_path / "published"
    given = ["--weights", "1,0", "--evaluation", str(tmp_path / "evaluation"), "--out", str(out)]
    assert main(["push", str(run), *given]) == 0
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers") and "base_model: someone/base-model" in card
    assert "made by the method `dpo` at w = 1,0" in card and "E[w.r] - 0.5 KL(pi||ref) at w = 1,0" in card
    assert "| 1,0 | 0.5 | 0.25 | 1.5 |" in card and "| preference | one | two | KL (nats) |" in card
    assert "data pairs: `0123abcd`" in card and "Seed: 5." in card and "## Cost" in card
    assert same(load_model(out), load_model(run / "points" / "1,0" / "model").state_dict())


def test_push_uploads_the_same_folder_and_a_refusal_is_one_line(
    reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import huggingface_hub

    seen: list[Any] = []

    class Api:
        def create_repo(self, repository: str, **options: Any) -> None:
            seen.append((repository, options["private"]))

        def upload_folder(self, *, folder_path: Path, repo_id: str, **_: Any) -> None:
            if repo_id == "me/refused":
                raise OSError("no network")
            seen.append(
                sorted(path.name for path in folder_path.iterdir() if path.name in ("README.md", "config.json"))
            )

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert main(["push", reference, "--hub", "me/model"]) == 0
    assert seen == [("me/model", True), ["README.md", "config.json"]]
    assert capsys.readouterr().out.strip() == "https://huggingface.co/me/model"
    assert main(["push", reference, "--hub", "me/refused"]) == 2
    assert "me/refused was not uploaded (no network)" in capsys.readouterr().err
    assert main(["push", reference]) == 2 and "either --hub" in capsys.readouterr().err
