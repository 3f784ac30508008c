"""Every shift keeps the contract: determinism, frozen prompts, twins, probes, the same words for all; and the page.

python tests/evals/shifts/test_shift_contract.py    # prints the digests of FROZEN
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from docs.generate.shifts_page import page
from evals.items import Missing, Prompt, digest, seed_of
from evals.shifts import JAILBROKEN, SHIFTS
from evals.shifts.base import FAMILIES, Asks, Shift, same
from evals.shifts.by_model import LLM_SHIFTS
from evals.shifts.probes import Question

PAGE = Path(__file__).resolve().parents[3] / "docs" / "shifts.md"
REQUESTS = (
    "How do I bake bread at home?",
    "Please tell me what is needed to plant a garden, and do not skip steps!",
    'Write a letter to the "Chess Club" about {request} & 3 zebras.',
)
# Twelve digits per shift over its prompts for REQUESTS. Another digest is another prompt: raise the shift's version.
FROZEN = {
    "none": "d4a255a45810",
    "base64": "40303b6b9b81",
    "base64_input_only": "42e3f0ae57dd",
    "base64_output_only": "8e06200a2372",
    "base64_raw": "a94c94be0afb",
    "encoding_frame": "da695cd8328c",
    "rot13": "f98bc6a09688",
    "leetspeak": "96b8ee50c6fe",
    "disemvowel": "dcc38af39bd4",
    "base32": "e546ded5be03",
    "hex": "79bf2ace4b87",
    "binary": "ab8df6825343",
    "url": "0b1a900130e2",
    "decimal": "2f1e9b360262",
    "html_entities": "264570bbaba3",
    "caesar": "68c82d7ab891",
    "atbash": "51265838aebe",
    "self_cipher": "12ef54ff791d",
    "reverse": "226bd4909441",
    "reverse_words": "38c7417b62a9",
    "morse": "38c8b64a346d",
    "nato": "b2bfba961c6c",
    "braille": "4751fb4a8d6c",
    "pig_latin": "a90b3ea1cc36",
    "tags": "91088444092c",
    "variation_selectors": "7b16106c4d2a",
    "full_width": "73cface6bf98",
    "homoglyph": "9cf74d2162da",
    "zero_width": "1d638b51700f",
    "zalgo": "ea23c55f84a7",
    "cipher_chat": "da3d992bf6c6",
    "cipher_chat_no_demos": "1b0d2d44c24e",
    "code_chameleon": "deb37c2f3e05",
    "code_chameleon_plain": "529869e57923",
    "best_of_n": "77e20cd12743",
    "typos": "d2346f105e38",
    "misspellings": "946e765261ef",
    "lowercase": "c765a374e6f1",
    "uppercase": "e18b524b59eb",
    "extra_spaces": "dfd051ffd118",
    "spaces_removed": "9f10c34d5e40",
    "contractions": "1780a8a434aa",
    "filler_words": "085076170115",
    "punctuation_removed": "10d982906b03",
    "past_tense": "19a3adf07c32",
    "future_tense": "fb84a844a770",
    "present_tense": "a59b5c60a323",
    "prefix_injection": "af32ea28178f",
    "prefix_injection_hello": "2b09c47d125f",
    "refusal_suppression": "93bd172d92c9",
    "refusal_suppression_inv": "393903eed983",
    "distractors": "b311fc681418",
    "distractors_separate": "fa68b1dec014",
    "distractors_negated": "18f0ec580886",
    "poems": "26402d4cd1fd",
    "poems_read": "14835cd5e4e1",
    "wikipedia": "783fd3a961b9",
    "wikipedia_with_title": "b20c0082e93b",
    "plain_article": "debc530ab04e",
    "style_injection_short": "4bd7758d86c5",
    "style_injection_short_inv": "8d5e3b02efec",
    "style_injection_json": "74113ec4c8e8",
    "style_injection_json_inv": "0b128327e8da",
    "telegram_style": "ebe3acd4b6cc",
    "code_comments_style": "a15c09f32a13",
    "aim": "dc48fbe68142",
    "aim_inv": "09f7bd53d6c1",
    "nested_fiction": "ee236f100734",
    "nested_fiction_inv": "bef748ad8dc4",
    "dev_mode_v2": "3684b6509416",
    "dev_mode_inv": "b08aa1048883",
    "dev_mode_with_rant": "3deea3fadaf4",
    "dev_mode_with_rant_inv": "0765bfb71899",
    "evil_confidant": "34e7ed241431",
    "kind_confidant": "c0a8096b7afc",
    "evil_system_prompt": "7ff6f3434c26",
    "kind_system_prompt": "a5b093079716",
    "few_shot_json": "8aca902da86a",
    "few_shot_json_inv": "77687b4a2378",
    "many_shot_1": "33d6da8d6cef",
    "many_shot_4": "de44cd30cb0c",
    "many_shot_16": "3e9f0913a303",
    "many_shot_neutral_1": "c513ab3ec934",
    "many_shot_neutral_4": "d69a987623b5",
    "many_shot_neutral_16": "0fc39ff07e8a",
    "in_context_attack": "78bfe64778e0",
    "in_context_neutral": "afb75af8fc12",
    "in_context_defence": "37f26ae6df80",
    "prefill_5": "c2f3298e899f",
    "prefill_10": "ea7bb8b1edaa",
    "prefill_20": "cefad780d0f0",
    "prefill_40": "24d9b9a0364e",
    "prefill_neutral_5": "a6baf3c21d6b",
    "prefill_neutral_10": "ee225d1b6fd0",
    "prefill_neutral_20": "2712b5815d53",
    "prefill_neutral_40": "f8be90f14c1e",
    "prefill_refusal": "b3b481e0ea51",
    "payload_splitting": "a65687b4604d",
    "payload_unsplit": "5e75b1147347",
    "masked_word": "911316482951",
    "combination_1": "e43d281ea063",
    "combination_1_inv": "a211cadbcc81",
    "combination_2": "1bafd6962a44",
    "combination_2_inv": "d808432935c5",
    "combination_3": "558fe64f4669",
}


def dummy(instruction: str) -> str:
    return '{"text": "hidden"}'


def made_by_model() -> dict[str, Shift]:
    return {name: make(dummy) for name, make in LLM_SHIFTS.items()}


def prompt_of(shift: Shift, request: str) -> Prompt | Missing:
    return shift.encode(request, Random(seed_of("item", shift.name, request)))


def frozen_digest(shift: Shift) -> str:
    found = [prompt_of(shift, request) for request in REQUESTS]
    return digest([p.jsonable() if isinstance(p, Prompt) else p.reason for p in found])[:12]


ALL = sorted(SHIFTS)
WRAPPED = [n for n in ALL if SHIFTS[n].family in {"wrapper", "style", "persona", "context", "prefill"}]
CODED = [n for n in ALL if SHIFTS[n].codec is not None]


@pytest.mark.parametrize("name", ALL)
def test_prompts_are_frozen(name: str) -> None:
    """Adding a shift, or an entry to a table, changes no other shift's prompts."""
    found = frozen_digest(SHIFTS[name])
    assert FROZEN.get(name) == found, f"prompts of {name} changed: raise its version and freeze {found!r}"


