"""The console command `align`: one sub-command per recipe, user mistakes in one line, nothing heavy until it is needed.

align COMMAND --help
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

from align import __version__
from align.errors import UserError, guarded
from align.runs import threads
from align.runs.packages import check_packages

# command -> (module with main(argv), the line shown by `align --help`)
COMMANDS = {
    "demo": ("recipes.commands.demo", "the exact testbed end to end: worlds, methods, shifts, report"),
    "hh": ("recipes.commands.hh", "real preference data end to end: pretraining to report"),
    "chat": ("recipes.commands.chat", "a chat model end to end: suites, reward models, methods, what changed, report"),
    "planted": (
        "recipes.commands.planted",
        "tiny models with a planted mechanism of failure, and the probes' view of them",
    ),
    "pretrain": ("recipes.commands.pretrain", "text -> a causal language model from scratch (maximum likelihood)"),
    "sft": ("recipes.commands.sft", "a model + demonstrations -> a supervised fine-tuned model, the reference"),
    "reward-model": ("recipes.commands.reward_model", "a model + comparisons -> one reward model (Bradley-Terry)"),
    "cost-model": ("recipes.commands.cost_model", "a model + comparisons with safety labels -> one cost model"),
    "finetune": ("recipes.commands.finetune", "METHOD: the reference + objectives + weights -> a policy family"),
    "consistency": (
        "recipes.commands.consistency",
        "a finished policy + prompts + shifts -> the policy, consistent under them",
    ),
    "evaluate": ("recipes.commands.evaluate", "policy families on held-out prompts -> cells, trade-offs, report"),
    "suites": ("recipes.commands.suites", "policies on suites under shifts -> cells, tables, report"),
    "compare": ("recipes.commands.compare", "any number of evaluations of suites, paired item by item"),
    "correct": ("recipes.commands.correct", "an evaluation's failure rates, corrected for its judge's errors"),
    "attribute": (
        "recipes.commands.attribute",
        "why a policy fails under shifts: competing, mismatched, or unreadable to it",
    ),
    "pushback": ("recipes.commands.pushback", "right answers given up when the user presses without a reason"),
    "depth": ("recipes.commands.depth", "how deep safety goes: KL by position, refusals after k forced tokens"),
    "asr-at-n": ("recipes.commands.asr_at_n", "at least one failure in N draws, measured and extrapolated"),
    "stress": ("recipes.commands.stress", "what a policy keeps when it and its reference are fine-tuned further"),
    "over-optimisation": (
        "recipes.commands.over_optimisation",
        "scored samples -> the best-of-n curve of a proxy against a gold reward",
    ),
    "held-out-families": (
        "recipes.commands.held_out_families",
        "evaluations of suites -> failures by families of shifts trained on and measured",
    ),
    "conformance": ("recipes.commands.conformance", "a trainer of any framework -> which J it optimises, exactly"),
    "merge": ("recipes.models.merge", "an adapter, or a family at a preference -> an ordinary model folder"),
    "score": ("recipes.models.score", "prompts and completions + objectives -> their scores"),
    "push": ("recipes.models.push", "a finished model with a model card -> the hub, or a folder"),
    "doctor": ("recipes.commands.doctor", "what a report of a fault should say: versions, devices, speed, a self-test"),
    "report": ("recipes.commands.report", "summary.json -> one self-contained report.html"),
}


def usage() -> str:
    """The text of `align --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {promise}" for name, (_, promise) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: align COMMAND [options]",
            "",
            "commands:",
            *lines,
            "",
            "align COMMAND --help lists the command's options.",
        ]
    )


def dispatch(argv: Sequence[str]) -> int:
    """Choose the recipe by its command name, set the threads, import it and run it."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        print(f"align {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        near = difflib.get_close_matches(argv[0], COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(COMMANDS)}"
        raise UserError(f"unknown command {argv[0]!r}; {hint}")
    check_packages()
    threads.one_thread()  # before anything imports torch
    return importlib.import_module(COMMANDS[argv[0]][0]).main(list(argv[1:])) or 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `align`; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: dispatch(arguments))


def script(command: str) -> None:
    """What `python -m recipes.commands.X` runs: the same as `align X`."""
    raise SystemExit(main([command, *sys.argv[1:]]))


if __name__ == "__main__":
    raise SystemExit(main())
