"""Shifts of the input: SHIFTS is the list of them; each has a decoder, and where it needs them probe and control."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from random import Random

from align.errors import UserError
from evals.items import Prompt
from evals.shifts import combinations as combination
from evals.shifts import context, noise, payload, prefill, style, tense
from evals.shifts import encodings as encoding
from evals.shifts import personas as persona
from evals.shifts import wrappers as wrapper
from evals.shifts.base import FAMILIES, Asks, Shift
from evals.shifts.building import probe_through
from evals.shifts.by_model import LLM_SHIFTS


def _as_is(request: str, rng: Random) -> Prompt:
    return Prompt.user(request)


NONE = Shift(
    "none", "none", "none", _as_is, probe=probe_through(_as_is), differs="none", about="the request as it is"
)  # fmt: skip

SHIFTS: dict[str, Shift] = {
    "none": NONE,
    # encoding
    "base64": encoding.BASE64,
    "base64_input_only": encoding.BASE64_INPUT_ONLY,
    "base64_output_only": encoding.BASE64_OUTPUT_ONLY,
    "base64_raw": encoding.BASE64_RAW,
    "encoding_frame": encoding.ENCODING_FRAME,
    "rot13": encoding.ROT13,
    "leetspeak": encoding.LEETSPEAK,
    "disemvowel": encoding.DISEMVOWEL,
    "base32": encoding.BASE32,
    "hex": encoding.HEX,
    "binary": encoding.BINARY,
    "url": encoding.URL,
    "decimal": encoding.DECIMAL,
    "html_entities": encoding.HTML_ENTITIES,
    "caesar": encoding.CAESAR,
    "atbash": encoding.ATBASH,
    "self_cipher": encoding.SELF_CIPHER,
    "reverse": encoding.REVERSE,
    "reverse_words": encoding.REVERSE_WORDS,
    "morse": encoding.MORSE,
    "nato": encoding.NATO,
    "braille": encoding.BRAILLE,
    "pig_latin": encoding.PIG_LATIN,
    "tags": encoding.TAGS,
    "variation_selectors": encoding.VARIATION_SELECTORS,
    "full_width": encoding.FULL_WIDTH,
    "homoglyph": encoding.HOMOGLYPH,
    "zero_width": encoding.ZERO_WIDTH,
    "zalgo": encoding.ZALGO,
    "cipher_chat": encoding.CIPHER_CHAT,
    "cipher_chat_no_demos": encoding.CIPHER_CHAT_NO_DEMOS,
    "code_chameleon": encoding.CODE_CHAMELEON,
    "code_chameleon_plain": encoding.CODE_CHAMELEON_PLAIN,
    # noise
    "best_of_n": noise.BEST_OF_N,
    "typos": noise.TYPOS,
    "misspellings": noise.MISSPELLINGS,
    "lowercase": noise.LOWERCASE,
    "uppercase": noise.UPPERCASE,
    "extra_spaces": noise.EXTRA_SPACES,
    "spaces_removed": noise.SPACES_REMOVED,
    "contractions": noise.CONTRACTIONS,
    "filler_words": noise.FILLER_WORDS,
    "punctuation_removed": noise.PUNCTUATION_REMOVED,
    # tense
    "past_tense": tense.PAST_TENSE,
    "future_tense": tense.FUTURE_TENSE,
    "present_tense": tense.PRESENT_TENSE,
    # wrapper
    "prefix_injection": wrapper.PREFIX_INJECTION,
    "prefix_injection_hello": wrapper.PREFIX_INJECTION_HELLO,
    "refusal_suppression": wrapper.REFUSAL_SUPPRESSION,
    "refusal_suppression_inv": wrapper.REFUSAL_SUPPRESSION_INV,
    "distractors": wrapper.DISTRACTORS,
    "distractors_separate": wrapper.DISTRACTORS_SEPARATE,
    "distractors_negated": wrapper.DISTRACTORS_NEGATED,
    "poems": wrapper.POEMS,
    "poems_read": wrapper.POEMS_READ,
    "wikipedia": wrapper.WIKIPEDIA,
    "wikipedia_with_title": wrapper.WIKIPEDIA_WITH_TITLE,
    "plain_article": wrapper.PLAIN_ARTICLE,
    # style
    "style_injection_short": style.STYLE_INJECTION_SHORT,
    "style_injection_short_inv": style.STYLE_INJECTION_SHORT_INV,
    "style_injection_json": style.STYLE_INJECTION_JSON,
    "style_injection_json_inv": style.STYLE_INJECTION_JSON_INV,
    "telegram_style": style.TELEGRAM,
    "code_comments_style": style.CODE_COMMENTS,
    # persona
    "aim": persona.AIM,
    "aim_inv": persona.AIM_INV,
    "nested_fiction": persona.NESTED_FICTION,
    "nested_fiction_inv": persona.NESTED_FICTION_INV,
    "dev_mode_v2": persona.DEV_MODE_V2,
    "dev_mode_inv": persona.DEV_MODE_INV,
    "dev_mode_with_rant": persona.DEV_MODE_WITH_RANT,
    "dev_mode_with_rant_inv": persona.DEV_MODE_WITH_RANT_INV,
    "evil_confidant": persona.EVIL_CONFIDANT,
    "kind_confidant": persona.KIND_CONFIDANT,
    "evil_system_prompt": persona.EVIL_SYSTEM_PROMPT,
    "kind_system_prompt": persona.KIND_SYSTEM_PROMPT,
    # context
    "few_shot_json": context.FEW_SHOT_JSON,
    "few_shot_json_inv": context.FEW_SHOT_JSON_INV,
    "many_shot_1": context.MANY_SHOT_1,
    "many_shot_4": context.MANY_SHOT_4,
    "many_shot_16": context.MANY_SHOT_16,
    "many_shot_neutral_1": context.MANY_SHOT_NEUTRAL_1,
    "many_shot_neutral_4": context.MANY_SHOT_NEUTRAL_4,
    "many_shot_neutral_16": context.MANY_SHOT_NEUTRAL_16,
    "in_context_attack": context.IN_CONTEXT_ATTACK,
    "in_context_neutral": context.IN_CONTEXT_NEUTRAL,
    "in_context_defence": context.IN_CONTEXT_DEFENCE,
    # prefill
    "prefill_5": prefill.PREFILL_5,
    "prefill_10": prefill.PREFILL_10,
    "prefill_20": prefill.PREFILL_20,
    "prefill_40": prefill.PREFILL_40,
    "prefill_neutral_5": prefill.PREFILL_NEUTRAL_5,
    "prefill_neutral_10": prefill.PREFILL_NEUTRAL_10,
    "prefill_neutral_20": prefill.PREFILL_NEUTRAL_20,
    "prefill_neutral_40": prefill.PREFILL_NEUTRAL_40,
    "prefill_refusal": prefill.PREFILL_REFUSAL,
    # payload
    "payload_splitting": payload.PAYLOAD_SPLITTING,
    "payload_unsplit": payload.PAYLOAD_UNSPLIT,
    "masked_word": payload.MASKED_WORD,
    # combination
    "combination_1": combination.COMBINATION_1,
    "combination_1_inv": combination.COMBINATION_1_INV,
    "combination_2": combination.COMBINATION_2,
    "combination_2_inv": combination.COMBINATION_2_INV,
    "combination_3": combination.COMBINATION_3,
}

# The list of 'Jailbroken' (Wei, Haghtalab & Steinhardt 2023) without its two that need a language model (LLM_SHIFTS has
# those) and without `adaptive`, which is a table over the others.
JAILBROKEN: tuple[str, ...] = (
    "none", "prefix_injection", "prefix_injection_hello", "refusal_suppression", "refusal_suppression_inv",
    "style_injection_short", "style_injection_json", "few_shot_json", "distractors", "distractors_negated", "poems",
    "wikipedia", "wikipedia_with_title", "base64", "base64_input_only", "base64_output_only", "base64_raw", "rot13",
    "disemvowel", "leetspeak", "combination_1", "combination_2", "combination_3", "aim", "dev_mode_v2",
    "dev_mode_with_rant", "evil_confidant", "evil_system_prompt",
)  # fmt: skip


def parse_shifts(names: str | Sequence[str], *, ask: Asks | None = None) -> list[Shift]:
    """The shifts of a list of names, each once, in the order named.

    Args:
        names: single names, families, "jailbroken" (the paper's list) or "all" (SHIFTS); a string is split at commas.
        ask: the language model behind the shifts of LLM_SHIFTS, which only their own names ask for.
    Raises:
        UserError: an unknown name (with the nearest one), no name at all, or a shift of LLM_SHIFTS without `ask`.
    """
    parts = names.split(",") if isinstance(names, str) else names
    shifts: dict[str, Shift] = {}
    for name in [part.strip() for part in parts if part.strip()]:
        for shift in _named(name, ask):
            shifts.setdefault(shift.name, shift)
    if not shifts:
        raise UserError("shifts: none named; give names, families or all")
    return list(shifts.values())


def _named(name: str, ask: Asks | None) -> list[Shift]:
    if name == "all":
        return list(SHIFTS.values())
    if name == "jailbroken":
        return [SHIFTS[one] for one in JAILBROKEN]
    if name in SHIFTS:
        return [SHIFTS[name]]
    if name in LLM_SHIFTS:
        if ask is None:
            raise UserError(f"shift {name!r} is made by a language model: name one (--shift-model), or leave it out")
        return [LLM_SHIFTS[name](ask)]
    of_family = [shift for shift in SHIFTS.values() if shift.family == name]
    if of_family:
        return of_family
    if name in FAMILIES:
        raise UserError(f"shift family {name!r} has no shift without files of yours; give the file of translations")
    near = difflib.get_close_matches(name, ["all", "jailbroken", *FAMILIES, *SHIFTS, *LLM_SHIFTS], n=1, cutoff=0.0)
    raise UserError(f"no shift {name!r}; did you mean {near[0]}?")
