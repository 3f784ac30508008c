"""Write the generated pages of docs/: `python -m docs.generate`, which is what `make docs` runs."""

from __future__ import annotations

from pathlib import Path

from align.methods import METHODS
from docs.generate import files_page, methods_page, shifts_page
from evals.items import Missing
from evals.shifts import SHIFTS
from evals.shifts.base import Shift
from evals.shifts.by_model import LLM_SHIFTS

ROOT = Path(__file__).resolve().parents[2]


def shifts_made_by_model() -> dict[str, Shift]:
    """The shifts that need a language model, with none behind them: enough to describe them."""

    def nobody(instruction: str) -> Missing:
        return Missing("llm")

    return {name: make(nobody) for name, make in LLM_SHIFTS.items()}


def pages() -> dict[Path, str]:
    """Path -> content of each generated page, as the sources have it now."""
    methods = ROOT / "docs" / "methods.md"
    return {
        ROOT / "docs" / "files.md": files_page.page(ROOT),
        methods: methods_page.rewritten(methods.read_text(encoding="utf-8"), METHODS),
        ROOT / "docs" / "shifts.md": shifts_page.page(SHIFTS, made_by_model=shifts_made_by_model()),
    }


def main() -> None:
    """Write each page that differs from its sources, and print its name."""
    for path, content in pages().items():
        if not path.exists() or path.read_text(encoding="utf-8") != content:
            path.write_text(content, encoding="utf-8")
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
