"""Answers on disk: one JSON line per row x preference x prompt (x sample), appended and read back checked."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from align.data.answers import Answer, ExactAnswer, SampledAnswer, parse_answer
from align.errors import UserError
from evals.append import append_lines, cut_unfinished_line


def append_answers(path: Path | str, answers: Iterable[Answer]) -> int:
    """Append answers to a JSONL file, flushed to disk; returns how many.

    A last line without its newline was never finished (a killed process): it is cut off first. UserError naming the
    answer for one that could not be read back; nothing of the batch is then written.
    """
    lines = []
    for number, answer in enumerate(answers, start=1):
        row = answer.jsonable()
        try:
            parse_answer(row)
        except ValueError as error:
            raise UserError(f"{path}: answer {number} of the batch {error}; see align/data/answers.py") from error
        lines.append(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
    path = Path(path)
    cut_unfinished_line(path)
    append_lines(path, lines)
    return len(lines)


def read_answers(path: Path | str) -> list[ExactAnswer | SampledAnswer]:
    """All answers of a JSONL file, in order, of one kind.

    UserError naming file and line for anything that is not a valid answer, for a repeated one, for a file that mixes
    kinds or numbers of objectives, and for a file with none.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file of answers; run the evaluation first") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error}); run the evaluation again") from error
    answers: list[ExactAnswer | SampledAnswer] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            answers.append(parse_answer(json.loads(line)))
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{number}: not valid JSON ({error.msg}); evaluate again") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{number}: the answer {error}; evaluate again") from error
    if not answers:
        raise UserError(f"{path}: holds no answers; run the evaluation first")
    _check_alike(path, answers)
    return answers


def read_exact(path: Path | str) -> list[ExactAnswer]:
    """The answers of a file of exact ones; UserError as `read_answers`, and where they are sampled."""
    answers = [answer for answer in read_answers(path) if isinstance(answer, ExactAnswer)]
    if not answers:
        raise UserError(f"{path}: holds sampled answers, where exact ones are needed; evaluate on a testbed world")
    return answers


def read_sampled(path: Path | str) -> list[SampledAnswer]:
    """The answers of a file of sampled ones; UserError as `read_answers`, and where they are exact."""
    answers = [answer for answer in read_answers(path) if isinstance(answer, SampledAnswer)]
    if not answers:
        raise UserError(f"{path}: holds exact answers, where sampled ones are needed; evaluate by sampling")
    return answers


def _check_alike(path: Path, answers: Sequence[Answer]) -> None:
    kinds = {type(answer) for answer in answers}
    widths = {len(answer.preference) for answer in answers}
    if len(kinds) > 1 or len(widths) > 1:
        raise UserError(f"{path}: mixes exact and sampled cells, or different numbers of objectives; keep one per file")
    seen: set[tuple[object, ...]] = set()
    for number, answer in enumerate(answers, start=1):
        sample = answer.sample if isinstance(answer, SampledAnswer) else None
        key = (answer.row, answer.preference, answer.shift, answer.item, answer.prompt, sample)
        if key in seen:
            raise UserError(f"{path}: answer {number} repeats row, preference, shift, item, prompt and sample")
        seen.add(key)
