"""The fixed points page: the numbers of fixed_points.json in tables, and a paragraph per question."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Result = Mapping[str, Any]
NAMES = {
    "plain": "plain sum, KL in the reward",
    "group": 'group scaling (`scale_rewards="group"`)',
    "batch": 'batch scaling (`scale_rewards="batch"`)',
    "gdpo": "GDPO (`normalize_then_sum`)",
    "token_kl": "GRPO's KL, unscaled",
    "token_k3": "GRPO's KL without bias correction, unscaled",
    "grpo": "stock GRPO: group scaling and GRPO's KL",
    "gdpo_trl": "GDPO as TRL runs it: with GRPO's KL",
    "group_finite": "group scaling, groups of 8",
    "gdpo_finite": "GDPO, groups of 8",
    "token_mod": "MOD, token by token",
    "sequence_mod": "MOD, whole responses",
}
SOUPS = {
    "delta": "exact (sum of weight changes, PEFT `cat`)",
    "factors": "averaged factors (official rewarded soups)",
    "peft_linear": "PEFT `linear`",
    "svd": "exact, cut to the specialists' rank (PEFT `svd`)",
}


def page(result: Result) -> str:
    """The Markdown page; a function of the JSON alone."""
    parts = [_opening(result), _method(result), _answers(result), _shares(result), _rates(result), _soups(result)]
    parts += [_worlds(result), _made(result)]
    blocks = "\n\n".join(parts).strip().split("\n\n")
    return "\n\n".join(block if block.startswith(("|", "#", "- ")) else _fill(block) for block in blocks) + "\n"


def _fill(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), width=130, break_long_words=False, break_on_hyphens=False)


def show(value: float | None) -> str:
    if value is None:
        return "none"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def span(interval: Mapping[str, Any] | None, *, by: Callable[[float], float] = float) -> str:
    """Mean [low, high]; "0" where the mean vanishes to printing."""
    if interval is None:
        return ""
    mean, low, high = (by(interval[key]) for key in ("mean", "low", "high"))
    if max(abs(mean), abs(low), abs(high)) < 5e-4:
        return "0"
    return f"{show(mean)} [{show(low)}, {show(high)}]"


def rows_of(result: Result, row: str, *, part: str = "sequences") -> dict[str, Mapping[str, Any]]:
    """World -> numbers of a row, where the world has it."""
    return {world: found["rows"][row] for world, found in result[part].items() if row in found["rows"]}


def extent(
    result: Result, row: str, key: str = "share", *, part: str = "sequences", by: Callable[[float], float] = float
) -> str:
    """Smallest and largest mean over worlds: "0.029 [0.022, 0.036] (sharp pairs) to 0.071 [0.060, 0.081] (triples)".

    Worlds of one-token responses or of one prompt are left out where the row or key says nothing there.
    """
    found = telling(result, row, key, part=part)
    low, high = (pick(found, key=lambda w: found[w]["mean"]) for pick in (min, max))
    first, last = (f"{span(found[w], by=by)} ({w})" for w in (low, high))
    return first if low == high else f"{first} to {last}"


def telling(result: Result, row: str, key: str, *, part: str = "sequences") -> dict[str, Mapping[str, Any]]:
    """World -> interval, without the worlds where the row is exact by construction."""
    found = rows_of(result, row, part=part)
    return {w: r[key] for w, r in found.items() if key in r and not _trivial(result, w, row, key)}


def _trivial(result: Result, world: str, row: str, key: str) -> bool:
    shape = result["sequences"].get(world, {}).get("world", {})
    one_token = shape.get("length") == 1 and row in ("token_kl", "token_mod")
    one_prompt = key in ("log_ratio_range", "share_best_weights") or (row == "group" and key == "share_best_beta")
    return one_token or (shape.get("prompts") == 1 and one_prompt)


def clear(result: Result, row: str, key: str = "share", *, part: str = "sequences", above: float = 0.01) -> str:
    """In how many worlds the whole interval lies above `above`: "4 of 5 worlds"."""
    found = list(telling(result, row, key, part=part).values())
    return f"{sum(x['low'] > above for x in found)} of {len(found)} worlds"


def verdict(result: Result, row: str, key: str = "share", *, part: str = "sequences", above: float = 0.01) -> str:
    """Yes, No, or in how many worlds: whether whole intervals lie above `above`."""
    found = list(telling(result, row, key, part=part).values())
    count = sum(x["low"] > above for x in found)
    return "Yes" if count == len(found) else "No" if count == 0 else f"In {count} of {len(found)} worlds"


def _opening(result: Result) -> str:
    soups = extent(result, "factors, independent A", "difference", part="soups")
    plain = show(max(row["share"]["mean"] for row in rows_of(result, "plain").values()))
    return f"""# What update rules optimise

