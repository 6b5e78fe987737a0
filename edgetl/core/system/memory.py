"""Out-of-memory errors: recognize them in the errors of all libraries, and report the memory limit and the remedy."""

from __future__ import annotations

import sys
from pathlib import Path

from edgetl.errors import OutOfMemoryError

if sys.platform != "win32":
    import resource

# Texts of the dynamic linker, C++ libraries, ONNX Runtime and torch for a failed allocation.
_TEXTS = ("failed to map segment", "cannot allocate memory", "bad_alloc", "failed to allocate memory", "can't allocate memory", "errno 12")


def is_out_of_memory(error: BaseException) -> bool:
    """Return true if ``error`` of any library is a failed memory allocation."""
    return isinstance(error, MemoryError) or any(text in str(error).lower() for text in _TEXTS)


def out_of_memory(work: str) -> OutOfMemoryError:
    """Make the error for ``work`` that failed, such as ``loading onnxruntime``, with memory use, limit and remedy."""
    used, limit = _used_mb(), _limit_mb()
    has = f" It uses {used} MB of address space" if used else ""
    of = f". Its limit is {limit} MB" if limit and used else f" The limit is {limit} MB of address space" if limit else ""
    return OutOfMemoryError(
        f"{work}: this process has too little memory.{has}{of}{'.' if has or of else ''} Raise the limit (ulimit -v, LimitAS= and "
        f"MemoryMax= of systemd, the container's memory), or use less memory: --threads 1, a smaller variant, smaller batches or images."
    )


def _limit_mb() -> int | None:
    if sys.platform == "win32":
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit // 1_000_000


def _used_mb() -> int | None:
    try:
        lines = Path("/proc/self/status").read_text("utf-8", "replace").splitlines()
    except (OSError, MemoryError):
        return None
    found = [line.split()[1] for line in lines if line.startswith("VmSize:")]
    return int(found[0]) * 1024 // 1_000_000 if found else None