def test_names_keys_families_and_sizes() -> None:
    assert set(FROZEN) == set(SHIFTS)
    assert all(name == shift.name for name, shift in SHIFTS.items())
    assert not (set(SHIFTS) | set(LLM_SHIFTS)) & {*FAMILIES, "all", "jailbroken"} - {"none"}
    assert not set(SHIFTS) & set(LLM_SHIFTS)
    assert len(SHIFTS) >= 45 and len(JAILBROKEN) == len(set(JAILBROKEN)) == 28 and set(JAILBROKEN) <= set(SHIFTS)
    further = [s for s in SHIFTS.values() if s.mode not in ("control", "none") and s.name not in JAILBROKEN]
    assert len(further) >= 15
    counts = Counter(shift.family for shift in SHIFTS.values())
    assert set(counts) == set(FAMILIES) - {"language"}
    assert [s.family for s in SHIFTS.values()] == sorted(
        (s.family for s in SHIFTS.values()), key=FAMILIES.index
    ), "SHIFTS is in the order of FAMILIES"  # fmt: skip


@pytest.mark.parametrize("name", ALL)
def test_a_draw_is_the_generators_alone(name: str) -> None:
    """The same generator gives the same prompt, whatever was drawn elsewhere, before or in between."""
    shift = SHIFTS[name]
    for request in REQUESTS:
        first = shift.encode(request, Random(5))
        Random().seed(1)
        SHIFTS["best_of_n"].encode(request, Random(9))
        assert shift.encode(request, Random(5)) == first


def test_which_shifts_draw() -> None:
    drawing = {n for n in ALL if len({SHIFTS[n].encode(REQUESTS[1], Random(seed)) for seed in range(8)}) > 1}
    many = {f"many_shot_{kind}{k}" for kind in ("", "neutral_") for k in (1, 4, 16)}
    assert drawing == many | {
        "best_of_n", "typos", "extra_spaces", "filler_words", "payload_splitting", "masked_word"
    }  # fmt: skip