Does a rule's expected update end at the trade-off that was asked for? Regret shares at the rule's fixed point: 0 is the
exact optimum, 1 the reference; smallest to largest mean over worlds, 95 % intervals over random draws.

- **GDPO** (`normalize_then_sum`), another trade-off than asked: {_found(result, "gdpo", "share_best_beta")}
- **Group scaling** (`scale_rewards="group"`): {extent(result, "group")}
- **Batch scaling**, the asked trade-off at another beta: {extent(result, "batch")}
- **GRPO's KL per token**, no scaling, for more than one token: {_found(result, "token_kl")}
- **Stock GRPO**, group scaling and its own KL: {extent(result, "grpo")}
- **MOD token by token**, for more than one token: {_found(result, "token_mod")}
- **Soups of averaged LoRA factors**, added to the exact soup's: {soups}
- **KL inside the scaled reward** (RLOO, a sequence-KL reward), plain sum: at most {plain}"""


def _found(result: Result, row: str, key: str = "share") -> str:
    return f"{verdict(result, row, key).lower()}; {extent(result, row)}"


def _made(result: Result) -> str:
    return f"""## How it was made

Generated by `{result["command"]}`; all numbers are in [fixed_points.json](fixed_points.json). Code:
`align/testbed/theory/fixed_points.py`, `group_advantages.py`, `low_rank.py`."""


def _method(result: Result) -> str:
    residual = max(r["residual"] for w in result["sequences"].values() for r in w["rows"].values())
    return f"""## How to read it

Every policy here is tabular and every expectation exact: a row is the *fixed point* of a rule's expected update,
where more training would change nothing. So nothing below is due to finite data, unfinished optimisation, or a
network. **Regret share** is the regret at the asked weights and beta over the reference policy's: 0 is the exact
optimum, 1 is doing nothing, more than 1 is worse than doing nothing. Each value is a mean over w = (.25, .75), (.5,
.5), (.75, .25); intervals are 95 % t intervals over {result["draws"]} random draws of rewards and references
({result["soup_draws"]} for soups). The exact form of each rule has share 0, so a share is also the mean difference
to the exact form; for soups, whose exact form has a regret of its own, that difference is a column. The largest
relative change that one more update would make anywhere is {residual:.0e}. Shares over a reference that is nearly
optimal by chance are large, so medians are given, too."""


def _answers(result: Result) -> str:
    gdpo = rows_of(result, "gdpo")
    worse = {w: r["worse_than_reference"] for w, r in gdpo.items()}
    least, most = min(worse, key=lambda w: worse[w]), max(worse, key=lambda w: worse[w])
    times = lambda row, key: extent(result, row, key, by=math.exp)  # noqa: E731
    return f"""## Answers

**Does decoupled normalisation (GDPO) optimise another trade-off than the weights say?**
{verdict(result, "gdpo", "share_best_beta")}: wherever its fixed point is more than one response. On one prompt it
ends at the optimum of weights proportional to w_k / sigma_k, sigma_k being reward k's spread under the trained
policy: the less an objective still varies, the more it counts. In the bandit, where the second reward has three
times the scale of the first, the first counts {span(gdpo["bandit"]["log_ratio"], by=math.exp)} times more than
asked. Over worlds the exchange rate is off, either way, by a factor of {times("gdpo", "log_ratio_size")}, and
within one batch of four prompts the largest rate is {times("gdpo", "log_ratio_range")} times the smallest. So over
several prompts GDPO is the optimum of no weights at any beta: at the best choice of both, shares of
{extent(result, "gdpo", "share_best_weights")} remain. In all its share is {extent(result, "gdpo")}, and it is worse
than doing nothing in {100 * worse[least]:.0f} % ({least}) to {100 * worse[most]:.0f} % ({most}) of draws and
weights. As TRL runs it, with GRPO's own KL: {extent(result, "gdpo_trl")}.

