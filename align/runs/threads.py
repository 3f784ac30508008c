"""Thread settings chosen by the program: one thread per process unless asked, set before or after torch is imported.

A second OpenMP thread beside a busy neighbour made a training step up to 15 times slower (spinning barriers), so every
entry point calls `set_threads` first. It also tells glibc to keep freed memory: handing large tables back to the system
and asking for them again cost 12 to 27 % of a training step here, and more of an exact evaluation.
"""

import ctypes
import os
import sys

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_QUIET = {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}


def set_threads(count: int = 1) -> None:
    """Use `count` computing threads in this process and its children; ValueError below 1."""
    if count < 1:
        raise ValueError(f"threads must be at least 1, not {count}")
    for name in _THREAD_VARIABLES:
        os.environ[name] = str(count)
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    _keep_freed_memory()
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(count)


def _keep_freed_memory() -> None:
    """Raise glibc's thresholds for mapping and trimming; nothing happens on another C library."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def one_thread() -> None:
    """The default for workers and tests."""
    set_threads(1)
