"""The console command answers help at once, without torch, and turns mistakes into one line and exit code 2."""

from __future__ import annotations

import errno
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from align.errors import UserError
from recipes import cli

HELP_SECONDS = 0.5


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize(
    "arguments", [[], *([command] for command in cli.COMMANDS)], ids=lambda a: " ".join(a) or "align"
)
def test_help_is_quick_and_light(arguments: list[str], root: Path) -> None:
    """CPU seconds, best of three: a busy neighbour stretches the wall clock, not this."""
    code = (
        "import sys; from recipes.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "heavy = {'torch', 'transformers', 'trl', 'datasets', 'moocore', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    seconds = []
    for _ in range(3):
        started = _children_seconds()
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments, "--help"], capture_output=True, text=True, cwd=root, timeout=60
        )
        seconds.append(_children_seconds() - started)
        assert done.returncode == 0, done.stderr
        assert "usage: align" in done.stdout
        if seconds[-1] < HELP_SECONDS:
            break
    assert min(seconds) < HELP_SECONDS


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in cli.COMMANDS)


def test_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pretrian"]) == 2
    assert capsys.readouterr().err == "align: error: unknown command 'pretrian'; did you mean pretrain?\n"


def test_a_mistake_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    def wrong() -> int:
        raise UserError("rows.jsonl line 3: no `prompt`;\n add it")

    assert cli.guarded(wrong) == 2
    assert capsys.readouterr().err == "align: error: rows.jsonl line 3: no `prompt`; add it\n"


def test_a_full_disk_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    def full() -> int:
        raise OSError(errno.ENOSPC, "No space left on device", "runs/x/model.safetensors")

    assert cli.guarded(full) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "runs/x/model.safetensors" in error and "free some space" in error


@pytest.mark.parametrize("number", [errno.EACCES, errno.EEXIST, errno.ENOTDIR, errno.ENOENT, errno.EROFS])
def test_an_unusable_path_is_one_line_and_exit_code_2(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    def refused() -> int:
        raise OSError(number, "no", "runs/x")

    assert cli.guarded(refused) == 2
    assert capsys.readouterr().err == "align: error: runs/x cannot be used (no); check the path and its permissions\n"


def test_another_os_error_is_not_hidden() -> None:
    def broken() -> int:
        raise OSError(errno.EIO, "Input/output error", "runs")

    with pytest.raises(OSError, match="Input/output"):
        cli.guarded(broken)


def test_interrupt_exits_130(capsys: pytest.CaptureFixture[str]) -> None:
    def stopped() -> int:
        raise KeyboardInterrupt

    assert cli.guarded(stopped) == 130
    assert capsys.readouterr().err.count("\n") == 1


def test_the_installed_command_and_the_module_are_the_same() -> None:
    """`align = recipes.cli:main` in the project file."""
    import tomllib

    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    assert project["project"]["scripts"] == {"align": "recipes.cli:main"}
