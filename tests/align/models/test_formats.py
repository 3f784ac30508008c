"""The prompt format: ids of prompts and replies in seven tokenizer styles, against the template and stock TRL."""

from __future__ import annotations

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from align.errors import UserError
from align.models import load_tokenizer
from align.models.chat import FormatError
from align.models.formats import Choice, formatter, same_format, settle, stored_format
from align.turns import Turn, transcript
from factories.chat_styles import BY_NAME, STYLES, chat_checkpoint, chat_tokenizer

CHAT = [style.name for style in STYLES if style.template]
BASE = [style.name for style in STYLES if not style.template]
ASKED = (Turn("user", "Is the tea hot?"), Turn("assistant", "It is."), Turn("user", "Then wait  \nin the end"))
PROMPT = transcript(ASKED)


@pytest.mark.parametrize("name", CHAT)
@pytest.mark.parametrize("turns", [ASKED[:1], ASKED], ids=["one turn", "three turns"])
def test_prompt_ids_are_those_of_the_chat_template(name, turns):
    tokenizer = chat_tokenizer(name)
    wanted = tokenizer.apply_chat_template(
        [turn.message for turn in turns], tokenize=True, add_generation_prompt=True, return_dict=True
    )["input_ids"]
    assert formatter(tokenizer).prompt_ids(transcript(turns)) == wanted
    assert formatter(tokenizer).prompt_ids(transcript(turns)).count(tokenizer.bos_token_id) == (
        1 if BY_NAME[name].bos else 0
    )
    if len(turns) == 1:
        assert formatter(tokenizer).prompt_ids(turns[0].content) == wanted


@pytest.mark.parametrize("name", BASE)
def test_without_a_template_prompt_ids_are_the_tokenizers_own(name):
    tokenizer = chat_tokenizer(name)
    assert formatter(tokenizer).prompt_ids("the tea") == tokenizer("the tea")["input_ids"]
    assert formatter(tokenizer).prompt_ids("<s>the tea") == tokenizer("the tea")["input_ids"] or name == "base"


@pytest.mark.parametrize("name", [style.name for style in STYLES])
def test_a_reply_is_closed_by_a_token_at_which_generation_stops(name, tmp_path):
    tokenizer = load_tokenizer(chat_checkpoint(name, tmp_path))
    form, end = formatter(tokenizer), tokenizer.convert_tokens_to_ids(BY_NAME[name].end)
    assert form.format.end == end and end in form.format.ends
    assert end in form.reply_ids("hot?", " the tea")
    assert end not in form.reply_ids("hot?", " the tea", ended=False)
    assert form.decode(form.reply_ids("hot?", " the tea", ended=False)).strip().endswith("the tea")


@pytest.mark.parametrize("name", CHAT)
def test_rows_are_those_of_stock_trl_on_conversational_rows(name, tmp_path):
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    folder = chat_checkpoint(name, tmp_path / "model")
    tokenizer = load_tokenizer(folder)
    messages = [turn.message for turn in ASKED]
    sides = {
        side: [{"role": "assistant", "content": text}] for side, text in (("chosen", "the tea"), ("rejected", "a"))
    }
    common = {"output_dir": str(tmp_path / "out"), "use_cpu": True, "bf16": False, "report_to": [], "max_length": None}
    stock = AutoTokenizer.from_pretrained(folder, pad_token=tokenizer.pad_token)
    dpo = DPOTrainer(
        model=str(folder), args=DPOConfig(**common), processing_class=stock,
        train_dataset=Dataset.from_list([{"prompt": messages, **sides}]),
    ).train_dataset[0]  # fmt: skip
    sft = SFTTrainer(
        model=str(folder), args=SFTConfig(**common), processing_class=stock,
        train_dataset=Dataset.from_list([{"prompt": messages, "completion": sides["chosen"]}]),
    ).train_dataset[0]  # fmt: skip
    head, tail = formatter(tokenizer).row(PROMPT, "the tea")
    assert [*head, *tail] == list(sft["input_ids"])
    assert [*head, *tail] == [*dpo["prompt_ids"], *dpo["chosen_ids"]]
    assert [*head, *formatter(tokenizer).reply_ids(PROMPT, "a")] == [*dpo["prompt_ids"], *dpo["rejected_ids"]]


def test_thinking_is_off_or_on_by_the_templates_own_argument():
    texts = []
    for kwargs in ({}, {"enable_thinking": False}):
        tokenizer = chat_tokenizer("thinking")
        settle(tokenizer, Choice(chat_kwargs=kwargs))
        texts.append(formatter(tokenizer).text("hot?"))
    assert texts[1] == texts[0] + "<think>\n\n</think>\n\n"


