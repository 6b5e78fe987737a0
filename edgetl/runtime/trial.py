"""Trial of a network from elsewhere: it is loaded and run once in a separate process with limits, which may die without harm.

The checks of ``onnx_check`` and ``ir_check`` see what stands in a file and not what it computes: a dozen operators can ask for any amount
of memory or time, and an engine that parses a hostile file may crash. The child gets the bytes that were verified, not paths.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgetl.core.bundle import Bundle
from edgetl.core.config import StrictModel, parse_json
from edgetl.core.manifest import Format, Variant
from edgetl.core.preprocess import Batch
from edgetl.core.system.child_process import child_command, child_environment
from edgetl.errors import EdgetlError, EngineError
from edgetl.runtime.engine import installed, load_engine, read_variant

if sys.platform != "win32":
    import resource

# An engine takes about 0.2 GB for itself; it holds weights as they came, converted, and packed for the kernels, one of each at a time
# for every layer.
BASE_MEMORY_BYTES = 2**30
MEMORY_PER_BYTE_OF_MODEL = 8


def memory_for(model_bytes: int) -> int:
    """Memory limit of an engine, bytes: for itself, for models of ``model_bytes`` together, and for one image."""
    return BASE_MEMORY_BYTES + MEMORY_PER_BYTE_OF_MODEL * model_bytes


@dataclass(frozen=True)
class Limits:
    """Limits of a trial.

    Attributes:
        memory_bytes: private writable memory beyond the interpreter's own, where the system can limit it; mapped libraries do not count.
        cpu_s: computing time, of all threads together, where the system can limit it.
        wall_s: time on the clock.
    """

    memory_bytes: int
    cpu_s: int = 60
    wall_s: float = 180.0

    def __str__(self) -> str:
        return f"{self.memory_bytes / 1e6:.0f} MB of memory, {self.cpu_s} s of computing, {self.wall_s:g} s in all"


class _Job(StrictModel):
    """Job of the child process: one line of JSON before the files."""

    format: Format
    sizes: tuple[int, ...]
    shape: tuple[int, int, int, int]
    pixels: bool = False
    labels: int
    memory_bytes: int
    cpu_s: int


class _Report(StrictModel):
    """Report of the child process."""

    error: str = ""


def try_variant(bundle: Bundle, variant: Variant, *, limits: Limits | None = None) -> None:
    """Load one variant and run one black image in a process of its own, within ``limits``. Takes about a second.

    Without the engine nothing is tried; ``load`` then reports what to install.

    Raises:
        IntegrityError: a file is not the one that the manifest names.
        EngineError: the engine refuses the file, or needs more than the limits, or the process died; the text names the file.
    """
    if not installed(variant.format):
        return
    files = read_variant(bundle, variant)
    sizes = tuple(map(len, files))
    allowed = limits or Limits(memory_for(sum(sizes)))
    shape = (1, *variant.input_shape(bundle.manifest.preprocess))
    labels = len(bundle.manifest.labels)
    job = _Job(
        format=variant.format,
        sizes=sizes,
        shape=shape,
        pixels=variant.input_form == "uint8",
        labels=labels,
        memory_bytes=allowed.memory_bytes,
        cpu_s=allowed.cpu_s,
    )
    problem = _run_child(job, files, allowed)
    if problem:
        raise EngineError(
            f"{bundle.path / variant.files[0].path}: loading it and running one image in a process of its own failed: {problem} "
            f"(allowed: {allowed}). It was not loaded here. Use another variant, or contact the author of the bundle."
        )


def _run_child(job: _Job, files: Sequence[bytes], limits: Limits) -> str:
    """Description of the failure; empty if there is none."""
    given = b"".join([job.model_dump_json().encode(), b"\n", *files])
    try:
        command, nowhere = child_command(__name__, run_trial.__name__), subprocess.DEVNULL
        environment = child_environment()
        done = subprocess.run(
            command, env=environment, input=given, stdout=subprocess.PIPE, stderr=nowhere, timeout=limits.wall_s, check=False
        )
    except subprocess.TimeoutExpired:
        return f"it did not end within {limits.wall_s:g} s"
    except OSError as error:
        return f"{sys.executable or 'no interpreter'} could not be started ({error.strerror})"
    if done.returncode < 0:
        return _describe_signal(-done.returncode)
    try:
        return parse_json(done.stdout, _Report, EngineError, name="the report").error
    except EngineError:
        return f"it ended with code {done.returncode} and without a report"


def _describe_signal(number: int) -> str:
    known = {item.value: item.name for item in signal.Signals}
    name = known.get(number, str(number))
    if name == "SIGXCPU":
        return "it computed for longer than it may"
    return f"it was killed by {name}, as happens when an engine crashes on a file or has too little memory"


def run_trial() -> None:
    """Run in the child process: read a job and its files from the standard input, try them, and report on the standard output."""
    # Engines may print; only the report may reach the parent.
    report = os.dup(1)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    stream = sys.stdin.buffer
    job = parse_json(stream.readline(), _Job, EngineError, name="the job")
    files = [stream.read(size) for size in job.sizes]
    limit_process(job.memory_bytes, cpu_s=job.cpu_s, first_to_die=1000)
    try:
        black: Batch = np.zeros(job.shape, np.uint8) if job.pixels else np.zeros(job.shape, np.float32)
        found = load_engine(job.format, files, threads=1).run(black).shape
        # OpenVINO 2026.4 answers with no rows where it got no memory for a tensor, and without an error.
        wrong = f"it returns the shape {list(found)} for one image, not [1, {job.labels}], probably for lack of memory"
        error = "" if found == (1, job.labels) else wrong
    except (EdgetlError, MemoryError) as caught:
        error = str(caught)[:2000] or "there is not enough memory"
    os.write(report, _Report(error=error).model_dump_json().encode())


def limit_process(memory_bytes: int, *, cpu_s: int | None = None, first_to_die: int) -> None:
    """Limit the private writable memory and the CPU time of this process, if the system supports it.

    Args:
        memory_bytes: in addition to the present memory of the process; mapped libraries do not count.
        cpu_s: of all threads together; none is unlimited.
        first_to_die: 0..1000; where the whole machine runs out of memory, the system ends the process with the highest.
    """
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(first_to_die))
    if sys.platform == "win32":
        return
    # Not RLIMIT_AS, which also counts what engines map or reserve and never write.
    _lower(resource.RLIMIT_DATA, _data_bytes() + memory_bytes, spare=0)
    _lower(resource.RLIMIT_CORE, 0, spare=0)
    if cpu_s is not None:
        _lower(resource.RLIMIT_CPU, cpu_s, spare=5)


def _lower(kind: int, value: int, *, spare: int) -> None:
    """Lower the soft limit to ``value``, and the hard one to ``spare`` more, or to what they are if that is less."""
    _, hard = resource.getrlimit(kind)
    highest = value + spare if hard == resource.RLIM_INFINITY else min(value + spare, hard)
    # macOS refuses some limits below what is in use; the time on the clock still holds.
    with suppress(OSError, ValueError):
        resource.setrlimit(kind, (min(value, highest), highest))


def _data_bytes() -> int:
    """Private writable memory that this process has now; 0 where the system does not count it."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[5])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * resource.getpagesize()
