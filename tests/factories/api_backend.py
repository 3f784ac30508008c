"""An API backend on a fake server, and what tests ask of it."""

from __future__ import annotations

from typing import Any

from evals.backends.base import Completion, Generation
from evals.backends.openai_api import Endpoint, OpenAIBackend
from evals.backends.retries import Patience
from evals.items import Missing, Prompt
from factories.fake_api import FakeAPI, Reply, Seen, answer

KEY = "sk-test-0123456789abcdef"
QUICK = Patience(max_retries=2, first_wait=0.01, longest_wait=0.02, attempt_seconds=2, total_seconds=5)


def backend(api: FakeAPI, *, patience: Patience = QUICK, **options: Any) -> OpenAIBackend:
    return OpenAIBackend("m", endpoint=Endpoint(base_url=api.url, api_key_env="MY_KEY", **options), patience=patience)


def ask(model: OpenAIBackend, *texts: str, config: Generation | None = None) -> list[Completion | Missing]:
    prompts = [Prompt.user(text) for text in texts]
    return model.generate(prompts, config=config or Generation(8), seeds=list(range(len(texts))))


def reasons(found: list[Any]) -> list[str]:
    return [value.reason if isinstance(value, Missing) else "-" for value in found]


def echo(seen: Seen, n: int) -> Reply:
    return answer(f"you said {seen.last_turn}")


def listing(**about: Any) -> dict[str, Any]:
    mine = {"id": "m", "object": "model", "created": 5, "owned_by": "o", **about}
    return {"object": "list", "data": [mine, {"id": "n"}]}
