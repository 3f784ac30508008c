"""What a reward model reads: the conversation in its own format, in every tokenizer style, up to what ends it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from align.errors import UserError
from align.models import load_scorer, load_tokenizer
from align.models.formats import Choice, formatter, settle
from align.models.sampling import Drawn
from align.objectives import RewardModelObjective, scoring
from align.objectives.scoring import as_drawn, fitted, readable_padding, scored_ids, scored_row
from align.runs import Ledger
from align.training.cost_model import CostModelConfig, train_cost_model
from align.training.reward_model import RewardModelConfig, encoded, train_reward_model
from align.turns import Turn, transcript
from factories.chat_styles import BY_NAME, STYLES, chat_checkpoint, chat_tokenizer
from factories.encoders import pair_encoder, pair_tokenizer

CHAT = [style.name for style in STYLES if style.template]
TALK = (Turn("user", "Is the tea hot?"), Turn("assistant", "It is."), Turn("user", "Then wait  \nin the end"))
PROMPT = transcript(TALK)


@pytest.mark.parametrize("name", CHAT)
@pytest.mark.parametrize("turns", [TALK[:1], TALK], ids=["one turn", "three turns"])
def test_ids_are_those_of_the_chat_template_on_the_whole_conversation(name: str, turns: tuple[Turn, ...]) -> None:
    tokenizer = chat_tokenizer(name)
    whole = [turn.message for turn in (*turns, Turn("assistant", "the tea"))]
    wanted = tokenizer.apply_chat_template(whole, tokenize=True, return_dict=True)["input_ids"]
    assert scored_ids(tokenizer, transcript(turns), " the tea") == wanted
    assert wanted.count(tokenizer.bos_token_id) == (1 if BY_NAME[name].bos else 0)


def test_without_a_template_ids_are_text_and_end() -> None:
    for name in ("base", "base_bos"):
        tokenizer = chat_tokenizer(name)
        assert scored_ids(tokenizer, "the tea", " a") == [*tokenizer("the tea a")["input_ids"], tokenizer.eos_token_id]


@pytest.mark.parametrize("name", [style.name for style in STYLES])
def test_a_sample_is_read_as_it_was_drawn(name: str, tmp_path: Path) -> None:
    """Finished, it is the row of its text; cut, it has no end; other ids of the same text stay what they are."""
    tokenizer = load_tokenizer(chat_checkpoint(name, tmp_path))
    form, text = formatter(tokenizer), " the tea" if name.startswith("base") else "the tea"
    head, tail = form.row(PROMPT, text)
    # A template that writes more before a finished reply than before the one it asks for: the sample has what it drew.
    drawn = form.reply_ids(PROMPT, text, ended=False) if name != "thinking" else tokenizer(text)["input_ids"]
    finished, cut = as_drawn(tokenizer, [text, text], [[*drawn, form.format.end], drawn])
    assert scored_row(tokenizer, PROMPT, finished) == (head, tail if name != "thinking" else [*drawn, *form.closing])
    assert scored_row(tokenizer, PROMPT, cut) == (head, drawn) and form.format.end not in drawn
    letters = [tokenizer.convert_tokens_to_ids("Ġ" if c == " " else c) for c in text]
    (apart,) = as_drawn(tokenizer, [text], [letters])
    assert scored_row(tokenizer, PROMPT, apart) == (head, letters) and letters != drawn


def test_a_sample_of_another_tokenizer_or_format_is_read_by_its_text() -> None:
    hh = chat_tokenizer("base")
    settle(hh, Choice("hh"))
    assert as_drawn(hh, ["the tea"], [[7, 8, 9]]) == ["the tea"]
    ids = hh("the tea")["input_ids"]
    assert as_drawn(hh, ["the tea"], [ids]) == ["the tea"]  # a chat model's reply begins without the space
    assert as_drawn(hh, ["the tea", "so"], [ids, ids], ended=[False, True]) == [Drawn((), False, "the tea"), "so"]
    assert as_drawn(hh, ["the tea", "so"], None, ended=[True, False]) == ["the tea", Drawn((), False, "so")]
    assert scored_ids(hh, PROMPT, "the tea") == scored_ids(hh, PROMPT, " the tea")
    (own,) = as_drawn(hh, [" the tea"], [hh(" the tea")["input_ids"]])
    assert isinstance(own, Drawn) and not own.ended
    assert scored_ids(hh, PROMPT, Drawn((), False, "the tea")) == scored_ids(hh, PROMPT, " the tea")[:-1]


def test_a_long_text_keeps_its_end_and_its_start_token() -> None:
    tokenizer = chat_tokenizer("llama3")
    row = scored_row(tokenizer, PROMPT, "the tea")
    whole = [*row[0], *row[1]]
    assert fitted(row, None, tokenizer=tokenizer) == fitted(row, len(whole), tokenizer=tokenizer) == whole
    assert fitted(row, 5, tokenizer=tokenizer) == [tokenizer.bos_token_id, *whole[-4:]]
    plain = scored_row(chat_tokenizer("base"), "the tea", " a")
    assert fitted(plain, 2, tokenizer=chat_tokenizer("base")) == [*plain[0], *plain[1]][-2:]


# ------------------------------------------------------------------------------------------------------------- training

ROWS = [
    {"prompt": transcript((Turn("user", f"tea {i}?"),)), "chosen": " the", "rejected": " a", "safe_chosen": True,
     "safe_rejected": i % 2 == 0}
    for i in range(8)
]  # fmt: skip
QUICK = {"max_steps": 2, "learning_rate": 1e-3, "save_steps": None, "batch_size": 4}


@pytest.mark.parametrize("name", [style.name for style in STYLES])
def test_the_end_is_read_also_where_it_was_the_padding(name: str, tmp_path: Path) -> None:
    """The saved model read by transformers alone, padded by its own tokenizer, gives what the objective gives."""
    start = chat_checkpoint(name, tmp_path / "start")
    train_reward_model(RewardModelConfig(**QUICK), model=start, rows=ROWS, out=tmp_path / "rm", ledger=Ledger())
    folder = tmp_path / "rm" / "model"
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = load_tokenizer(folder)
    assert model.config.pad_token_id == tokenizer.pad_token_id not in formatter(tokenizer).format.ends
    texts = [" the tea", " the tea in the end"]
    ids = [scored_ids(tokenizer, PROMPT, text) for text in texts]
    batch = AutoTokenizer.from_pretrained(folder).pad({"input_ids": ids}, return_tensors="pt", padding_side="right")
    with torch.no_grad():
        alone = [model(torch.tensor([row])).logits.item() for row in ids]
        together = model(**batch).logits[:, 0].tolist()
    objective = RewardModelObjective(tmp_path / "rm")
    found = objective([PROMPT] * 2, texts)
    assert found == pytest.approx(alone, abs=1e-5) and together == pytest.approx(alone, abs=1e-5)
    drawn = formatter(tokenizer).reply_ids(PROMPT, texts[0], ended=False)
    text = formatter(tokenizer).decode(drawn)
    ended, cut = objective([PROMPT] * 2, [text] * 2, completion_ids=[[*drawn, formatter(tokenizer).format.end], drawn])
    assert abs(ended - cut) > 1e-4  # type: ignore[operator]
    assert ended == pytest.approx(found[0], abs=1e-5)


def test_a_model_that_pads_with_its_end_is_read_at_the_end_or_before_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The oracle is the head on the hidden states of one text at a time; transformers alone reads before the end."""
    start = chat_checkpoint("base", tmp_path)
    tokenizer = load_tokenizer(start)
    model = AutoModelForSequenceClassification.from_pretrained(start, num_labels=1, pad_token_id=tokenizer.eos_token_id)
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(tmp_path)
    texts, wanted = [" the", " a tea in"], []
    with torch.no_grad():
        for text in texts:
            ids = torch.tensor([[*tokenizer(f"hot?{text}")["input_ids"], tokenizer.eos_token_id]])
            hidden = model.eval().base_model(ids).last_hidden_state[0]
            wanted.append(model.score(hidden)[:, 0].tolist())
            assert model(ids).logits.item() == pytest.approx(wanted[-1][-2], abs=1e-5)
    ended, cut = RewardModelObjective(tmp_path), RewardModelObjective(tmp_path, end=False)
    assert ended(["hot?"] * 2, texts) == pytest.approx([w[-1] for w in wanted], abs=1e-5)
    assert "has its end token as padding" in capsys.readouterr().err
    assert cut(["hot?"] * 2, texts) == pytest.approx([w[-2] for w in wanted], abs=1e-5)
    drawn = [tokenizer(texts[0])["input_ids"], [*tokenizer(texts[1])["input_ids"], tokenizer.eos_token_id]]
    found = ended(["hot?"] * 2, texts, completion_ids=drawn)
    assert found == pytest.approx([wanted[0][-2], wanted[1][-1]], abs=1e-5)
    assert cut(["hot?"] * 2, texts, completion_ids=drawn) == pytest.approx([w[-2] for w in wanted], abs=1e-5)
    assert capsys.readouterr().err == "" and ended._load()[0].config.pad_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize("kind", ["reward", "cost"])
