"""From names to what measures: the model's backend, and every measurement with the judges and models that it reads."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from align.errors import UserError
from evals.backends.keys import named_for, read_keys, unsent
from recipes.pipeline.inputs import load_objectives, objective_keys
from recipes.suites.options import Options

if TYPE_CHECKING:
    from evals.backends.base import Backend
    from evals.backends.reward_model import RewardBackend
    from evals.measure.measurements import Measurement


def backend_for(model: str, options: Options) -> Backend | RewardBackend:
    """The model in memory, or the server's."""
    if options.api is not None:
        from evals.backends.openai_api import Endpoint, OpenAIBackend

        return OpenAIBackend(model, endpoint=Endpoint(options.api, named_for(options.api, _keys(options))))
    from evals.backends.policies import backend_of
    from evals.backends.reward_model import RewardBackend, is_reward_model

    if is_reward_model(model):
        return RewardBackend.load(model, template=options.template, batch_size=options.batch_size)
    return backend_of(model, weights=options.weights, template=options.template, batch_size=options.batch_size)


def measurements_for(
    names: Iterable[str], *, options: Options, backend: Backend | RewardBackend
) -> dict[str, Measurement]:
    """Name -> measurement, each made once: a judge or a reward model is loaded before the first cell is measured."""
    from evals.backends.base import Generation
    from evals.measure.measurements import Choices, CompletionOf, Comprehension, RefusalMargin
    from evals.measure.model_measurements import BitsPerByte
    from evals.measure.pair_scores import PairScores

    generation = Generation(options.max_new_tokens, options.temperature)
    makers: dict[str, Callable[[], Measurement]] = {
        "completion": lambda: CompletionOf(generation),
        "verdict": lambda: _verdict(options),
        "comprehension": lambda: Comprehension(generation),
        "choices": Choices,
        "margin": RefusalMargin,
        "rewards": lambda: _rewards(options, backend),
        "against_reference": lambda: _against_reference(options, backend),
        "bits": BitsPerByte,
        "pairs": PairScores,
    }
    return {name: makers[name]() for name in dict.fromkeys(names)}


def _keys(options: Options) -> dict[str, str]:
    return read_keys(options.api_key_env)


def _verdict(options: Options) -> Measurement:
    from evals.judges import make_judge
    from evals.measure.verdict import Verdict

    return Verdict(make_judge(options.judge, keys=_keys(options)))


def _rewards(options: Options, backend: Backend | RewardBackend) -> Measurement:
    from evals.backends.policies import PolicyBackend
    from evals.backends.transformers import TransformersBackend
    from evals.measure.model_measurements import Rewards

    if not isinstance(backend, (TransformersBackend, PolicyBackend)):
        raise UserError("the measurement rewards reads prompts as a model in memory saw them; leave --api out")
    keys = {k.removeprefix("objective "): v for k, v in objective_keys(options.objectives).items()}
    return Rewards(load_objectives(options.objectives), keys, backend.renderer)


def _against_reference(options: Options, backend: Backend | RewardBackend) -> Measurement:
    from evals.backends.transformers import TransformersBackend
    from evals.measure.model_measurements import AgainstReference

    if options.reference is not None:
        loaded = TransformersBackend.load(
            options.reference, template=options.template, batch_size=options.batch_size
        )  # fmt: skip
        return AgainstReference(loaded)
    if not isinstance(backend, TransformersBackend):
        raise UserError("against_reference needs --reference MODEL")
    return AgainstReference(backend.reference())


def note_unsent_keys(options: Options) -> None:
    """A line on stderr for each server that OPENAI_API_KEY is not sent to although it is set."""
    specs = [*options.judge, *([options.shift_model] if options.shift_model else [])]
    addresses = [f"http{s.partition('@http')[2]}" for s in specs if s.startswith("llm:") and "@http" in s]
    for address in dict.fromkeys([*([options.api] if options.api else []), *addresses]):
        line = unsent(address, _keys(options))
        if line is not None:
            print(f"align: note: {line}", file=sys.stderr)
