"""The objectives of `judge:RUBRIC.yaml@WHERE`: a server that speaks OpenAI's protocol, or a model in memory."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from align.errors import Outage, UserError
from align.objectives.by_content import objectives_of
from evals.backends.keys import AUTO
from evals.backends.retries import Patience
from evals.items import Missing
from evals.judges.criteria import Rubric, RubricScorer

if TYPE_CHECKING:
    from align.objectives.base import Objective
    from evals.judges.llm import Chat

FORM = "judge:RUBRIC.yaml@http://HOST/v1, @MODEL@http://HOST/v1 or @local:DIR"


def judge(
    argument: str,
    *,
    name: str,
    folder: Path | None = None,
    max_tokens: int | None = None,
    seconds: float = 180.0,
    concurrency: int = 8,
    api_key_env: str | None = None,
) -> list[Objective]:
    """An objective for each criterion of the rubric: `name.criterion`, or `name` where there is one alone.

    `folder`: where answers are kept. `max_tokens` of an answer (2,048 of a server's, 512 of a local model's);
    `seconds` that a request may take with all its retries, `concurrency` requests at once, `api_key_env` the variable
    that holds the server's key.
    """
    path, at, where = argument.partition("@")
    if not at or not where:
        raise UserError(f"a judge is written {FORM}; say where it is")
    rubric = Rubric.load(path)
    if where.startswith("local:"):
        directory = where.removeprefix("local:")
        if not directory:
            raise UserError(f"a judge is written {FORM}; name the directory")
        made = partial(local_chat, directory, max_tokens or 512)
    else:
        patience = Patience(total_seconds=seconds, attempt_seconds=min(60.0, seconds), max_concurrency=concurrency)
        made = partial(api_chat, where, patience, max_tokens or 2048, api_key_env or AUTO)
    return objectives_of(RubricScorer(rubric, made, place=where), name=name, folder=folder)


def places(argument: str) -> list[str]:
    """What decides its scores: the rubric's file, and a local model."""
    path, _, where = argument.partition("@")
    return [path, where.removeprefix("local:")] if where.startswith("local:") else [path]


def api_chat(where: str, patience: Patience, max_tokens: int, key: str) -> Chat:
    """The chat at `MODEL@http://HOST/v1`, `http://HOST/v1` (its only model) or `MODEL` (OpenAI's own host).

    Raises Outage where a server cannot be asked for its models, UserError where it has several.
    """
    from evals.backends.openai_api import OPENAI, Endpoint, OpenAIBackend, OpenAIChat

    model, at, address = where.partition("@") if not where.startswith("http") else ("", "@", where)
    if at and not address.startswith("http"):
        raise UserError(f"a judge is written {FORM}; an address begins with http:// or https://")
    endpoint = Endpoint(address or OPENAI, key)
    if not model:
        served = OpenAIBackend("", endpoint=endpoint, patience=patience).served()
        if isinstance(served, Missing):
            raise Outage(f"the judge {where} does not say which model it has ({served.reason}); write MODEL@{where}")
        if len(served) != 1:
            listed = ", ".join(served[:5])
            raise UserError(f"the judge {where} has {len(served)} models ({listed}); write MODEL@{where}")
        (model,) = served
    return OpenAIChat(model, endpoint=endpoint, patience=patience, max_new_tokens=max_tokens)


def local_chat(directory: str, max_tokens: int) -> Chat:
    """A model in memory."""
    from evals.backends.transformers import TransformersBackend
    from evals.judges.local import LocalChat

    return LocalChat(TransformersBackend.load(directory, batch_size=16), max_new_tokens=max_tokens)