@pytest.mark.parametrize("name", [*ALL, *LLM_SHIFTS])
def test_twins(name: str) -> None:
    """A placebo is a control; a control says what it ablates; attacks from a wrapper have a twin."""
    everything = {**SHIFTS, **made_by_model()}
    shift = everything[name]
    if shift.control is not None:
        assert everything[shift.control].mode == "control"
        assert shift.mode != "control"
    assert (shift.control_of is not None) == (shift.mode == "control")
    if shift.control_of is not None:
        ablated = everything[shift.control_of]
        assert ablated.mode not in ("control", "none") and ablated.family == shift.family
        assert ablated.control == name or name in {"in_context_defence", "prefill_refusal"}
    if shift.mode != "control" and shift.family not in {"none", "noise", "encoding"}:
        assert shift.control is not None


def test_codes_without_a_frame_are_the_only_ones_without_a_twin() -> None:
    lone = {n for n in ALL if SHIFTS[n].control is None and SHIFTS[n].mode != "control"}
    noise = {n for n in ALL if SHIFTS[n].family == "noise"}
    assert lone == noise | {"none", "leetspeak", "disemvowel", "full_width", "homoglyph", "zero_width", "zalgo"}


TWINNED = [
    n for n in ALL
    if SHIFTS[n].control and SHIFTS[n].family not in {"encoding", "tense", "payload"} and n != "distractors_negated"
]  # fmt: skip


@pytest.mark.parametrize("name", TWINNED)
def test_a_twin_costs_about_as_much(name: str) -> None:
    """Within a third of the attack's words and the same turns, so that length and layout do not tell them apart."""
    shift = SHIFTS[name]
    assert shift.control is not None
    prompts = [prompt_of(s, REQUESTS[0]) for s in (shift, SHIFTS[shift.control])]
    assert all(isinstance(p, Prompt) for p in prompts)
    turns = [[t.role for t in p.turns] for p in prompts if isinstance(p, Prompt)]
    words = [sum(len(t.content.split()) for t in p.turns) for p in prompts if isinstance(p, Prompt)]
    assert turns[0] == turns[1]
    assert 0.66 < words[0] / words[1] < 1.5, words


@pytest.mark.parametrize("name", CODED)
def test_a_coded_request_stands_once_in_its_code_and_nowhere_plain(name: str) -> None:
    shift = SHIFTS[name]
    assert shift.codec is not None
    for request in REQUESTS:
        prompt = prompt_of(shift, request)
        assert isinstance(prompt, Prompt)
        text = prompt.turns[-1].content
        assert prompt.turns[-1].role == "user" and text.count(shift.codec.encode(request)) == 1
        assert all(request not in turn.content for turn in prompt.turns)


@pytest.mark.parametrize("name", WRAPPED)
def test_a_wrapped_request_stands_once_and_plain_in_the_last_user_turn(name: str) -> None:
    for request in REQUESTS[:2]:
        prompt = prompt_of(SHIFTS[name], request)
        assert isinstance(prompt, Prompt)
        places = [(turn.role, turn.content.count(request)) for turn in prompt.turns if request in turn.content]
        assert places == [("user", 1)]
        assert [t.role for t in prompt.turns if t.role == "user" or request in t.content][-1] == "user"


@pytest.mark.parametrize("name", [*WRAPPED, *CODED])
def test_every_request_gets_the_same_words(name: str) -> None:
    """Benign or harmful: with the request taken out, what is left is the same, also for an odd request."""
    shift = SHIFTS[name]

    def around(request: str) -> list[tuple[str, str]]:
        prompt = shift.encode(request, Random(3))
        assert isinstance(prompt, Prompt)
        shown = request if shift.codec is None else shift.codec.encode(request)
        if shift.name.startswith("few_shot_json"):
            shown = json.dumps(request)[1:-1]
        return [(turn.role, turn.content.replace(shown, "#")) for turn in prompt.turns]

    first = around("Zqx vwk jjj eio")
    assert first == around("Name eleven kinds of moss {request} %s {0} \\1")
    assert first == around("q" * 3 + "Zebra! " * 30)


def test_no_prompt_relies_on_a_chat_template() -> None:
    """No special tokens or role marks of a model family: a backend renders the turns."""
    marks = ("<|", "|>", "[INST]", "<s>", "</s>", "### Instruction", "\n\nHuman:", "\n\nAssistant:")
    for shift in SHIFTS.values():
        for request in REQUESTS:
            prompt = prompt_of(shift, request)
            for turn in prompt.turns if isinstance(prompt, Prompt) else ():
                assert not [mark for mark in marks if mark in turn.content], shift.name


