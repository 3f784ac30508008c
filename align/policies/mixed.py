"""Decoding-time mixtures of causal LMs: the rule on next-token log-probabilities, the policy, and its family.

Log-linear: `log pi = sum_i a_i log pi_i`, normalised per token. Power: the mixture of optima of other f-divergences.
Legend: B rows, T tokens, V vocabulary, K objectives; "..." any leading axes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from align import checks
from align.checks import context_of
from align.errors import UserError
from align.models.backbones import ModelPool
from align.models.formats import formatter
from align.policies.base import Component, ModelPolicy, found_model, shared_fields, stored_model, write_family
from align.preferences import Preference, Weights

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

    from align.policies.base import Loaded


NORMALISERS = ("root", "rescale")
_PLAIN = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}


# --------------------------------------------------------------------------------------------------------------- rules


def log_linear(logp: Sequence[Tensor], *, coefficients: Sequence[float]) -> Tensor:
    """`log_softmax(sum_i a_i log pi_i)`, (..., V) from (..., V) each; a_i may be negative.

    What any component with a_i != 0 never draws, the mixture never draws.
    """
    used = [(a, lp) for a, lp in zip(coefficients, logp, strict=True) if a != 0]
    if [a for a, _ in used] == [1.0]:
        return used[0][1]
    total = used[0][0] * used[0][1]
    for a, lp in used[1:]:
        total = total + a * lp
    if min(a for a, _ in used) < 0:  # -inf times a negative number would be drawn always
        total = total.masked_fill(torch.stack([lp.isneginf() for _, lp in used]).any(0), -torch.inf)
    return total.log_softmax(-1)


def power_rescaled(logp: Sequence[Tensor], *, coefficients: Sequence[float], alpha: float) -> Tensor:
    """`log_softmax(-logsumexp_i(log a_i - alpha log pi_i) / alpha)`: the power mean of MOD's code, divided by its sum.

    Shi et al. 2024 rank tokens by it; as a distribution it leaves out the constant that `power_solved` solves for.
    """
    terms = [math.log(a) - alpha * lp for a, lp in zip(coefficients, logp, strict=True) if a > 0]
    return (-torch.stack(terms).logsumexp(0) / alpha).log_softmax(-1)


def power_solved(logp: Sequence[Tensor], *, coefficients: Sequence[float], alpha: float) -> Tensor:
    """The pi with `(pi/ref)^-alpha = sum_i a_i (pi_i/ref)^-alpha + c`, c solved so that pi sums to 1.

    `logp[0]` is the reference, whose own coefficient is part of c. This is f'(pi/ref) = sum_i a_i f'(pi_i/ref) + const
    for the alpha-divergence, f'(x) = (1 - x^-alpha) / alpha (Shi et al. 2024, theorem 2), hence for alpha = 1 that of
    KL(ref || pi). Computed in float64, returned in the inputs' type; RuntimeError should the root not be found.
    """
    ref = logp[0].double()
    terms = [math.log(a) + alpha * (ref - lp.double()) for a, lp in zip(coefficients[1:], logp[1:], strict=True) if a]
    s = torch.stack(terms).logsumexp(0).exp().masked_fill(ref.isneginf(), torch.inf)
    # The mass falls and is convex in c, and at this c one token has probability 1 or more: Newton comes from the left.
    c = ((alpha * ref).exp() - s).amax(-1, keepdim=True)
    for _ in range(200):
        log_pi = ref - (s + c).log() / alpha
        mass = log_pi.exp().sum(-1, keepdim=True)
        if bool((mass - 1).abs().max() < 1e-13):
            break
        c = c + (mass - 1).clamp(min=0) * alpha / (log_pi.exp() / (s + c)).sum(-1, keepdim=True)
    if not bool((mass - 1).abs().max() < 1e-6):
        raise RuntimeError(f"the mixture's normaliser was not found: its mass is {mass.max():g}")
    return log_pi.log_softmax(-1).to(logp[0].dtype)


@dataclass(frozen=True)
class Mixture:
    """One coefficient per component, and the rule: alpha 0 is log-linear (reverse KL), 1 forward KL, else alpha.

    With alpha > 0 and the normaliser `root` the first component is the reference. UserError on coefficients that no
    rule can take.
    """

    coefficients: tuple[float, ...]
    alpha: float = 0.0
    normaliser: str = "root"

    def __post_init__(self) -> None:
        if not all(math.isfinite(a) for a in self.coefficients) or not any(self.coefficients):
            raise UserError(f"a mixture needs finite coefficients, not all 0; got {self.coefficients}")
        if not (self.alpha >= 0 and math.isfinite(self.alpha)):
            raise UserError(f"alpha must be 0 (log-linear) or above, not {self.alpha:g}")
        checks.one_of(self, normaliser=NORMALISERS)
        if self.alpha and min(self.coefficients[1:] if self.normaliser == "root" else self.coefficients) < 0:
            raise UserError("forward_kl and alpha take no negative coefficient; use reverse_kl, or other weights")

    def __call__(self, logp: Sequence[Tensor]) -> Tensor:
        """(..., V) log-probabilities of the mixture from those of its components, each normalised, in order."""
        if self.alpha == 0:
            return log_linear(logp, coefficients=self.coefficients)
        rule = power_solved if self.normaliser == "root" else power_rescaled
        return rule(logp, coefficients=self.coefficients, alpha=self.alpha)


# -------------------------------------------------------------------------------------------------------------- models


class MixedModel:
    """Causal LMs that answer as one: its logits are the mixed log-probabilities, its cache is the list of theirs.

    It has what policies ask of a transformers model: a call, `generate`, `config`, `generation_config`, `device`.
    Sampling is a loop of its own and not a LogitsProcessor in one model's `generate`: every component is then treated
    alike, for any number of them, and no processor of the first one's generation config can act before the mixing.
    """

    training = False

    def __init__(
        self, models: Sequence[PreTrainedModel], mixture: Mixture, *, name: str, ends: Sequence[int] = ()
    ) -> None:
        """`ends`: ids that end a response in the models' prompt format, beside those that each model lists itself."""
        self.models, self.mixture = list(models), mixture
        self.config = min(self.models, key=lambda m: context_of(m) or math.inf).config  # the shortest context counts
        self.generation_config = self.models[0].generation_config
        endings = [tuple(sorted({*_ending_ids(model), *ends})) for model in self.models]
        if len(set(endings)) > 1:
            raise UserError(f"{name} mixes models that end at different tokens; give all of them the same eos_token_id")
        self.ending_ids = endings[0]

    @property
    def device(self) -> torch.device:
        return self.models[0].device

    def eval(self) -> MixedModel:
        """Nothing to do: its components are in eval mode."""
        return self

    def train(self, mode: bool = True) -> MixedModel:
        """Itself; RuntimeError when asked to train."""
        if mode:
            raise RuntimeError("a mixture of models is decoded, not trained")
        return self

    def __call__(
        self,
        *,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Sequence[Cache] | None = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
    ) -> SimpleNamespace:
        """`logits` (B, T, V) are normalised log-probabilities, V the smallest of the components' vocabularies."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        outputs = [
            model(
                **{name: tensor if tensor is None else tensor.to(model.device) for name, tensor in given.items()},
                past_key_values=cache,
                use_cache=use_cache,
                logits_to_keep=logits_to_keep,
            )
            for model, cache in zip(self.models, past_key_values or [None] * len(self.models), strict=True)
        ]
        size = min(out.logits.shape[-1] for out in outputs)
        logp = [out.logits[..., :size].float().log_softmax(-1).to(self.device) for out in outputs]
        return SimpleNamespace(logits=self.mixture(logp), past_key_values=[out.past_key_values for out in outputs])

    def generate(
        self,
        *,
        input_ids: Tensor,
        attention_mask: Tensor,
        max_new_tokens: int,
        pad_token_id: int,
        suppress_tokens: Sequence[int] | None = None,
        **sampling: object,
    ) -> Tensor:
        """(B, T + new) ids: left-padded prompts and a sample of each from the mixture, padded after its end.

        Draws from torch's generator just as `transformers` does, so that a mixture of one model is that model.
        ValueError for another rule of sampling than the mixture's own distribution.
        """
        odd = {key: value for key, value in sampling.items() if key not in _PLAIN or value != _PLAIN[key]}
        if odd:
            raise ValueError(f"a mixture is sampled from its own distribution, not with {odd}")
        input_ids, attention_mask = input_ids.to(self.device), attention_mask.to(self.device)
        endings = torch.tensor(self.ending_ids, device=input_ids.device)
        ended_B = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        rows, mask, tokens, caches = [input_ids], attention_mask, input_ids, None
        for _ in range(max_new_tokens):
            positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
            out = self(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=caches,
                use_cache=True,
                logits_to_keep=1,
            )
            caches, logp_BV = out.past_key_values, out.logits[:, -1]
            if suppress_tokens:
                logp_BV[:, list(suppress_tokens)] = -torch.inf
            drawn_B = torch.multinomial(logp_BV.softmax(-1), 1)[:, 0].masked_fill(ended_B, pad_token_id)
            rows.append(drawn_B[:, None])
            ended_B |= torch.isin(drawn_B, endings)
            if bool(ended_B.all()):
                break
            tokens, mask = drawn_B[:, None], torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        return torch.cat(rows, 1)


def _ending_ids(model: PreTrainedModel) -> set[int]:
    """The ids that end a sequence: the generation config's, else the config's; one or a list."""
    found = getattr(model.generation_config, "eos_token_id", None)
    found = model.config.eos_token_id if found is None else found
    return set() if found is None else {found} if isinstance(found, int) else set(found)


# ------------------------------------------------------------------------------------------------------------ policies


class MixedPolicy(ModelPolicy):
    """Models read side by side, one next-token distribution drawn from; each token costs a pass of every component."""

    def __init__(self, parts: Sequence[str], *, mixture: Mixture, name: str, pool: ModelPool | None = None) -> None:
        if len(parts) != len(mixture.coefficients):
            raise UserError(f"{name} has {len(parts)} models for {len(mixture.coefficients)} coefficients")
        self.parts, self.mixture, self.name = tuple(parts), mixture, name
        self.pool = pool or ModelPool()
        self.rows_per_pass = max(1, 32 // (1 + len(parts)))  # every component's logits are held at once
        self._loaded: Loaded | None = None

    def _load(self) -> Loaded:
        if self._loaded is None:
            tokenizer = self.pool.tokenizer(self.parts)
            models = [self.pool.model(part) for part in self.parts]
            ends = [formatter(tokenizer).format.end]  # the others are each model's own, and must agree
            self._loaded = (MixedModel(models, self.mixture, name=self.name, ends=ends), tokenizer)
        return self._loaded

    def release(self) -> None:
        """Let go of the models, for every policy of the same pool; they are loaded again when asked."""
        super().release()
        self.pool.release()

    def components(self) -> list[Component]:
        """The models in the order of their coefficients, each read at the prompt as it is."""
        return [Component(model) for model in self.model.models]

    def mix(self, logp: Sequence[Tensor]) -> Tensor:
        """The mixture's rule."""
        return self.mixture(logp)

    @property
    def blocks(self) -> int:
        """Logits and log-probabilities of every component, and the mixture's."""
        return 1 + 2 * len(self.parts)