def test_trl_trains_on_the_ids_that_are_scored(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from align.training import reward_model as stage

    trainers: list[Any] = []
    monkeypatch.setattr(stage, "finish_trainer", lambda trainer, **_: trainers.append(trainer))
    start = chat_checkpoint("llama3", tmp_path / "start")
    if kind == "reward":
        train_reward_model(RewardModelConfig(**QUICK), model=start, rows=ROWS, out=tmp_path / "rm", ledger=Ledger())
    else:
        train_cost_model(CostModelConfig(**QUICK), model=start, rows=ROWS, out=tmp_path / "rm", ledger=Ledger())
    tokenizer, columns = load_tokenizer(start), trainers[0].train_dataset
    sides = ("chosen", "rejected") if kind == "reward" else ("rejected", "chosen")  # a cost is higher for the unsafe
    for side, column in zip(sides, ("chosen_ids", "rejected_ids"), strict=True):
        assert columns[column] == [scored_ids(tokenizer, row["prompt"], row[side]) for row in ROWS]
    whole = [{"role": "user", "content": "tea 0?"}, {"role": "assistant", "content": ROWS[0][sides[0]].strip()}]
    assert (
        columns["chosen_ids"][0] == tokenizer.apply_chat_template(whole, tokenize=True, return_dict=True)["input_ids"]
    )
    assert load_tokenizer(tmp_path / "rm").init_kwargs["prompt_format"]["template"] == "chat"


def test_a_prompt_that_the_template_cannot_say_is_counted_and_has_no_score(tmp_path: Path) -> None:
    start = chat_checkpoint("gemma", tmp_path / "start")
    strange = {**ROWS[0], "prompt": transcript((Turn("system", "be kind"), Turn("user", "hi")))}
    metrics = train_reward_model(
        RewardModelConfig(**QUICK), model=start, rows=[*ROWS, strange], out=tmp_path / "rm", ledger=Ledger()
    )
    assert (metrics["trained_on"], metrics["dropped_by_template"], metrics["too_long"]) == (8, 1, 0)
    first, second = RewardModelObjective(tmp_path / "rm")([strange["prompt"], PROMPT], [" a", " a"])
    assert first is None and second is not None
    with pytest.raises(UserError, match="the chat template cannot say 1 of their prompts"):
        encoded([strange], load_tokenizer(start), None)


def test_the_accuracy_that_chose_the_epoch_is_not_reported_as_validation(tmp_path: Path) -> None:
    config = RewardModelConfig(**{**QUICK, "max_steps": -1, "epochs": 2, "choose_epoch": True})
    start = chat_checkpoint("chatml", tmp_path / "start")
    metrics = train_reward_model(config, model=start, rows=ROWS, validation=ROWS, out=tmp_path / "rm", ledger=Ledger())
    assert metrics["accuracy"] is None and metrics["log_loss"] is None
    assert 0 <= metrics["best_validation_accuracy"] <= 1 and metrics["epoch"] in (1, 2)  # type: ignore[operator]


def test_long_scoring_says_how_far_it_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 40.0, 50.0])
    monkeypatch.setattr(scoring.time, "monotonic", lambda: next(clock))
    progress = scoring._Progress(400)
    for done in (100, 200, 300):
        progress.say(done)
    assert capsys.readouterr().err == "reward model: scored 200 of 400 texts, 40 s left\n"