**Does group scaling?** Over several prompts, beyond another beta:
{verdict(result, "group", "share_best_beta").lower()}. It keeps the exchange rate on every prompt (the ratio is off
by a factor of 1) and replaces beta by beta times the prompt's reward spread. That spread shrinks as the policy
sharpens, which lowers beta further, so at small betas the fixed point is a single response whatever beta was.
Shares: {extent(result, "group")}. At the best one beta {extent(result, "group", "share_best_beta")} remain, since
every prompt gets a beta of its own. Batch scaling is the asked trade-off at another beta, the same for all prompts:
{extent(result, "batch")}, and {extent(result, "batch", "share_best_beta")} at the best beta. Where the KL is
*inside* the scaled reward (RLOO, or a sequence-KL reward), scaling does no harm: what it scales is zero at the
optimum, which is the fixed point.

**Is this an effect of infinitely large groups?** Only in part. With exact expectations in groups of 8: group
scaling {extent(result, "group_finite")}, GDPO {extent(result, "gdpo_finite")}.

**Does GRPO's per-token KL in the loss?** {verdict(result, "token_kl")}, for more than one token. For one token it
is exact; in longer responses a token is not charged for the KL of what it leads to. Shares:
{extent(result, "token_kl")}, clearly above 0.01 in {clear(result, "token_kl")}. This is with TRL's
`use_bias_correction_kl`, on by default. Without it the expected gradient is that of the *forward* KL, and the fixed
point is `beta ref / (lambda - r)` and no exponential, for one token as well: {extent(result, "token_k3")}. Stock
GRPO scales by the group on top: {extent(result, "grpo")}.

**Does token-level MOD lose against its exact form?** {verdict(result, "token_mod")}, for more than one token:
{extent(result, "token_mod")}, clearly above 0.01 in {clear(result, "token_mod")}. At a prefix the product of
next-token distributions does not see that the specialists want different continuations of the same token. The
product over whole responses is the optimum in every world.

{_soup_answer(result)}"""


def _soup_answer(result: Result) -> str:
    def over(row: str, key: str = "share") -> str:
        return extent(result, row, key, part="soups")

    def medians(row: str) -> str:
        return ", ".join(f"{show(r['median'])} ({w})" for w, r in rows_of(result, row, part="soups").items())

    def better(row: str) -> str:
        found = [r["exact_better"] for r in rows_of(result, row, part="soups").values()]
        return f"{sum(found)} of {result['soup_draws'] * len(found)}"

    return f"""**Do soups of averaged LoRA factors lose against the exact soup?** In
{better("factors, independent A")} draws. Specialists from independent A: averaging factors adds
{over("factors, independent A", "difference")} to the exact soup's {over("delta, independent A")}. Starting from the
same A does not help once training has moved A: {over("factors, shared A", "difference")} are added (the exact
soup is better in {better("factors, shared A")}). Single draws are far worse than the rest, so the medians say what
is usual: {medians("factors, independent A")} with independent A, {medians("factors, shared A")} with the same A,
against {medians("delta, independent A")} for the exact soup. Cutting the exact soup to the specialists' rank adds
{over("svd, independent A", "difference")}. One policy of that rank trained at the asked weights:
{over("trained at w")}."""


def _tail(row: Mapping[str, Any]) -> str:
    return f"{show(row['median'])}, {show(row['worst'])}, {100 * row['worse_than_reference']:.0f} %"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _shares(result: Result) -> str:
    worlds = list(result["sequences"])

    def cells(key: str) -> list[list[str]]:
        out = []
        for row, name in NAMES.items():
            found = rows_of(result, row)
            out.append([name, *(span(found[w][key]) if w in found else "" for w in worlds)])
        return out

    medians = []
    for row, name in NAMES.items():
        found = rows_of(result, row)
        medians.append([name, *(_tail(found[w]) if w in found else "" for w in worlds)])
    head = ["rule", *worlds]
    return f"""## Regret shares

{_table(head, cells("share"))}