@dataclass(frozen=True)
class MixedFamily:
    """A policy for every point of the simplex: part k enters with coefficient `gains[k] w_k`, beside the base model.

    `base_share` is the base's coefficient: "rest" makes all of them sum to 1 (MOD), "whole" is 1 (guided decoding).
    Policies of one family share their models in memory.
    """

    method: str
    base: str
    parts: tuple[str, ...]
    gains: tuple[float, ...]
    base_share: str = "rest"
    alpha: float = 0.0
    normaliser: str = "root"
    preferences: tuple[Preference, ...] = ()
    optimises: dict[str, str] = field(default_factory=dict)
    point_cost: str = "decode"
    pool: ModelPool = field(default_factory=ModelPool, compare=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.gains) != len(self.parts) or self.base_share not in ("rest", "whole"):
            raise ValueError(f"{len(self.gains)} gains for {len(self.parts)} parts, base share {self.base_share!r}")
        if self.alpha and self.base_share == "whole":
            raise ValueError("guided decoding is log-linear")

    @property
    def domain(self) -> str:
        return f"all weights of {len(self.parts)} objectives"

    def policy(self, preference: Preference) -> MixedPolicy:
        """The mixture at `preference`, the part alone where that is all it is; UserError unless it is K weights."""
        if not isinstance(preference, Weights):
            raise UserError(f"{self.method} answers {len(self.parts)} weights, not {preference.label}")
        return self.policy_at(preference.values)

    def policy_at(self, values: Sequence[float], *, extrapolate: bool = False) -> MixedPolicy:
        """The mixture at K numbers; outside the simplex only with `extrapolate`, and its name then says so."""
        if len(values) != len(self.parts):
            raise UserError(f"{self.method} answers {len(self.parts)} weights, not {Weights.label_of(values)}")
        outside = min(values) < 0 or abs(sum(values) - 1) > 1e-6
        if outside and not extrapolate:
            raise UserError(f"weights {list(values)} are not on the simplex; pass extrapolate=True if that is meant")
        name = f"{self.method}@{Weights.label_of(values)}" + (" (extrapolated)" if outside else "")
        parts, mixture = self.mixture(values)
        return MixedPolicy(parts, mixture=mixture, name=name, pool=self.pool)

    def mixture(self, values: Sequence[float]) -> tuple[tuple[str, ...], Mixture]:
        """The models that are read at `values`, and their coefficients; what has coefficient 0 is not read."""
        own = [gain * value for gain, value in zip(self.gains, values, strict=True)]
        rest = 1 - math.fsum(own)
        base = 1.0 if self.base_share == "whole" else (0.0 if abs(rest) < 1e-9 else rest)
        used = [(path, a) for path, a in zip(self.parts, own, strict=True) if a != 0]
        if not used:
            return (self.base,), Mixture((1.0,))
        if base == 0 and len(used) == 1:  # the part alone, under every rule
            return (used[0][0],), Mixture((1.0,))
        if base != 0 or (self.alpha > 0 and self.normaliser == "root"):
            used = [(self.base, base), *used]
        return tuple(path for path, _ in used), Mixture(tuple(a for _, a in used), self.alpha, self.normaliser)

    def save(self, folder: Path) -> None:
        """Write `family.json`; models below `folder` are stored relative to it."""
        write_family(
            self,
            folder,
            kind="mixed",
            base=stored_model(self.base, folder),
            parts=[stored_model(path, folder) for path in self.parts],
            gains=list(self.gains),
            base_share=self.base_share,
            alpha=self.alpha,
            normaliser=self.normaliser,
        )

    @classmethod
    def from_json(cls, folder: Path, content: Mapping[str, Any]) -> MixedFamily:
        """The family that `save` wrote into `folder`."""
        return cls(
            **shared_fields(content),
            **{name: content[name] for name in ("base_share", "alpha", "normaliser")},
            base=found_model(content["base"], folder),
            parts=tuple(found_model(path, folder) for path in content["parts"]),
            gains=tuple(content["gains"]),
        )
