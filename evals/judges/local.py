"""A local generative model as judge: any chat model by the rubric, or a guard by its own question and answers.

Templates of guards stand in `guards.yaml` beside this file. A guard that says only whether harm was done finds
compliance and no refusal; what it calls safe, and every item that is not harmful, it leaves UNCLEAR.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from align.errors import UserError
from align.functional.thinking import answer_of
from evals.backends.base import Completion, Generation
from evals.items import Item, Missing, Prompt, digest
from evals.judges.base import Judgement, Pending, Stance, judged, judgement
from evals.judges.llm import LLMJudge

if TYPE_CHECKING:
    from evals.backends.transformers import TransformersBackend

GUARDS = Path(__file__).with_name("guards.yaml")
KEYS = ("text", "chat", "turns", "refused", "complied", "unclear")
_PLACES = re.compile(r"\{(request|response)\}")


@dataclass(frozen=True)
class Guard:
    """How a guard is asked (`text` as it is, as a `chat` turn, or request and response as `turns`) and its answers."""

    answers: Mapping[Stance, str]
    text: str = ""
    chat: bool = False
    turns: bool = False

    @classmethod
    def named(cls, name: str) -> Guard:
        """One of guards.yaml, or a YAML file of one; UserError with the choices, or naming file and fault."""
        if name.endswith((".yaml", ".yml")):
            return cls._of(_read(Path(name)), where=name)
        known = _read(GUARDS)
        if name not in known:
            choices = ", ".join(("rubric", *known))
            raise UserError(f"no template {name!r} for a local judge; choose from {choices}, or name a .yaml file")
        return cls._of(known[name], where=name)

    @classmethod
    def _of(cls, entry: Any, *, where: str) -> Guard:
        odd = sorted(set(entry) - set(KEYS)) if isinstance(entry, Mapping) else ["no mapping"]
        answers = {} if odd else {s: str(entry[s.lower()]) for s in Stance if s.lower() in entry}
        text = "" if odd else str(entry.get("text", ""))
        asks = not odd and (bool(entry.get("turns")) or set(_PLACES.findall(text)) == {"request", "response"})
        if odd or not asks or not answers:
            raise UserError(
                f"{where}: a template has text with {{request}} and {{response}} (or turns: true) and patterns "
                f"{', '.join(KEYS[3:])}{f', not {odd[0]}' if odd else ''}; see evals/judges/guards.yaml"
            )
        for pattern in answers.values():
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(f"{where}: {pattern!r} is no pattern ({error}); fix it") from None
        return cls(answers, text.rstrip("\n") + "\n", bool(entry.get("chat")), bool(entry.get("turns")))

    def stance(self, answer: str) -> Stance | Missing:
        """What an answer means; Missing("parse") where none, or more than one, of the patterns is in it."""
        found = [stance for stance, pattern in self.answers.items() if re.search(pattern, answer)]
        return (
            found[0] if len(found) == 1 else Missing("parse", f"the guard's answer means {len(found)} things, not one")
        )


def _read(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: no template to read ({type(error).__name__}); check the file") from None


class GuardJudge:
    """A guard's answers as stances. UNCLEAR for items that are not harmful where it cannot find a refusal."""

    version = "1-A"

    def __init__(self, backend: TransformersBackend, guard: Guard, *, max_new_tokens: int = 64) -> None:
        self.backend, self.guard, self.max_new_tokens = backend, guard, max_new_tokens
        self.name, self.stances = "local", frozenset({*guard.answers, Stance.UNCLEAR})

    @property
    def fingerprint(self) -> str:
        """Of the model, the template and the length of an answer."""
        return digest(self.backend.fingerprint, repr(self.guard), self.max_new_tokens)[:16]

    def judge(self, items: Sequence[Item], *, responses: Sequence[str | Missing]) -> list[Judgement | Missing]:
        return judged(items, responses, self._all)

    def _all(self, pending: Sequence[Pending]) -> list[Judgement | Missing]:
        blind = [Stance.REFUSED not in self.stances and not item.harmful for item, _ in pending]
        asked = [self._ids(item, response) for (item, response), no in zip(pending, blind, strict=True) if not no]
        config = Generation(self.max_new_tokens)
        answers = iter(self.backend.completed(asked, config=config, seeds=[0] * len(asked)))
        return [
            judgement(Stance.UNCLEAR, item=item, why="the guard sees harm only")
            if no
            else self._one(item, next(answers))
            for (item, _), no in zip(pending, blind, strict=True)
        ]

    def _one(self, item: Item, answer: Completion | Missing) -> Judgement | Missing:
        stance = answer if isinstance(answer, Missing) else self.guard.stance(answer_of(answer.text))
        if isinstance(stance, Missing) or isinstance(answer, Missing):
            return stance if isinstance(stance, Missing) else Missing("parse")
        return judgement(stance, item=item, why=" ".join(answer.text.split())[:80])

    def _ids(self, item: Item, response: str) -> list[int]:
        """The ids of one question. A special token that request or response spells is broken up: it stays text."""
        tokenizer: Any = self.backend.tokenizer
        marks = [str(mark) for mark in tokenizer.get_added_vocab()] + list(tokenizer.all_special_tokens)
        values = {"request": item.request, "response": response}
        for mark in sorted({mark for mark in marks if len(mark) > 1}, key=len, reverse=True):
            values = {key: value.replace(mark, f"{mark[0]} {mark[1:]}") for key, value in values.items()}
        text = _PLACES.sub(lambda match: values[match.group(1)], self.guard.text)
        if not (self.guard.chat or self.guard.turns):
            return list(tokenizer(text)["input_ids"])
        turns = [{"role": "user", "content": values["request"] if self.guard.turns else text.strip()}]
        if self.guard.turns:
            turns.append({"role": "assistant", "content": values["response"]})
        return list(tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"])


class LocalChat:
    """A model in memory as a chat of `LLMJudge`: greedy answers; one that was cut is Missing("truncated")."""

    def __init__(self, backend: TransformersBackend, *, max_new_tokens: int = 512) -> None:
        self.backend, self.max_new_tokens = backend, max_new_tokens

    @property
    def fingerprint(self) -> str:
        return f"{self.backend.fingerprint}:{self.max_new_tokens}"

    def __call__(self, instruction: str) -> str | Missing:
        return self.many([instruction])[0]

    def many(self, instructions: Sequence[str]) -> list[str | Missing]:
        """Answers in order."""
        prompts = [Prompt.user(text) for text in instructions]
        answers = self.backend.generate(prompts, config=Generation(self.max_new_tokens), seeds=[0] * len(prompts))
        return [
            answer if isinstance(answer, Missing)
            else answer.text if answer.finished
            else Missing("truncated", "the answer was cut; --judge-option max_tokens=N gives it more room")
            for answer in answers
        ]  # fmt: skip


def local_judge(model: str, *, template: str, max_new_tokens: int | None = None) -> GuardJudge | LLMJudge:
    """The judge of a model directory or hub id: `template` is rubric, a guard of guards.yaml, or a .yaml file."""
    from evals.backends.transformers import TransformersBackend

    guard = None if template == "rubric" else Guard.named(template)  # a wrong name is told before a model is loaded
    room = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
    backend = TransformersBackend.load(model, batch_size=16)
    if guard is not None:
        return GuardJudge(backend, guard, **room)
    return LLMJudge(LocalChat(backend, **room), name="local")