# ------------------------------------------------------------------------------------------------------------- encoders


def test_an_encoder_reads_two_segments(tmp_path: Path) -> None:
    """The oracle is the tokenizer's own call on the two texts, and the model on what it gives."""
    folder = pair_encoder(tmp_path)
    raw, model = pair_tokenizer(), AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert raw.eos_token is None
    asked, said = "how hot is the tea ?", "very hot"
    inputs = raw(asked, said, return_tensors="pt")
    assert scored_ids(load_tokenizer(folder), asked, f" {said}") == inputs["input_ids"][0].tolist()
    assert (
        scored_ids(load_tokenizer(folder), transcript((Turn("user", asked),)), said) == inputs["input_ids"][0].tolist()
    )
    types = torch.tensor([[0] * 8 + [1] * 3])
    with torch.no_grad():
        wanted = model(**{**inputs, "token_type_ids": types}).logits.item()
        without = model(input_ids=inputs["input_ids"]).logits.item()
    found = RewardModelObjective(folder)([asked, "the tea"], [said, "is hot ?"])
    assert found[0] == pytest.approx(wanted, abs=1e-5) and abs(wanted - without) > 1e-3
    quoted = scored_ids(load_tokenizer(folder), "is [SEP] hot", "[CLS]")
    assert quoted.count(raw.sep_token_id) == 2 and quoted.count(raw.cls_token_id) == 1


