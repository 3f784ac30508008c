"""Policies of our families as backends: plain and tagged models in full, decoding rules by sampling only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align import checks
from align.errors import UserError
from align.models.formats import Choice
from align.models.sampling import ending_ids
from align.policies.base import FAMILY_FILE, ModelPolicy
from align.preferences import parse_preference
from align.runs import model_dir
from evals.backends.base import Backend, Completion, Generation
from evals.backends.fingerprints import format_fingerprint, model_fingerprint, tokenizer_fingerprint
from evals.backends.rendering import renderer
from evals.backends.transformers import TransformersBackend
from evals.items import Json, Missing, Prompt, digest


class PolicyBackend:
    """A policy that is a decoding rule (mixed, guided, best-of-n), asked through its own `generate`.

    It samples at temperature 1 with one seed per batch, as the policy does everywhere else here: its completions are
    reproducible at the same batches, not independent of them. Longer prompts than the model has room for are Missing.
    """

    def __init__(
        self, policy: Any, *, name: str, rule: str, template: str | Choice = "auto", batch_size: int = 64
    ) -> None:
        self.policy, self.name, self.batch_size = policy, name, batch_size
        self.renderer = renderer(policy.tokenizer, template=template, place=name)
        self.can = self.renderer.can
        models = [c.model for c in policy.components()] if hasattr(policy, "components") else [policy.model]
        weights = [model_fingerprint(model) for model in models]
        self.context = min((c for c in map(checks.context_of, models) if c is not None), default=None)
        self.fingerprint = digest(
            rule, weights, tokenizer_fingerprint(policy.tokenizer), format_fingerprint(self.renderer.form.format),
            sorted(ending_ids(policy.model, policy.tokenizer)), batch_size,
        )[:16]  # fmt: skip

    def length(self, prompt: Prompt) -> int:
        """Tokens of a prompt (0 where the format cannot say it): what batches are sorted by."""
        ids = self.encode(prompt)
        return 0 if isinstance(ids, Missing) else len(ids)

    def encode(self, prompt: Prompt) -> list[int] | Missing:
        """Token ids of a prompt; Missing where the format has no place for one of its turns."""
        return self.renderer.ids(prompt)

    def generate(
        self, prompts: Sequence[Prompt], *, config: Generation, seeds: Sequence[int]
    ) -> list[Completion | Missing]:
        """One sample each. UserError where greedy decoding or stop words are asked for, which the policy has not."""
        if config.temperature != 1 or config.stop:
            raise UserError(f"{self.name} is a decoding rule that samples; ask with --temperature 1 and no stop words")
        results: list[Completion | Missing] = [Missing("lost")] * len(prompts)
        places = []
        for i, ids in enumerate(map(self.encode, prompts)):
            if isinstance(ids, Missing):
                results[i] = ids
            elif self.context is not None and len(ids) + config.max_new_tokens > self.context:
                results[i] = Missing("context", f"the prompt does not fit in {self.context} tokens", lasting=True)
            else:
                places.append(i)
        if places:
            seed = int(digest(*(seeds[i] for i in places))[:8], 16)
            said = [self.renderer.said(prompts[i]) for i in places]  # the policy puts them into the same format
            drawn = self.policy.draw(
                said, max_new_tokens=config.max_new_tokens, seed=seed, batch_size=self.batch_size
            )  # fmt: skip
            for i, one in zip(places, drawn, strict=True):
                results[i] = Completion(one.text, len(one.ids) - one.ended, one.ended, ids=one.ids)
        return results

    def continuation_logprobs(
        self, prompts: Sequence[Prompt], *, continuations: Sequence[str]
    ) -> list[tuple[float, int] | Missing]:
        """Missing: the log-probabilities of a decoding rule are not offered here."""
        why = Missing("unsupported_logprobs", "a decoding rule gives completions only", lasting=True)
        return [why] * len(prompts)


def backend_of(path: str, *, weights: str | None, template: str | Choice = "auto", batch_size: int = 64) -> Backend:
    """The backend of a model directory, hub id, run, or of a family's policy at a preference.

    UserError where a family is given without a preference (it lists what it can be asked for), or a model with one.
    """
    options: Json = {"template": template, "batch_size": batch_size}
    if not (Path(path) / FAMILY_FILE).is_file():
        model_dir(path)  # first: a folder that is not there is no single model
        if weights is not None:
            raise UserError(f"{path} is a single model; leave out --weights, which asks a family of policies")
        return TransformersBackend.load(path, **options)
    from align.policies.load import load_family
    from align.policies.tagged import TaggedPolicy

    family = load_family(path)
    if weights is None:
        raise UserError(f"{path} is a family of policies; add --weights with one of {family.domain}")
    policy = family.policy(parse_preference(weights))
    name = f"{Path(path).name}@{weights}"
    if isinstance(policy, TaggedPolicy):
        lead = policy.tags.text(policy.values)
        return TransformersBackend(
            policy.model, policy.tokenizer, name=name, lead=lead, banned=policy.banned, **options
        )
    if type(policy) is ModelPolicy:
        return TransformersBackend(policy.model, policy.tokenizer, name=name, **options)
    return PolicyBackend(policy, name=name, rule=_rule(policy), template=template, batch_size=batch_size)


def _rule(policy: Any) -> str:
    """What decides a decoded answer beside the models that are decoded: the mixture, or n and what ranks n samples."""
    scores: Any = getattr(policy, "score", None)
    ranked = [
        (name, weight, type(one).__name__, *(getattr(one, key, None) for key in ("label", "scale", "shift", "end")),
         model_fingerprint(one.model) if hasattr(one, "model") else None)
        for name, weight in getattr(scores, "weights", {}).items() for one in [scores.objectives.get(name)]
    ]  # fmt: skip
    return f"{type(policy).__name__} {getattr(policy, 'mixture', '')} {policy.samples_per_response} {ranked}"
