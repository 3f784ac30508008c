"""Preferences in the prompt: as text or as tokens, read and never written, and what a preference asks for."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
import torch

from align.errors import UserError
from align.models import load_model, load_tokenizer
from align.models.chat import OURS
from align.models.formats import Choice, formatter, settle
from align.policies.base import ModelPolicy
from align.policies.load import load_family
from align.policies.tagged import (
    ASKED,
    TaggedFamily,
    TaggedPolicy,
    Tags,
    can_say,
    choose_tags,
    forbid,
    tag_ids,
    tagged_checkpoint,
)
from align.preferences import Direction, Targets, Thresholds, Weights
from align.turns import Turn, transcript, turns_of
from factories.chat_styles import STYLES, chat_checkpoint
from factories.tiny_bandit import PROMPTS, WORDS, make_reference, make_tokenizer, next_distribution

TOKENS = Tags(("one", "two"), tokens=True)


@pytest.fixture(scope="module")
def start(reference: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return tagged_checkpoint(reference, tags=TOKENS, out=tmp_path_factory.mktemp("tagged") / "model")


# ---------------------------------------------------------------------------------------------------- text or tokens


@pytest.mark.parametrize("name", [style.name for style in STYLES])
@pytest.mark.parametrize("template", ["auto", "hh"])
@pytest.mark.parametrize("tokens", [False, True])
def test_tagged_prompts_are_read_by_the_format_and_quoted_tags_stay_text(
    name: str, template: str, tokens: bool, tmp_path: Path
) -> None:
    """The ids are those of the turns with the tags as content; with tokens, the same ids and one id for each tag."""
    tags, reference = Tags(("one", "two"), tokens=tokens), str(chat_checkpoint(name, tmp_path / "model"))
    tokenizer = load_tokenizer(tagged_checkpoint(reference, tags=tags, out=tmp_path / "tagged"))
    settle(tokenizer, Choice(template))
    form, ours = formatter(tokenizer), tag_ids(tokenizer, tags)
    question, values = "is <one: 0.3> the tea?", (0.3, 0.7)
    for prompt in (question, transcript([Turn("user", "a"), Turn("assistant", "st"), Turn("user", question)])):
        told, plain = form.prompt_ids(tags.apply(prompt, values)), form.prompt_ids(prompt)
        turns = list(turns_of(prompt))
        turns[-1] = Turn("user", f"<one: 0.3> <two: 0.7> {question}")
        spelled = transcript(turns) if len(turns) > 1 else turns[-1].content
        assert tokenizer.decode(told).replace(OURS, "") == tokenizer.decode(form.prompt_ids(spelled))
        assert not set(plain) & set(ours)
        if not tokens:
            assert told == form.prompt_ids(spelled) and not ours
            continue
        assert [t for t in told if t in ours] == [ours[3], ours[11 + 7]]
        if form.format.start or tokenizer.bos_token:
            assert told[0] == plain[0] == tokenizer.bos_token_id  # the start token, then the tags
        place = told.index(ours[3])
        space = tokenizer(" ", add_special_tokens=False)["input_ids"]
        assert told[place + 1 : place + 1 + len(space)] == space and told[place + 1 + len(space)] == ours[11 + 7]
        assert told[:place] == form.prompt_ids(prompt)[:place]
    reply = form.reply_ids(tags.apply(question, values), " the tea")
    assert reply == form.reply_ids(question, " the tea") and not set(reply) & set(ours)


def test_a_word_level_tokenizer_cannot_say_tags_and_a_byte_level_one_can(reference: str, tiny_model: Path) -> None:
    fields = {"names": ("one", "two"), "levels": 4}
    assert choose_tags("auto", reference=reference, **fields).tokens
    assert not choose_tags("auto", reference=str(tiny_model), **fields).tokens
    assert not choose_tags("text", reference=reference, **fields).tokens
    assert choose_tags("tokens", reference=str(tiny_model), **fields).tokens
    with pytest.raises(UserError, match="tags must be one of"):
        choose_tags("words", reference=reference, **fields)


@pytest.mark.parametrize("unknown", ["token", "dropped"])
def test_tags_that_become_unknown_tokens_or_nothing_cannot_be_said(unknown: str, tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import BPE, WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<end>": 1, "<unk>": 2}
    core = Tokenizer(WordLevel(words, unk_token="<unk>") if unknown == "token" else BPE(vocab=words, merges=[]))
    core.pre_tokenizer = WhitespaceSplit()
    names = {"eos_token": "<end>", "pad_token": "<pad>"} | ({"unk_token": "<unk>"} if unknown == "token" else {})
    reference = make_reference(tmp_path / "model")
    PreTrainedTokenizerFast(tokenizer_object=core, **names).save_pretrained(reference)
    assert not can_say(Tags(("one",), levels=1), reference)


def test_text_tags_need_no_copy_of_the_reference(reference: str, tmp_path: Path) -> None:
    assert tagged_checkpoint(reference, tags=Tags(("one",)), out=tmp_path / "copy") == reference
    assert not (tmp_path / "copy").exists()


def test_tag_tokens_extend_a_copy_and_leave_the_reference_s_rows(reference: str, start: str) -> None:
    before, after = load_model(reference), load_model(start)
    tokenizer = load_tokenizer(start)
    assert len(tokenizer) == len(WORDS) + 22 == after.config.vocab_size
    assert tag_ids(tokenizer, TOKENS) == list(range(len(WORDS), len(WORDS) + 22))
    for mine, theirs in (
        (after.get_input_embeddings(), before.get_input_embeddings()),
        (after.get_output_embeddings(), before.get_output_embeddings()),
    ):
        assert torch.equal(mine.weight[: len(WORDS)], theirs.weight)
    assert after.generation_config.eos_token_id == before.generation_config.eos_token_id
    ids = tokenizer(TOKENS.apply("y y :", (0.3, 0.7)))["input_ids"]
    assert ids == [len(WORDS) + 3, len(WORDS) + 11 + 7, 3, 3, 4]
    with pytest.raises(UserError, match="already; rename"):
        tagged_checkpoint(start, tags=TOKENS, out=Path(start).parent / "twice")


def test_neighbouring_levels_start_as_neighbours(start: str) -> None:
    rows = load_model(start).get_input_embeddings().weight.detach()[len(WORDS) :].reshape(2, 11, -1)
    for table_LD in rows:
        distances = torch.cdist(table_LD, table_LD)
        assert distances[0, 1].item() == pytest.approx(distances[0, 10].item() / 10, rel=1e-3)
        assert distances[3, 10] > distances[3, 4] > 0
    assert (rows[0, 0] - rows[1, 0]).norm() > 0  # the objectives are told apart


@pytest.mark.parametrize("free", [False, True])
def test_the_copy_is_a_function_of_the_seed(free: bool, reference: str, tmp_path: Path) -> None:
    tags = Tags(("one", "two", "three"), levels=3, tokens=True, free=free)
    one, again, other = (
        load_model(tagged_checkpoint(reference, tags=tags, out=tmp_path / str(i), seed=seed)).get_input_embeddings()
        for i, seed in enumerate((1, 1, 2))
    )
    assert torch.equal(one.weight, again.weight) and not torch.equal(one.weight, other.weight)
    assert len(one.weight) == len(WORDS) + 3 * (4 + free)


# ------------------------------------------------------------------------------------- tags are read and never written


def test_the_mass_of_tag_tokens_goes_to_the_others_in_proportion(start: str) -> None:
    raw = load_model(start)
    ids = torch.tensor([load_tokenizer(start)(TOKENS.apply("x :", (0.2, 0.8)))["input_ids"]])
    logits = raw(input_ids=ids).logits[0, -1]
    kept = logits.softmax(-1)[: len(WORDS)]
    assert kept.sum() < 0.99  # there is something to take away
    expected = (kept / kept.sum()).tolist()
    forbidden = forbid(load_model(start), tag_ids(load_tokenizer(start), TOKENS))
    told = forbidden(input_ids=ids).logits[0, -1].softmax(-1)
    assert told[: len(WORDS)].tolist() == pytest.approx(expected, rel=1e-5)
    assert told[len(WORDS) :].sum() == 0.0
    policy = TaggedPolicy(start, tags=TOKENS, values=(0.2, 0.8), name="p")
    assert policy.prompt_ids(["x :"]) == ids.tolist()
    asked = policy.next_token_logprobs(ids, torch.ones_like(ids))[0].exp()
    assert asked[: len(WORDS)].tolist() == pytest.approx(expected, rel=1e-5)
    assert asked[len(WORDS) :].sum() == 0.0


def test_what_is_forbidden_is_not_saved(start: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = forbid(load_model(start), [len(WORDS)])
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == load_file(Path(start) / "model.safetensors").keys()
    with pytest.raises(ValueError, match="has a bias"):
        forbid(model, [len(WORDS)])
    assert forbid(load_model(start), []).get_output_embeddings().bias is None


def test_samples_follow_the_tagged_distribution_and_hold_no_tags(start: str) -> None:
    policy = TaggedPolicy(start, tags=TOKENS, values=(0.9, 0.1), name="p")
    texts = policy.generate(["y y :"] * 4000, max_new_tokens=1, seed=0, batch_size=4000)
    assert not any("<one" in text or "<two" in text for text in texts)
    ids = torch.tensor(policy.prompt_ids(["y y :"]))
    expected = policy.next_token_logprobs(ids, torch.ones_like(ids))[0].exp()
    counts = Counter(texts)
    for word in ("A", "B", "x", ":"):
        p = expected[WORDS.index(word)].item()
        assert abs(counts[word] / 4000 - p) < 5 * math.sqrt(p * (1 - p) / 4000) + 1e-9


def test_log_probabilities_are_those_behind_the_tags(many_tokens: str, tmp_path: Path) -> None:
    start = tagged_checkpoint(many_tokens, tags=TOKENS, out=tmp_path / "m")
    policy = TaggedPolicy(start, tags=TOKENS, values=(0.4, 0.6), name="p")
    (ours,) = policy.sequence_logprobs(["x :"], [" A B"])
    model = forbid(load_model(start), tag_ids(load_tokenizer(start), TOKENS))
    ids = torch.tensor([[len(WORDS) + 4, len(WORDS) + 11 + 6, 2, 4, 5, 6, 1]])
    logp = model(input_ids=ids).logits[0].log_softmax(-1)
    assert ours == pytest.approx(sum(logp[i, ids[0, i + 1]].item() for i in (3, 4, 5)), abs=1e-4)
    assert ours != pytest.approx(ModelPolicy(start).sequence_logprobs(["x :"], [" A B"])[0], abs=1e-3)


def test_padding_before_the_tags_changes_nothing(start: str) -> None:
    policy = TaggedPolicy(start, tags=TOKENS, values=(0.4, 0.6), name="p")
    short, long = policy.prompt_ids(["x :", "y y y :"])
    alone = torch.tensor([short])
    padded = torch.tensor([[0, 0, *short], long])
    mask = torch.tensor([[0, 0, *[1] * len(short)], [1] * len(long)])
    one = policy.next_token_logprobs(alone, torch.ones_like(alone))[0]
    assert torch.allclose(policy.next_token_logprobs(padded, mask)[0], one, atol=1e-5)


def test_components_stand_behind_the_ids_of_the_tags(start: str) -> None:
    policy = TaggedPolicy(start, tags=TOKENS, values=(0.3, 0.7), name="p")
    (component,) = policy.components()
    assert component.prefix == (len(WORDS) + 3, len(WORDS) + 11 + 7)


def test_text_tags_that_may_merge_with_the_prompt_have_no_exact_evaluation(tiny_model: Path) -> None:
    """In a byte-level vocabulary " hello" is one token: the tags' ids are no fixed prefix of the prompt's."""
    policy = TaggedPolicy(tiny_model, tags=Tags(("one",)), values=(0.5,), name="p")
    with pytest.raises(UserError, match="no tokens before the prompt's own"):
        policy.components()
    assert len(policy.generate(["bread"], max_new_tokens=2, seed=0)) == 1
    ours, plain = policy.sequence_logprobs(["bread"], [" tea"]), ModelPolicy(tiny_model)
    assert ours == plain.sequence_logprobs(["<one: 0.5> bread"], [" tea"])


# ---------------------------------------------------------------------------------- from a preference to its numbers


@pytest.mark.parametrize("name", ["targets_l2", "targets_linf", "targets_linear"])
@pytest.mark.parametrize("k", range(3))
def test_a_vertex_asks_for_the_maximum_of_its_objective_and_the_minimum_of_the_rest(name: str, k: int) -> None:
    low, high = (-2.0, -1.0, 0.0), (2.0, 3.0, 4.0)
    asked = ASKED[name](Weights.vertex(k, 3), low, high)
    assert asked == tuple(high[j] if j == k else low[j] for j in range(3))


def test_targets_between_the_vertices() -> None:
    low, high, w = (-4.0, 0.0), (4.0, 2.0), Weights((0.6, 0.4))
    l2 = ASKED["targets_l2"](w, low, high)
    assert l2 == pytest.approx((-4 + 8 * 0.6 / math.sqrt(0.52), 2 * 0.4 / math.sqrt(0.52)))
    assert ASKED["targets_linear"](w, low, high) == pytest.approx((-4 + 8 * 0.6, 2 * 0.4))
    assert ASKED["targets_linf"](w, low, high) == pytest.approx((4.0, 2 * 0.8))  # the largest asks for its maximum
    assert ASKED["targets_linf"](Weights((0.2, 0.5, 0.3)), (0.0,) * 3, (1.0,) * 3) == pytest.approx((0.6, 1.0, 0.9))
    for name in ("targets_l2", "targets_linf", "targets_linear", "controls_l2"):
        assert ASKED[name](Targets((0.5, -7.0)), low, high) == (0.5, -7.0)
    assert ASKED["controls_l2"](Weights((0.0, 1.0)), low, high) == (None, 2.0)
    assert ASKED["controls_l2"](w, low, high) == l2


def test_weights_and_directions_say_themselves() -> None:
    assert ASKED["weights"](Weights((0.25, 0.75)), (), ()) == (0.25, 0.75)
    assert ASKED["direction"](Weights((0.6, 0.4)), (), ()) == pytest.approx(
        (0.6 / math.sqrt(0.52), 0.4 / math.sqrt(0.52))
    )
    assert ASKED["direction"](Direction((0.6, -0.8)), (), ()) == (0.6, -0.8)
    for name in ("weights", "direction", "targets_l2"):
        with pytest.raises(UserError, match="not asked by thresholds"):
            ASKED[name](Thresholds((0.5, None)), (0.0, 0.0), (1.0, 1.0))


def test_a_family_is_saved_with_everything_that_its_policies_need(start: str, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(start, tmp_path / "run" / "model")
    preferences = (Weights((0.25, 0.75)), Targets((0.5, 0.1)))
    family = TaggedFamily(
        "ric", str(tmp_path / "run" / "model"), TOKENS, asked="targets_linear", low=(0.2, 0.0), high=(1.0, 0.8),
        preferences=preferences, optimises={"0.25,0.75": "something"},
    )  # fmt: skip
    family.save(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    again = load_family(tmp_path / "moved")
    assert (again.tags, again.asked, again.low, again.high) == (TOKENS, "targets_linear", (0.2, 0.0), (1.0, 0.8))
    assert again.preferences == preferences and again.optimises == family.optimises
    assert again.point_cost == "prompt" and "one, two" in again.domain
    policy = again.policy(Weights((0.25, 0.75)))
    assert policy.values == pytest.approx((0.4, 0.6)) and policy.name == "ric@0.25,0.75"
    assert policy.generate(list(PROMPTS), max_new_tokens=1, seed=0)
    with pytest.raises(UserError, match="answers 2 objectives"):
        again.policy(Weights((0.5, 0.25, 0.25)))


def test_a_tagged_copy_of_a_tokenizer_reads_untagged_prompts_as_before(reference: str, start: str) -> None:
    for prompt in PROMPTS:
        assert load_tokenizer(start)(prompt)["input_ids"] == make_tokenizer()(prompt)["input_ids"]
        ids = torch.tensor([make_tokenizer()(prompt)["input_ids"]])
        forbidden = forbid(load_model(start), tag_ids(load_tokenizer(start), TOKENS))
        told = forbidden(input_ids=ids).logits[0, -1].softmax(-1)[: len(WORDS)]
        assert told.tolist() == pytest.approx(next_distribution(reference, prompt), abs=1e-6)
