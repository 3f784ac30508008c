"""Every kind of objective by name, through the commands: two steps of morlhf, labels of pairs for dpo, scores."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from factories.fake_api import serving
from factories.made_judges import classifier
from factories.made_scorers import ONE_MODEL, WordJudge, constant_judge, questions, word_model, write_rubric
from factories.tiny_bandit import PROMPTS, RESPONSES, same_weights
from recipes.cli import main

STEPS = ["training.batch_size=8", "training.num_generations=4", "training.max_completion_length=3"]
FUNCTIONS = """
def length(prompts, completions, **kwargs):
    return [float(len(text.split())) for text in completions]

def graded(completions, answer):
    return [(2.0, {"right": float(a == t.strip()), "short": -float(len(t))}) for t, a in zip(completions, answer)]

graded.components = ("total", "right", "short")

def broken(completions):
    return [1 / 0 for _ in completions]

def late(completions):
    return [float("nan") for _ in completions]
"""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with prompts.jsonl and pairs.jsonl of the bandit, each row with its `answer`, and functions.py."""
    folder = tmp_path_factory.mktemp("rows")
    answers = dict(zip(PROMPTS, ("A", "B"), strict=True))
    prompts = [{"id": str(i), "prompt": p, "answer": answers[p]} for i, p in enumerate(PROMPTS)]
    pairs = [
        {"id": f"{i}", "prompt": p, "chosen": f" {a}", "rejected": f" {b}", "answer": answers[p]}
        for i, (p, a, b) in enumerate((p, a, b) for p in PROMPTS for a in RESPONSES for b in RESPONSES if a < b)
    ]
    for name, made in (("prompts", prompts), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    (folder / "functions.py").write_text(FUNCTIONS)
    return folder


def finetune(method: str, reference: str, data: Path, out: Path, *objectives: str, **changes: Any) -> int:
    """`align finetune` in this process: two steps for morlhf, one pass over the pairs for dpo, at even weights."""
    words = [*changes.pop("settings", STEPS if method == "morlhf" else ["training.labels=objectives"])]
    words = [word for text in words for word in ("--set", text)]
    words += ["--max-steps", str(changes.pop("steps", 2))] if method == "morlhf" else []
    weights = changes.pop("weights", None)
    words += [] if weights is None else ["--weights", *weights]
    return main(
        ["finetune", method, "--model", reference, "--data", str(data), "--out", str(out), *words, "--objectives",
         *objectives]
    )  # fmt: skip


def logged(run: Path) -> dict[str, float]:
    """The means of the objectives in the last logged step of the run's only point."""
    (log,) = run.glob("points/*/log.jsonl")
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    entry: Mapping[str, float] = next(entry for entry in reversed(entries) if "reward" in entry)
    return {k.split("/")[1]: v for k, v in entry.items() if k.startswith("rewards/") and k.endswith("/mean")}


def trains_and_labels(reference: str, rows: Path, out: Path, *objectives: str, count: int = 1) -> dict[str, float]:
    """Both commands on the same objectives; the means that morlhf logged."""
    weights = [",".join([str(1 / count)] * count)]
    assert finetune("morlhf", reference, rows / "prompts.jsonl", out / "rl", *objectives, weights=weights) == 0
    assert finetune("dpo", reference, rows / "pairs.jsonl", out / "dpo", *objectives, weights=weights) == 0
    ledger = json.loads((out / "rl" / "run.json").read_text())["ledger"]
    assert ledger["scores_read"] == 2 * 8 * count, "every score of two steps of 8 samples is charged"
    labelled = json.loads((out / "dpo" / "run.json").read_text())["ledger"]
    assert labelled["scores_read"] == 12 * (2 * count + 1), "both responses of 12 pairs, and a look at each pair"
    return logged(out / "rl")


def test_functions(many_tokens: str, rows: Path, tmp_path: Path) -> None:
    """One function of one score, and one of a total with two components, which are three objectives of one call."""
    file = rows / "functions.py"
    names = [f"long={file}:length", f"mine={file}:graded"]
    means = trains_and_labels(many_tokens, rows, tmp_path, *names, count=4)
    assert set(means) == {"long", "mine", "mine.right", "mine.short"} and means["mine"] == 2.0
    assert 0 <= means["mine.right"] <= 1 and means["mine.short"] < 0 < means["long"]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("mine={}:missing", "has no function 'missing'; it has length, graded, broken, late"),
        ("mine=nowhere.py:f", "nowhere.py is no file"),
        ("mine={}:broken", "line 11: ZeroDivisionError"),
        ("mine={}:late", "gave nan"),
    ],
)
def test_a_faulty_function_is_one_line(
    spec: str, says: str, many_tokens: str, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = spec.format(rows / "functions.py")
    assert finetune("morlhf", many_tokens, rows / "prompts.jsonl", tmp_path / "rl", spec, weights=["1"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("align: error")]
    assert says in line


def test_a_column_that_no_row_has_is_named_before_training(
    many_tokens: str, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare.jsonl"
    bare.write_text('{"prompt": "x :"}\n')
    spec = f"mine={rows / 'functions.py'}:graded"
    assert finetune("morlhf", many_tokens, bare, tmp_path / "rl", spec, weights=["1,0,0"]) == 2
    assert "bare.jsonl: no row has a column 'answer'" in capsys.readouterr().err
    assert finetune("morlhf", many_tokens, rows / "prompts.jsonl", tmp_path / "rl", spec, weights=["1"]) == 2
    assert "1 numbers for 3 objectives (mine, mine.right, mine.short)" in capsys.readouterr().err


def test_verifiers(many_tokens: str, rows: Path, tmp_path: Path) -> None:
    names = ["right=verifier:exact_match", "form=-verifier:json"]
    means = trains_and_labels(many_tokens, rows, tmp_path, *names, count=2)
    assert 0 <= means["right"] <= 1 and -1 <= means["form"] <= 0  # a minus before the source turns the sign
    out = tmp_path / "scores.jsonl"
    lines = [{"prompt": "p", "completion": " A", "answer": "A"}, {"prompt": "p", "completion": "1", "answer": "A"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["score", str(tmp_path / "rows.jsonl"), "--out", str(out), "--objectives", *names]) == 0
    scores = [json.loads(line)["scores"] for line in out.read_text().splitlines()]
    assert scores == [{"right": 1.0, "form": 0.0}, {"right": 0.0, "form": -1.0}]


def test_a_rubric_judged_by_a_server(many_tokens: str, rows: Path, tmp_path: Path) -> None:
    """Two criteria of one answer are two objectives; no content is asked about twice, nor by the next command."""
    rubric = write_rubric(tmp_path / "rubric.yaml", "A", "B")
    with serving(WordJudge("A", "B"), models=ONE_MODEL) as api:
        means = trains_and_labels(many_tokens, rows, tmp_path, f"says=judge:{rubric}@{api.url}", count=2)
        assert set(means) == {"says.A", "says.B"} and all(0 <= mean <= 1 for mean in means.values())
        assert 8 <= len(api.seen) <= len(set(questions(api))) + 8  # " A" of a pair is another content than a sample's
        scores, before = tmp_path / "scores.jsonl", len(api.seen)
        pairs = [json.loads(line) for line in (rows / "pairs.jsonl").read_text().splitlines()]
        lines = [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in pairs]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        spec = f"-judge:{rubric}@m@{api.url}"
        assert main(["score", str(tmp_path / "rows.jsonl"), "--out", str(scores), "--objectives", f"says={spec}"]) == 0
        assert len(api.seen) == before
    found = [json.loads(line)["scores"] for line in scores.read_text().splitlines()]
    expected = [{n: -1.0 if row["completion"] == f" {n[-1]}" else -0.25 for n in ("says.A", "says.B")} for row in lines]
    assert found == expected


def test_an_outage_keeps_a_checkpoint_and_the_same_command_goes_on(
    many_tokens: str, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training stops in one line; afterwards it ends in the weights of a run that was never stopped."""
    rubric, judge = write_rubric(tmp_path / "rubric.yaml", "A"), WordJudge("A")
    settings = [*STEPS, "training.learning_rate=1e-2"]
    data = (many_tokens, rows / "prompts.jsonl")
    with serving(judge, models=ONE_MODEL) as api:
        spec = f"{{spec: 'a=judge:{rubric}@{api.url}', concurrency: 1}}"
        (tmp_path / "one").mkdir()
        options: dict[str, Any] = {"weights": ["1"], "settings": settings, "steps": 3}
        assert finetune("morlhf", *data, tmp_path / "one" / "whole", spec, **options) == 0
        judge.away_from = len(api.seen) + 10  # a step has 8 samples: in the second or the third
        cut = tmp_path / "two" / "cut"
        assert finetune("morlhf", *data, cut, spec, **options) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("align: error")]
        step = int(re.search(r"gives no answer \(http_503.*; training goes on from step (\d) of 3$", line)[1])  # type: ignore[index]
        (kept,) = Path(f"{cut}.partial").glob("points/*.partial/checkpoints/checkpoint-*")
        assert step >= 1 and kept.name == f"checkpoint-{step}"
        judge.away_from = 10**9
        assert finetune("morlhf", *data, cut, spec, **options) == 0
    models = [next(run.glob("points/*/model")) for run in (tmp_path / "one" / "whole", cut)]
    assert same_weights(*map(str, models)) and not same_weights(str(models[0]), many_tokens)


def test_a_rubric_judged_by_a_local_model(many_tokens: str, rows: Path, tmp_path: Path) -> None:
    folder = constant_judge(tmp_path / "judge", "kind: 4", "brief: 2")
    rubric = write_rubric(tmp_path / "rubric.yaml", "kind", "brief")
    means = trains_and_labels(many_tokens, rows, tmp_path, f"said=judge:{rubric}@local:{folder}", count=2)
    assert means == {"said.kind": 0.75, "said.brief": 0.25}


def test_five_criteria_make_a_front_of_five_objectives_on_the_testbed_s_words(tmp_path: Path) -> None:
    """The policy trained for a criterion is the best of the five at it, and no point is dominated."""
    words, prompts = ("sure", "sorry", "careful", "f1", "f2"), ("explain opera :", "describe pottery :")
    reference, rubric = word_model(tmp_path / "model", words), write_rubric(tmp_path / "rubric.yaml", *words)
    data, out = tmp_path / "prompts.jsonl", tmp_path / "evaluation"
    data.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    weights = [",".join("1" if i == k else "0" for i in range(5)) for k in range(5)]
    settings = ["training.batch_size=32", "training.num_generations=16", "training.max_completion_length=2"]
    settings += ["training.learning_rate=2e-2", "training.beta=0.02"]
    with serving(WordJudge(*words), models=ONE_MODEL) as api:
        spec = f"said=judge:{rubric}@{api.url}"
        options: dict[str, Any] = {"weights": weights, "settings": settings, "steps": 12}
        assert finetune("morlhf", reference, data, tmp_path / "rl", spec, **options) == 0
        drawn = ["--set", "sampling.samples=8", "--set", "sampling.max_new_tokens=2"]
        assert main(["evaluate", str(tmp_path / "rl"), "--data", str(data), "--out", str(out), *drawn]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["world_details"]["objectives"] == [f"said.{word}" for word in words]
    front = {tuple(point["preference"]): point["values"] for point in summary["methods"]["rl"]["front"]}
    for k in range(5):
        scores = {preference.index(1.0): values[k] for preference, values in front.items()}
        assert max(scores, key=scores.__getitem__) == k and scores[k] > 0.8, scores
    assert all(point["nondominated"] for point in summary["methods"]["rl"]["front"])


@pytest.fixture(scope="module")
def models(many_tokens: str, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two reward models and a cost model of two steps, through their commands."""
    folder, made = tmp_path_factory.mktemp("models"), {}
    safety = [json.loads(line) for line in (rows / "pairs.jsonl").read_text().splitlines()]
    labelled = [{**row, "safe_chosen": True, "safe_rejected": i % 2 == 0} for i, row in enumerate(safety)]
    (folder / "safety.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled))
    settings = ["training.batch_size=6", "training.learning_rate=1e-2", "training.save_steps=null"]
    words = [word for text in [*settings, "cleaning.near_duplicates=false"] for word in ("--set", text)]
    for name, seed, data in (("rm0", "0", rows / "pairs.jsonl"), ("rm1", "1", rows / "pairs.jsonl"),
                             ("cost", "0", folder / "safety.jsonl")):  # fmt: skip
        command = "cost-model" if name == "cost" else "reward-model"
        asked = [command, "--model", many_tokens, "--data", str(data), "--held-out", "0", "--max-steps", "2"]
        assert main([*asked, "--seed", seed, "--out", str(folder / name), *words]) == 0
        made[name] = folder / name
    return made


def test_reward_models_costs_and_ensembles(
    many_tokens: str, rows: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    """A cost is turned, whether its kind is named or its run says so; an ensemble is that of its members' scores."""
    first, second = models["rm0"], models["rm1"]
    kinds = {
        "rm": str(first), "other": str(second), "cost": str(models["cost"]), "price": f"cost:{models['cost']}",
        "mean": f"ensemble:{first},{second}:mean", "worst": f"ensemble:{first},{second}:min",
        "careful": f"ensemble:{first},{second}:mean-std",
    }  # fmt: skip
    names = [f"{name}={source}" for name, source in kinds.items()]
    means = trains_and_labels(many_tokens, rows, tmp_path, *names, count=len(names))
    assert set(means) == set(kinds)
    lines = [{"prompt": p, "completion": f" {r}"} for p in PROMPTS for r in RESPONSES]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out, path = tmp_path / "scores.jsonl", str(models["cost"])
    raw = f"{{name: raw, kind: reward_model, path: {path}}}"
    twice = f"{{spec: twice={path}, scale: 2}}"
    asked = ["score", str(tmp_path / "rows.jsonl"), "--out", str(out), "--objectives", *names, raw, twice]
    assert main(asked) == 0
    for line in out.read_text().splitlines():
        s = json.loads(line)["scores"]
        assert s["cost"] == s["price"] == -s["raw"] == s["twice"] / 2 != 0
        a, b = s["rm"], s["other"]
        assert (s["mean"], s["worst"]) == pytest.approx(((a + b) / 2, min(a, b)))
        assert s["careful"] == pytest.approx((a + b) / 2 - abs(a - b) / 2)  # the spread of two is half their distance


def test_a_classifier(many_tokens: str, rows: Path, tmp_path: Path) -> None:
    """P(label) of the reply alone, by one unpadded pass of transformers for each."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    classifier(tmp_path)
    folder = tmp_path / "classifier-2"
    names = [f"no=classifier:{folder}@refused", f"yes=-classifier:{folder}@0"]
    means = trains_and_labels(many_tokens, rows, tmp_path, *names, count=2)
    assert 0 < means["no"] < 1 and means["yes"] == pytest.approx(means["no"] - 1)
    model, tokenizer = (c.from_pretrained(folder) for c in (AutoModelForSequenceClassification, AutoTokenizer))
    replies = [" no", " it is a fine day", " x" * 40]
    expected = []
    for reply in replies:
        ids = tokenizer(reply, truncation=True, max_length=24, return_tensors="pt")
        with torch.no_grad():
            expected.append(model.eval()(**ids).logits.softmax(-1)[0, 1].item())
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"prompt": "p", "completion": r}) + "\n" for r in replies))
    out = tmp_path / "scores.jsonl"
    assert main(["score", str(tmp_path / "rows.jsonl"), "--out", str(out), "--objectives", *names]) == 0
    found = [json.loads(line)["scores"] for line in out.read_text().splitlines()]
    assert [scores["no"] for scores in found] == pytest.approx(expected, abs=1e-6)
    assert max(expected) - min(expected) > 1e-3


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("a=ensemble:x:mean", "objective a=ensemble:x:mean: an ensemble is written ensemble:RUN,RUN:mean|min|mean-std"),
        ("a=ensemble:{rm},{rm}:median", "combines by mean, min, mean-std, not 'median'"),
        ("a=classifier:{rm}/none@x", "does not exist"),
        ("a=judge:{rm}", "a judge is written judge:RUBRIC.yaml@http://HOST/v1"),
        ("{{spec: 'a=verifier:json', colum: x}}", "objective a=verifier:json: no option 'colum'; it takes none"),
        ("{{spec: 'a=ensemble:{rm},{rm}:mean', penalti: 2}}", "no option 'penalti'; did you mean penalty?"),
        ("{{spec: 'a=judge:r.yaml@m', tokens: 2}}", "no option 'tokens'"),
        ("{{spec: 'a=length', name: b}}", "objective a=length: no option 'name'"),
        ("=x", "is not NAME=SOURCE"),
        ("a=verifyer:json", "no kind of rule"),
    ],
)
def test_faulty_specs_are_one_line(
    spec: str, says: str, many_tokens: str, rows: Path, models: dict[str, Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    text = spec.format(rm=models["rm0"])
    assert finetune("morlhf", many_tokens, rows / "prompts.jsonl", tmp_path / "rl", text, weights=["1"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("align: error")]
    assert says in line


def test_a_normalizer_and_a_sign_hold_for_every_kind(
    many_tokens: str, rows: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "z.json").write_text('{"kind": "zscore", "mean": -1.0, "std": 2.0, "n": 9}')
    spec = "right=verifier:exact_match"
    (tmp_path / "rows.jsonl").write_text('{"prompt": "p", "completion": "A", "answer": "A"}\n')
    config = tmp_path / "score.yaml"
    entries = [{"kind": "length", "name": "long"}, spec.replace("right", "plain"), {"spec": spec, "negate": True}]
    entries += [{"spec": spec.replace("right", "scaled"), "normalizer": str(tmp_path / "z.json")}]
    config.write_text(json.dumps({"objectives": entries}))
    out = tmp_path / "scores.jsonl"
    assert main(["score", str(tmp_path / "rows.jsonl"), "--config", str(config), "--out", str(out)]) == 0
    scores = json.loads(out.read_text())["scores"]
    assert list(scores.items()) == [("long", 1.0), ("plain", 1.0), ("right", -1.0), ("scaled", 1.0)]  # in that order
