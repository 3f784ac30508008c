"""A model behind an OpenAI-compatible API as a backend, and as a chat callable for judges and for shifts that ask one.

Through the official client (`pip install 'align-tradeoffs[api]'`), whose own retries are off: `retries.Caller` does
them, so that pace, waits and limits hold for all threads together. Settings name the environment variable of the key;
the key itself is held for the client alone and is cut out of everything that comes back.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from align.errors import UserError
from align.turns import Turn
from evals.backends.api_replies import Secret, completion_text, echoed_logprobs, meaning, refused_parameter
from evals.backends.base import Completion, Generation
from evals.backends.keys import AUTO, OFFICIAL, host_of, named_for, variable_for
from evals.backends.retries import Caller, Patience
from evals.items import Fields, Json, Missing, Prompt, digest

OPENAI = f"https://{OFFICIAL}/v1"
MOST_TOKENS = 2**31  # that a server may say an answer has
TOKEN_LIMITS = ("max_tokens", "max_completion_tokens")
# What a model may refuse to be told, and what that means for its answers.
LEFT_OUT = {"temperature": "answers are drawn at its own", "seed": "drawn answers cannot be drawn again"}
# What stays the same while a server serves the same model; `created` is the time of the question on some servers.
DESCRIPTION = ("id", "owned_by", "root", "parent", "meta")
PROBE = Prompt((Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c")))


@dataclass(frozen=True)
class Served(Completion):
    """A completion with what the server reports of itself: the model that answered and its system fingerprint, if any.

    Reasoning that a server returns beside the answer (`reasoning_content`) is not in the text: judges read answers.
    """

    model: str | None = None
    system_fingerprint: str | None = None


@dataclass(frozen=True)
class Endpoint:
    """Where and how to ask: what every request of a backend shares.

    Args:
        base_url: the address up to and with "/v1", without credentials.
        api_key_env: name of the environment variable that holds the key, None for a server that wants none. By default
            OPENAI_API_KEY, which goes to OpenAI's own host and to no other.
        system: whether the model takes a system turn.
        prefill: whether the server can go on with a begun answer (vLLM's `continue_final_message`).
        logprobs: whether the legacy completions endpoint echoes the prompt with log-probabilities.
        render: prompt -> the exact text that the legacy endpoint is given (a chat template without its start token,
            which the server adds); None scores single user turns as they are.
        token_limit: the limit's parameter that is tried first; a server that refuses it is asked with the other one.
        count_tokens: text -> tokens, for a server that reports no usage (else the number is None).
        describe: ask the server once what it reports of the model and put that into the fingerprint. A server that does
            not say, or cannot be reached, adds nothing: so re-reading stored cells without the server needs False.
        extra_body: further parameters of every request, as {"chat_template_kwargs": {"enable_thinking": False}}.
    """

    base_url: str = OPENAI
    api_key_env: str | None = AUTO
    system: bool = True
    prefill: bool = False
    logprobs: bool = False
    render: Callable[[Prompt], str] | None = None
    token_limit: str = "max_tokens"
    count_tokens: Callable[[str], int] | None = None
    describe: bool = True
    extra_body: Fields = field(default_factory=dict)

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise UserError("base_url holds credentials or a query; give the plain address, and the key by api_key_env")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"base_url {self.base_url!r} is no http(s) address; give one such as {OPENAI}")
        if self.token_limit not in TOKEN_LIMITS:
            raise UserError(f"token_limit {self.token_limit!r} is not one of {', '.join(TOKEN_LIMITS)}")

    @property
    def host(self) -> str:
        """Host and port: the part of the address that may stand in keys and reports."""
        return host_of(self.base_url)

    @property
    def key_variable(self) -> str | None:
        """The variable whose key is sent, None where none is."""
        return variable_for(self.base_url, named=self.api_key_env)

    def secret(self) -> Secret:
        """The key, from the environment; UserError (which never shows it) where it is unset or cannot be a key."""
        variable = self.key_variable
        if variable is None:
            return Secret("")
        key = os.environ.get(variable, "").strip()
        if not key:
            raise UserError(f"{variable} is not set: export the key of {self.host} there, or name another variable")
        if not key.isascii() or not key.isprintable() or " " in key:
            raise UserError(f"{variable} holds blanks or odd characters, so it is no API key; export it again")
        if key in self.base_url:
            raise UserError(f"base_url holds the key of {variable}; give the plain address")
        return Secret(key)


class OpenAIBackend:
    """A model by name at an endpoint (`base_url` is short for one with defaults). Entries that fail are Missing with
    the reason; order is kept.

    A 401 or 403 ends the batch: what was not sent yet is Missing with the same reason. Pickles and copies hold the
    name of the key's environment variable, never the key. UserError without the client, or without the key.
    """

    def __init__(
        self, model: str, *, base_url: str | None = None, name: str | None = None, endpoint: Endpoint | None = None,
        patience: Patience | None = None,
    ) -> None:  # fmt: skip
        self.model, self.name = model, name or model
        self.endpoint, self.patience = _at(base_url, endpoint), patience or Patience()
        self.can = frozenset(what for what in ("system", "prefill", "logprobs") if getattr(self.endpoint, what))
        self._fingerprint: str | None = None
        self._refused: set[str] = set()
        self._connect()

    def _connect(self) -> None:
        self._openai = openai = _openai()
        self._secret = self.endpoint.secret()
        self._client = openai.OpenAI(
            api_key=self._secret.reveal() or "none", base_url=self.endpoint.base_url, max_retries=0,
            timeout=self.patience.attempt_seconds, http_client=openai.DefaultHttpxClient(follow_redirects=False),
        )  # fmt: skip
        if self.endpoint.host != OFFICIAL:  # else the client sends what OPENAI_ORG_ID and OPENAI_PROJECT_ID hold
            self._client.organization = self._client.project = None
        self._caller: Caller[Any] = Caller(self.patience, sort=lambda error: meaning(error, openai, self._secret))

    def __getstate__(self) -> Json:
        return {key: v for key, v in self.__dict__.items() if key not in ("_client", "_caller", "_secret", "_openai")}

    def __setstate__(self, state: Json) -> None:
        self.__dict__.update(state)
        self._connect()

    def __repr__(self) -> str:
        return f"OpenAIBackend({self.model!r} at {self.endpoint.host}, key from {self.endpoint.key_variable})"

    @property
    def fingerprint(self) -> str:
        """Address, model name, what the server reports of the model, and the prompt format. It holds "weights-unseen":
        weights cannot be fingerprinted over an API: a model changed behind its name is not noticed here.
        """
        if self._fingerprint is None:
            text = None if self.endpoint.render is None else self.endpoint.render(PROBE)
            says = self._description() if self.endpoint.describe else {}
            path = urlsplit(self.endpoint.base_url).path.rstrip("/")
            parts = digest(self.model, says, text, dict(self.endpoint.extra_body), path)
            self._fingerprint = f"api:{self.endpoint.host}:{self.model}:weights-unseen:{parts[:16]}"
        return self._fingerprint

    def _listed(self) -> list[Json] | Missing:
        def ask(seconds: float) -> list[Any]:
            return list(self._client.models.list(timeout=self._timeout(seconds)).data or [])

        answers = self._caller.run([ask])[0]
        return answers if isinstance(answers, Missing) else [entry.to_dict() for entry in answers]

    def served(self) -> list[str] | Missing:
        """The names of the server's models."""
        listed = self._listed()
        return listed if isinstance(listed, Missing) else [str(entry.get("id")) for entry in listed]

    def _description(self) -> Json:
        answers = self._listed()
        listed = [] if isinstance(answers, Missing) else answers
        own: Json = next((entry for entry in listed if entry.get("id") == self.model), {})
        return {key: own[key] for key in DESCRIPTION if own.get(key) is not None}

    def _timeout(self, seconds: float) -> float:
        return max(0.001, min(self.patience.attempt_seconds, seconds))

    def generate(
        self, prompts: Sequence[Prompt], *, config: Generation, seeds: Sequence[int]
    ) -> list[Completion | Missing]:
        """Chat completions, in order. Seeds are sent (31 bits of them) where something is drawn."""
        if len(prompts) != len(seeds):
            raise ValueError(f"{len(prompts)} prompts with {len(seeds)} seeds: one each")
        lacking = [self._lacking(prompt) for prompt in prompts]
        places = [i for i, missing in enumerate(lacking) if missing is None]
        calls = [self._completion_of(prompts[i], config, seeds[i]) for i in places]
        return _placed(lacking, places, self._caller.run(calls))

    def _lacking(self, prompt: Prompt) -> Missing | None:
        lacking = sorted(prompt.needs - self.can)
        return Missing(f"unsupported_{lacking[0]}", f"{self.name} is not set up for it") if lacking else None

    def _completion_of(self, prompt: Prompt, config: Generation, seed: int) -> Callable[[float], Completion]:
        going_on = {"continue_final_message": True, "add_generation_prompt": False} if prompt.prefill else {}
        messages = [{"role": turn.role, "content": turn.content} for turn in prompt.turns]

        def ask(seconds: float) -> Completion:
            reply = self._create(
                config, seed, messages=messages, timeout=self._timeout(seconds),
                extra_body={**self.endpoint.extra_body, **going_on},
            )  # fmt: skip
            text, finished = completion_text(reply, self._secret)
            return Served(text, self._tokens(reply, text), finished, *map(self._secret.line, _origin(reply)))

        return ask

    def _create(self, config: Generation, seed: int, **request: Any) -> Any:
        """The reply, asked for without the parameters that the server says it does not support."""
        while True:
            options = self._options(config, seed)
            try:
                return self._client.chat.completions.create(model=self.model, **request, **options)
            except self._openai.BadRequestError as error:
                name = refused_parameter(error)
                if name not in options or name not in (*TOKEN_LIMITS, *LEFT_OUT):
                    raise
                if name not in self._refused and name in LEFT_OUT:
                    print(f"align: note: the server of {self.name} takes no {name}: {LEFT_OUT[name]}", file=sys.stderr)
                self._refused.add(str(name))

    def _options(self, config: Generation, seed: int) -> Json:
        limits = (self.endpoint.token_limit, *(name for name in TOKEN_LIMITS if name != self.endpoint.token_limit))
        limit = next((name for name in limits if name not in self._refused), limits[0])
        options: Json = {limit: config.max_new_tokens, "temperature": config.temperature}
        if config.temperature > 0:
            options["seed"] = seed & 0x7FFFFFFF
        if config.stop:
            options["stop"] = list(config.stop)
        return {name: value for name, value in options.items() if name not in self._refused or name == limit}

    def _tokens(self, reply: Any, text: str) -> int | None:
        counted = getattr(getattr(reply, "usage", None), "completion_tokens", None)
        sound = isinstance(counted, int) and 0 <= counted <= MOST_TOKENS
        if sound or self.endpoint.count_tokens is None:
            return counted if sound else None
        return self.endpoint.count_tokens(text)

    def continuation_logprobs(
        self, prompts: Sequence[Prompt], *, continuations: Sequence[str]
    ) -> list[tuple[float, int] | Missing]:
        """From the legacy completions endpoint, which echoes prompt + continuation with a log-probability per token.

        Missing("unsupported_logprobs") without `logprobs=True`, or without `render` for more than one user turn;
        Missing("token_boundary") where a token spans the end of the prompt: its value belongs to neither side.
        """
        texts = [self._text(prompt) for prompt in prompts]
        lacking = [text if isinstance(text, Missing) else None for text in texts]
        pairs = list(zip(texts, continuations, strict=True))
        places = [i for i, missing in enumerate(lacking) if missing is None]
        return _placed(lacking, places, self._caller.run([self._logprobs_of(*pairs[i]) for i in places]))  # type: ignore[arg-type]

    def spaced(self, prompt: Prompt, beginning: str) -> str:
        """The beginning of a reply behind a space, or behind the white space that `render` ends with."""
        text = self._text(prompt)
        return beginning if isinstance(text, str) and text[-1:].isspace() else f" {beginning}"

    def _text(self, prompt: Prompt) -> str | Missing:
        if not self.endpoint.logprobs:
            return Missing("unsupported_logprobs", "set logprobs=True where the server echoes prompts")
        if self.endpoint.render is not None:
            return self.endpoint.render(prompt)
        if [turn.role for turn in prompt.turns] != ["user"]:
            return Missing("unsupported_logprobs", "more than one user turn needs render=, the model's prompt format")
        return prompt.turns[0].content

    def _logprobs_of(self, text: str, continuation: str) -> Callable[[float], tuple[float, int]]:
        def ask(seconds: float) -> tuple[float, int]:
            reply = self._client.completions.create(
                model=self.model, prompt=text + continuation, echo=True, logprobs=1, max_tokens=1, temperature=0.0,
                timeout=self._timeout(seconds), extra_body=dict(self.endpoint.extra_body),
            )  # fmt: skip
            return echoed_logprobs(reply, text=text, continuation=continuation)

        return ask


class OpenAIChat:
    """One instruction in, the answer at temperature 0 or Missing out; an answer cut at `max_new_tokens` is Missing.

    `many` asks with the patience's concurrency. The server is not asked to describe the model, so that judged cells can
    be read again while the judge's server is away; nor need it count tokens.
    """

    def __init__(
        self, model: str, *, base_url: str | None = None, endpoint: Endpoint | None = None,
        patience: Patience | None = None, max_new_tokens: int = 512,
    ) -> None:  # fmt: skip
        self.max_new_tokens = max_new_tokens
        endpoint = replace(_at(base_url, endpoint), describe=False)
        self.backend = OpenAIBackend(model, endpoint=endpoint, patience=patience)

    @property
    def fingerprint(self) -> str:
        """The backend's, with the limit of an answer."""
        return f"{self.backend.fingerprint}:{self.max_new_tokens}"

    def __repr__(self) -> str:
        return f"OpenAIChat({self.backend!r})"

    def __call__(self, instruction: str) -> str | Missing:
        return self.many([instruction])[0]

    def many(self, instructions: Sequence[str]) -> list[str | Missing]:
        """Answers in order."""
        config = Generation(self.max_new_tokens, temperature=0.0)
        prompts = [Prompt.user(text) for text in instructions]
        answers = self.backend.generate(prompts, config=config, seeds=[0] * len(prompts))
        return [_whole(completion) for completion in answers]


def chat_of(
    spec: str, *, keys: Mapping[str, str] | None = None, max_new_tokens: int = 512, body: Fields | None = None
) -> OpenAIChat:
    """The chat of MODEL or MODEL@http://HOST/v1; `keys` maps hosts: which variable's key goes to which host. `body`:
    further parameters of every request.

    UserError for an address without http(s)://, which would be a part of a name for OpenAI's own host.
    """
    model, at, address = spec.partition("@http")
    if "@" in model and not at:
        raise UserError(f"llm:{spec}: an address begins with http:// or https://; write llm:MODEL@http://HOST/v1")
    base_url = f"http{address}" if at else OPENAI
    endpoint = Endpoint(base_url, named_for(base_url, keys or {}), extra_body=body or {})
    return OpenAIChat(model, endpoint=endpoint, max_new_tokens=max_new_tokens)


def _whole(completion: Completion | Missing) -> str | Missing:
    if isinstance(completion, Completion) and not completion.finished:
        return Missing("truncated", "the answer was cut at its token limit; raise max_new_tokens")
    if isinstance(completion, Completion) and not completion.text.strip():
        return Missing("empty_completion", "the answer is empty")
    return completion if isinstance(completion, Missing) else completion.text


def _at(base_url: str | None, endpoint: Endpoint | None) -> Endpoint:
    """The endpoint, at `base_url` where that is given."""
    endpoint = endpoint or Endpoint()
    return endpoint if base_url is None else replace(endpoint, base_url=base_url)


def _origin(reply: object) -> tuple[str | None, str | None]:
    return getattr(reply, "model", None), getattr(reply, "system_fingerprint", None)


def _placed(lacking: Sequence[Missing | None], places: Sequence[int], answers: Sequence[Any]) -> list[Any]:
    results: list[Any] = list(lacking)
    for i, value in zip(places, answers, strict=True):
        results[i] = value
    return results


def _openai() -> ModuleType:
    try:
        return importlib.import_module("openai")
    except ImportError:
        raise UserError("the API backend needs the openai package: pip install 'align-tradeoffs[api]'") from None