Median, worst draw, and the part of draws and weights that are worse than doing nothing:

{_table(head, medians)}

At the best beta for the asked weights (what is left is another trade-off, or one that differs from prompt to
prompt):

{_table(head, cells("share_best_beta"))}

At the best weights and beta (what is left is the optimum of no weights):

{_table(head, cells("share_best_weights"))}"""


def _rates(result: Result) -> str:
    rows = []
    for row in ("group", "batch", "gdpo"):
        for world, found in rows_of(result, row).items():
            several = result["sequences"][world]["world"]["prompts"] > 1
            wide = span(found["log_ratio_range"], by=math.exp) if several else "one prompt"
            direction, size = (span(found[key], by=math.exp) for key in ("log_ratio", "log_ratio_size"))
            rows.append([f"{NAMES[row]}, {world}", direction, size, wide])
    head = ["rule, world", "first objective counts, times", "off by a factor of, either way"]
    head.append("largest over smallest in a batch")
    return f"""## Exchange rates

Effective c_1 / c_2 over the asked w_1 / w_2, geometric means; KL in the loss, large groups (elsewhere no c exists).

{_table(head, rows)}"""


def _soups(result: Result) -> str:
    rows = []
    for world, found in result["soups"].items():
        for init in ("independent A", "shared A"):
            for how, name in SOUPS.items():
                row = found["rows"][f"{how}, {init}"]
                wins = "" if how == "delta" else f"{row['exact_better']} of {row['share']['n']}"
                rows.append([f"{world}, {init}: {name}", span(row["share"]), _tail(row), span(row["difference"]), wins])
        row = found["rows"]["trained at w"]
        rows.append([f"{world}: one policy trained at w", span(row["share"]), _tail(row), "", ""])
    head = ["soup", "regret share", "median, worst, worse than nothing"]
    head += ["difference to the exact soup", "exact better in"]
    left = ", ".join(
        f"{f['rows']['specialists']['gradient_above_1e-6']} of {f['rows']['specialists']['count']} ({w})"
        for w, f in result["soups"].items()
    )
    return f"""## Soups

Specialists are trained to a stationary point of their exact J within their rank, from B = 0 and a random A; a
gradient above 1e-6 was left in {left}.

{_table(head, rows)}"""


def _worlds(result: Result) -> str:
    rows = []
    for name, found in result["sequences"].items():
        w = found["world"]
        kind = "0 or 1" if w["binary"] else f"normal, scales {w['scales'][0]:g} and {w['scales'][1]:g}"
        spread = f", by prompt times e^±{w['spread']:g}" if w["spread"] else ""
        size = f"{w['words']}^{w['length']}"
        rows.append([name, size, str(w["prompts"]), f"{w['beta']:g}", f"{kind}{spread}", f"{w['correlation']:g}"])
    soups = []
    for name, found in result["soups"].items():
        w = found["world"]
        rewards = f"{w['latent']}, plus noise of sd {w['noise']:g}" if w["noise"] else str(w["latent"])
        soups.append([name, f"{w['prompts']} x {w['responses']}", str(w["rank"]), rewards, f"{w['beta']:g}"])
    return f"""## Worlds

{_table(["world", "responses", "prompts a batch", "beta", "rewards", "correlation"], rows)}

{_table(["world of soups", "prompts x responses", "rank", "rank of the rewards", "beta"], soups)}

References are Dirichlet(1) at every prefix. *bandit* follows a known example of GDPO's drift; *verifiable* has two
pass / fail rewards at a beta in use.

## Limits

- Free logits at every prefix of every prompt: a network ties prompts and prefixes together and stops early, so a
  trained row may be better or worse than its rule's fixed point.
- From the reference in small steps: where a rule has several fixed points, the one reached first.
- Advantages divide by a standard deviation plus 1e-4, as in TRL. Where a rule ends on single responses, this constant
  is what stops it in the limit of large groups; finite groups stop earlier.
- All responses of a world are equally long, so that losses averaged over each response's own tokens
  (`loss_type="grpo"`) and over all tokens agree.
- Two objectives and random rewards without structure; the code takes any number of objectives. Predictions for rows
  of the testbed's worlds: `align/testbed/theory/predictions.py`."""