def test_an_encoder_is_trained_on_its_two_segments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from align.training import reward_model as stage

    trainers: list[Any] = []
    monkeypatch.setattr(stage, "finish_trainer", lambda trainer, **_: trainers.append(trainer))
    rows = [{"prompt": "how hot is the tea ?", "chosen": " very hot", "rejected": " the tea"}] * 4
    metrics = train_reward_model(
        RewardModelConfig(**QUICK), model=pair_encoder(tmp_path / "start"), rows=rows, out=tmp_path / "rm",
        ledger=Ledger(),
    )  # fmt: skip
    batch = next(iter(trainers[0].get_train_dataloader()))
    assert batch["token_type_ids"][0].tolist() == [0] * 8 + [1] * 3
    found = RewardModelObjective(tmp_path / "rm")([row["prompt"] for row in rows], [row["chosen"] for row in rows])
    assert metrics["trained_on"] == 4 and found[0] == pytest.approx(found[1])


# ---------------------------------------------------------------------------------------------------------------- heads


def test_one_of_several_outputs_is_chosen_by_name_or_number(tmp_path: Path) -> None:
    folder = pair_encoder(tmp_path / "rm", labels=("helpful", "harmless", "brief"))
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder).eval(), pair_tokenizer()
    inputs = tokenizer("how hot ?", "very", return_tensors="pt")
    with torch.no_grad():
        wanted = model(**{**inputs, "token_type_ids": torch.tensor([[0] * 5 + [1] * 2])}).logits[0].tolist()
    for label, value in (("helpful", wanted[0]), ("harmless", wanted[1]), ("2", wanted[2])):
        objective = RewardModelObjective(f"{folder}@{label}")
        assert objective(["how hot ?"], ["very"]) == [pytest.approx(value, abs=1e-5)]
        assert objective.__name__ == label
    with pytest.raises(UserError, match="3 outputs, which one is not said; write .*@LABEL with one of helpful, ha"):
        RewardModelObjective(folder)(["how hot ?"], ["very"])
    with pytest.raises(UserError, match="and none is 'kind'"):
        RewardModelObjective(f"{folder}@kind")(["how hot ?"], ["very"])
    with pytest.raises(UserError, match="3 outputs; a reward model has 1"):
        load_scorer(folder, pad_token_id=0, eos_token_id=0)


def test_padding_is_a_token_that_ends_nothing(tmp_path: Path) -> None:
    wanted = {"chatml": "<|endoftext|>", "gemma": "<pad>", "mistral": "<unk>", "llama3": "<|end_of_text|>"}
    for name, token in wanted.items():
        assert readable_padding(chat_tokenizer(name)) == token
    tokenizer = chat_tokenizer("base")
    before = tokenizer(" Shere<|endoftext|> S")["input_ids"]
    tokenizer.pad_token = readable_padding(tokenizer)  # the last word, where the only special token is the end
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again(" Shere<|endoftext|> S")["input_ids"] == before
    assert again.pad_token_id == len(again) - 1 != again.eos_token_id
