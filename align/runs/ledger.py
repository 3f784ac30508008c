"""What a stage costs while it runs, and where it writes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


def _peak_memory_mb() -> float:
    """The process's largest resident size so far in MiB; 0 where the system does not report it (Windows)."""
    if resource is None:
        return 0.0
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, KiB elsewhere


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
            self.peak_memory_mb = max(self.peak_memory_mb, _peak_memory_mb())


@dataclass(frozen=True)
class Workspace:
    """Where a running stage writes, and the ledger that it charges."""

    folder: Path
    ledger: Ledger