@pytest.mark.parametrize("name", CHAT)
def test_special_tokens_quoted_by_a_user_stay_text(name):
    tokenizer = chat_tokenizer(name)
    word = BY_NAME[name].end
    ids = formatter(tokenizer).prompt_ids(f"what is {word}?")
    plain = formatter(tokenizer).prompt_ids("what is ?")
    assert ids.count(tokenizer.convert_tokens_to_ids(word)) == plain.count(tokenizer.convert_tokens_to_ids(word))
    assert f"what is {word}?" in tokenizer.decode(ids)
    assert word in formatter(tokenizer).text(f"what is {word}?")


def test_a_template_that_cannot_say_a_prompt_is_one_line():
    form = formatter(chat_tokenizer("gemma"))
    assert not form.can_system and formatter(chat_tokenizer("chatml")).can_system
    with pytest.raises(FormatError, match="system turn"):
        form.prompt_ids(transcript((Turn("system", "be kind"), Turn("user", "hi"))))
    with pytest.raises(FormatError, match="alternate"):
        form.prompt_ids(transcript((Turn("user", "hi"), Turn("user", "there"))))


def test_the_date_of_a_template_is_fixed():
    tokenizer = chat_tokenizer("chatml")
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}" + tokenizer.chat_template
    assert formatter(tokenizer).text("hi").startswith("26 Jul 2024")
    settle(tokenizer, Choice(chat_kwargs={"date": "2025-01-31"}))
    assert formatter(tokenizer).text("hi").startswith("31 Jan 2025")


def test_the_format_travels_with_the_tokenizer_and_two_formats_are_refused(tmp_path):
    tokenizer = chat_tokenizer("base")
    assert settle(tokenizer, prompts=["\n\nHuman: hi\n\nAssistant:"]).template == "hh"
    tokenizer.save_pretrained(tmp_path / "a")
    (tmp_path / "a" / "config.json").write_text("{}")
    again = load_tokenizer(tmp_path / "a")
    assert stored_format(again) == formatter(again).format == formatter(tokenizer).format
    again.save_pretrained(tmp_path / "b")
    (tmp_path / "b" / "config.json").write_text("{}")
    assert stored_format(load_tokenizer(tmp_path / "b")) == stored_format(again)
    with pytest.raises(UserError, match="was trained with template hh"):
        settle(again, Choice("plain"))
    with pytest.raises(UserError, match="a reads prompts as hh .* b as plain"):
        same_format({"a": formatter(again).format, "b": formatter(chat_tokenizer("base")).format})


def test_hh_makes_a_turn_of_a_plain_question_and_plain_does_not():
    hh, plain = chat_tokenizer("base"), chat_tokenizer("base")
    settle(hh, Choice("hh"))
    settle(plain, Choice("plain"))
    assert formatter(hh).text("hot?") == "\n\nHuman: hot?\n\nAssistant:"
    assert formatter(plain).text("hot?") == "hot?"
    assert (
        formatter(hh).spaced("hot?", "Yes") == " Yes"
        and formatter(chat_tokenizer("chatml")).spaced("q", "Yes") == "Yes"
    )


def test_a_prompt_that_ends_in_a_space_keeps_its_own_ids():
    form = formatter(chat_tokenizer("base"))
    head, tail = form.row("Answer: ", "the")
    assert head == form.prompt_ids("Answer: ") and form.decode(tail[:-1]) == "the"


def test_a_tokenizer_that_drops_the_first_space_gives_it_back():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["<unk>", "</s>", "▁", "▁Paris", "▁a", "\n", "a"])}
    core = Tokenizer(models.Unigram([(word, -1.0) for word in words], unk_id=0))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    core.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>")
    assert tokenizer.decode([3]) == "Paris"
    assert formatter(tokenizer).decode([3]) == " Paris"


@pytest.mark.parametrize("name", ["chatml", "gemma"])
def test_characters_of_private_use_are_read_as_they_are(name: str) -> None:
    """Icon fonts and emoji of one maker lie there: they stand for no special token, also beside a quoted one."""
    tokenizer, form = chat_tokenizer(name), formatter(chat_tokenizer(name))
    for icon in ("\ue000", "\ue002", "\uf8ff"):
        shown = tokenizer.decode(form.prompt_ids(f"an {icon} here and {BY_NAME[name].end}"))
        assert f"an {icon} here and {BY_NAME[name].end}" in shown
        plain = tokenizer.apply_chat_template(
            [{"role": "user", "content": f"an {icon} here"}],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
        )
        assert form.prompt_ids(f"an {icon} here") == plain["input_ids"]


@pytest.mark.parametrize("template", ["plain", "hh"])
def test_a_reply_that_quotes_the_end_is_closed_all_the_same(template: str) -> None:
    tokenizer = chat_tokenizer("base_bos")
    settle(tokenizer, Choice(template))
    form, end = formatter(tokenizer), tokenizer.eos_token_id
    assert form.reply_ids("hot?", " write </s> at the end")[-1] == end
    assert form.reply_ids("hot?", " the tea</s>").count(end) == 1


def test_a_date_that_is_none_is_one_line() -> None:
    with pytest.raises(UserError, match="date '31.1.2025'.*2025-01-31"):
        Choice("chat", {"date": "31.1.2025"})