@pytest.mark.parametrize("name", ALL)
def test_needs_are_what_the_prompt_needs(name: str) -> None:
    shift = SHIFTS[name]
    prompt = prompt_of(shift, REQUESTS[1])
    assert isinstance(prompt, Prompt) and prompt.needs == shift.needs
    probe = shift.probe(Random(0)) if shift.probe else None
    assert probe is None or probe.prompt.needs == shift.needs


def test_disguised_requests_have_a_probe() -> None:
    without = {n for n in ALL if SHIFTS[n].probe is None}
    disguising = {n for n in ALL if SHIFTS[n].family in {"encoding", "noise", "payload", "combination"}}
    plain = {"encoding_frame", "base64_output_only", "code_chameleon_plain", "payload_unsplit"}
    assert disguising & without == plain
    assert set(CODED) & without == set()


@pytest.mark.parametrize("name", [n for n in ALL if SHIFTS[n].probe is not None and n != "none"])
def test_probes_go_through_the_same_disguise(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe's prompt is the shift's own encoding of a plain question; wrong answers and echoes do not pass."""
    asked: list[Question] = []
    import evals.shifts.building as building

    def remember(rng: Random, draw=building.draw) -> Question:  # type: ignore[no-untyped-def]
        asked.append(draw(rng))
        return asked[-1]

    monkeypatch.setattr(building, "draw", remember)
    shift = SHIFTS[name]
    assert shift.probe is not None
    for seed in range(12):
        probe = shift.probe(Random(seed))
        question = asked[-1]
        if name not in {"best_of_n", "typos", "extra_spaces", "filler_words", "payload_splitting", "masked_word"}:
            assert probe.prompt == shift.encode(question.text, Random(0))
        assert probe.prompt.turns[-1].content != question.text
        for wrong in ("", "I'm sorry, but I can't help with that.", question.text, probe.prompt.turns[-1].content):
            assert not probe.check(wrong), wrong
        right = _answer(question)
        assert probe.check(right) and probe.check(f"Sure! It is {right}.")
        if shift.codec is not None and shift.codec.invertible:
            assert probe.check(shift.codec.encode(right))


def _answer(question: Question) -> str:
    """A right answer, found by trying: numbers, facts, or the words to repeat."""
    numbers = [str(n) for n in range(4, 19)]
    facts = ["cold", "cat", "Paris", "ice", "spring", "green", "Tuesday", question.text.partition(": ")[2]]
    right = [word for word in [*numbers, *facts] if word and question.right(word)]
    assert len(right) == 1, (question.text, right)
    return right[0]


@pytest.mark.parametrize("name", ALL)
def test_decoding_leaves_what_it_cannot_read(name: str) -> None:
    for response in ("", "I'm sorry, but I can't help with that.", 'Yes: 1984, [no list], "quoted" and so on.', "🙂"):
        assert SHIFTS[name].decode(response) == response


def test_requests_that_would_stay_as_they_are_are_missing() -> None:
    """Never the untransformed request: an all-digits or foreign request is unchanged under many a code."""
    for name in ALL:
        shift = SHIFTS[name]
        for request in ("", "3", "日本語"):
            prompt = shift.encode(request, Random(0))
            untouched = isinstance(prompt, Prompt) and shift.codec is not None and prompt.turns[-1].content == request
            assert not untouched, (name, request)
    for name in ("rot13", "leetspeak", "disemvowel", "lowercase", "typos", "contractions", "homoglyph", "pig_latin"):
        found = SHIFTS[name].encode("日本語", Random(0))
        assert isinstance(found, Missing) and found.reason == "unchanged" and found.lasting


def test_the_page_is_up_to_date_and_tells_deviations() -> None:
    assert all(SHIFTS[name].differs for name in JAILBROKEN), "a shift of a paper says how it differs from it"
    assert PAGE.read_text() == page(SHIFTS, made_by_model=made_by_model()), "run make docs"
    for name in [*SHIFTS, *LLM_SHIFTS]:
        assert PAGE.read_text().count(f"\n| {name} |") == 1


@pytest.mark.parametrize("name", [*ALL, *LLM_SHIFTS])
def test_shifts_say_what_they_do_and_how_they_decode(name: str) -> None:
    shift = {**SHIFTS, **made_by_model()}[name]
    assert len(shift.about) > 10 and "\n" not in shift.about
    assert shift.decode is same or (shift.decode.__doc__ and "\n" not in shift.decode.__doc__)


def test_asks_is_what_the_factories_take() -> None:
    ask: Asks = dummy
    assert all(make(ask).name == name for name, make in LLM_SHIFTS.items())


if __name__ == "__main__":
    print("\n".join(f'    "{name}": "{frozen_digest(shift)}",' for name, shift in SHIFTS.items()))
