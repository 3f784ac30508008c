"""Run directories: a stage's config, metrics, compute ledger and model, written atomically, reused and resumed.

A stage works in `<path>.partial/`, writes `run.json` last, and the folder is renamed to `<path>/`: a folder of that
name is finished or does not exist. A second call with the same fingerprint (stage, config, fingerprints of its
inputs) does nothing.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import platform
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from align.errors import UserError

RUN_FILE = "run.json"
_PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "moocore", "numpy")


def jsonable(value: Any) -> Any:
    """`value` as plain JSON types: dataclasses to dicts, tuples to lists, paths to text; TypeError otherwise."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return jsonable(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be written to a run's JSON")


def fingerprint(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of the canonical JSON of `value`."""
    text = json.dumps(jsonable(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_json(path: Path, value: Any) -> None:
    """Write JSON through a temporary file and a rename, so that a reader never sees half of it."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as handle:
        json.dump(jsonable(value), handle, indent=1, sort_keys=True, ensure_ascii=False)
        handle.write("\n")
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, path)


@dataclass
class Ledger:
    """What a stage cost. `flops` are model FLOPs (6 x parameters x tokens trained, 2 x parameters x tokens read)."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    tokens: int = 0
    flops: float = 0.0
    peak_memory_mb: float = 0.0
    samples_drawn: int = 0
    scores_read: int = 0

    def add(self, *, tokens: int = 0, flops: float = 0.0, samples_drawn: int = 0, scores_read: int = 0) -> None:
        """Charge work to the stage; ValueError on a negative amount."""
        if min(tokens, flops, samples_drawn, scores_read) < 0:
            raise ValueError("a ledger entry cannot be negative")
        self.tokens += tokens
        self.flops += flops
        self.samples_drawn += samples_drawn
        self.scores_read += scores_read

    @contextmanager
    def clock(self) -> Iterator[None]:
        """Add the wall and CPU seconds of the block, and the process's peak memory."""
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - wall
            self.cpu_seconds += time.process_time() - cpu
            self.peak_memory_mb = max(self.peak_memory_mb, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


@dataclass(frozen=True)
class Workspace:
    """Where a running stage writes, and the ledger that it charges."""

    folder: Path
    ledger: Ledger


@lru_cache(maxsize=1)
def commit() -> str | None:
    """The repository's commit, with "+changes" when files differ from it; None outside a repository."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():  # installed from a wheel: another repository's commit would be a false witness
        return None
    try:
        head, changes = (
            subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout.strip()
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+changes" if changes else "")


def environment() -> dict[str, Any]:
    """Versions and machine facts that belong to the provenance of every number."""
    versions: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "commit": commit(),
        "versions": versions,
    }


@dataclass(frozen=True)
class Run:
    """A finished stage on disk."""

    path: Path
    stage: str
    config: dict[str, Any]
    inputs: dict[str, str]
    fingerprint: str
    metrics: dict[str, Any]
    ledger: dict[str, float]
    environment: dict[str, Any] = field(default_factory=dict)


def open_run(path: str | Path) -> Run:
    """Read a finished run; UserError when it is missing or was interrupted."""
    path = Path(path)
    file = path / RUN_FILE
    if not file.is_file():
        if path.with_name(path.name + ".partial").is_dir():
            raise UserError(f"{path} was interrupted before it finished; run its command again to resume it")
        raise UserError(f"{path} is not a run directory (no {RUN_FILE}); give the --out folder of a finished stage")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        for name in ("config", "inputs", "metrics", "ledger", "environment"):
            if not isinstance(content[name], dict):
                raise TypeError(f"{name} is no object")
        if not all(isinstance(cost, (int, float)) for cost in content["ledger"].values()):
            raise TypeError("the ledger holds more than numbers")
        return Run(path=path, **{f.name: content[f.name] for f in dataclasses.fields(Run) if f.name != "path"})
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{file} is damaged ({error}); delete the folder {path} and run its stage again") from error


def _finished(path: Path, key: str) -> Run | None:
    if not (path / RUN_FILE).is_file():
        return None
    run = open_run(path)
    return run if run.fingerprint == key else None


def _check_place(path: Path) -> None:
    """UserError for a folder that no stage wrote: finishing there would delete what it holds."""
    if not path.name:
        raise UserError(f"{path} cannot be a run directory; give --out a folder of its own")
    if path.exists() and not (path / RUN_FILE).is_file() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists and is not a run; give another --out, or move it away")


def _open_partial(partial: Path, key: str) -> None:
    """Keep the work of an interrupted call with the same fingerprint, drop any other."""
    marker = partial / "fingerprint"
    if not (marker.is_file() and marker.read_text().strip() == key):
        for entry in partial.iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    marker.write_text(key + "\n")


@contextmanager
def _alone_in(partial: Path) -> Iterator[None]:
    """Hold the folder against other processes (a killed one lets go); UserError when one keeps it for 10 seconds."""
    partial.mkdir(parents=True, exist_ok=True)
    handle = os.open(partial, os.O_RDONLY)
    try:
        for _ in range(50):  # the workers of a killed parent need a moment to end
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.2)
            except OSError:  # a file system without locks: as if alone
                break
        else:
            raise UserError(f"another process is working in {partial}; wait for it, or end it and run this again")
        if not (partial.is_dir() and os.path.samestat(os.fstat(handle), os.stat(partial))):
            raise UserError(f"another process has just finished {partial}; run the same command again")
        yield
    finally:
        os.close(handle)


def _publish(partial: Path, path: Path) -> None:
    """Give a finished folder its name; an earlier run of that name is set aside first, so that no kill halves it."""
    earlier = path.with_name(path.name + ".replaced")
    shutil.rmtree(earlier, ignore_errors=True)
    if path.exists():
        os.rename(path, earlier)
    os.rename(partial, path)
    shutil.rmtree(earlier, ignore_errors=True)


def run_stage(
    path: str | Path,
    *,
    stage: str,
    config: Any,
    body: Callable[[Path, Ledger], Mapping[str, Any]],
    inputs: Mapping[str, str] | None = None,
) -> Run:
    """Run `body(folder, ledger) -> metrics` once for this fingerprint and return the finished run.

    Raises UserError when the disk fills (the unfinished folder keeps its `.partial` name), when `path` is a folder that
    is no run, and when another process works on it. Whatever else `body` raises passes through, with the same
    guarantee.
    """
    path, inputs = Path(path), dict(inputs or {})
    _check_place(path)
    key = fingerprint({"stage": stage, "config": config, "inputs": inputs})
    done = _finished(path, key)
    if done is not None:
        return done
    partial = path.with_name(path.name + ".partial")
    ledger = Ledger()
    try:
        with _alone_in(partial):
            if _finished(partial, key) is None:  # else it was killed between its last line and its name
                _open_partial(partial, key)
                with ledger.clock():
                    metrics = body(partial, ledger)
                content = {
                    "stage": stage,
                    "config": config,
                    "inputs": inputs,
                    "fingerprint": key,
                    "metrics": metrics,
                    "ledger": ledger,
                    "environment": environment(),
                }
                write_json(partial / RUN_FILE, content)
            _publish(partial, path)
    except Exception as error:
        if disk_is_full(error):
            raise UserError(
                f"no space left on the disk while writing {partial}; free some space and run the same command again"
            ) from error
        raise
    return open_run(path)


def disk_is_full(error: BaseException | None) -> bool:
    """Whether the error, or one that it came from, says that the disk or quota is full."""
    while error is not None:
        text = str(error)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        if "No space left on device" in text or "(os error 28)" in text or "File too large" in text:
            return True  # safetensors and torch wrap the OS error in types of their own
        error = error.__cause__ or error.__context__
    return False


def last_checkpoint(folder: str | Path) -> Path | None:
    """The newest complete trainer checkpoint in `folder`; incomplete ones (interrupted writes) are deleted."""
    complete = []
    for candidate in Path(folder).glob("checkpoint-*"):
        state = candidate / "trainer_state.json"  # the Trainer writes this file last
        try:
            json.loads(state.read_text(encoding="utf-8"))
            complete.append((int(candidate.name.split("-")[1]), candidate))
        except (OSError, ValueError):
            shutil.rmtree(candidate)
    return max(complete)[1] if complete else None


def model_dir(path: str | Path) -> str:
    """What `from_pretrained` takes, from a run directory, a Hugging Face model directory, or a hub id."""
    folder = Path(path)
    if folder.with_name(folder.name + ".partial").is_dir() and not folder.exists():
        open_run(folder)
    if not folder.is_dir():
        beside = folder.parent != Path(".") and folder.parent.is_dir()  # runs/typo is a path, not the hub's runs/typo
        if beside or str(path).startswith((".", "/", "~")) or str(path).count("/") > 1:
            raise UserError(f"model directory {path} does not exist; give a run, a Hugging Face directory or a hub id")
        return str(path)
    if (folder / "model").is_dir():
        folder = folder / "model"
    if not (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder} has no config.json; give a run directory, a Hugging Face directory or a hub id")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        raise UserError(f"{folder} has no tokenizer; save one there with tokenizer.save_pretrained({str(folder)!r})")
    return str(folder)
