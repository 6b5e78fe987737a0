"""Trial of a network: load it and run one image in a separate process with limits on memory and time.

A trial protects against networks of unknown origin. The checks of ``onnx_check`` and ``ir_check`` read the file but do not compute it. A
dozen operators can allocate any amount of memory or run for any time, and a malicious file may crash the engine. Only the child process
fails in these cases. It receives the verified bytes, not paths.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
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

# An engine needs about 0.2 GB. For each layer it keeps the weights as stored, converted, and packed for the kernels.
BASE_MEMORY_BYTES = 2**30
MEMORY_PER_BYTE_OF_MODEL = 8


def memory_for(model_bytes: int) -> int:
    """Return the memory limit of a process, bytes: for the engine, for models with a total of ``model_bytes``, and for one image."""
    return BASE_MEMORY_BYTES + MEMORY_PER_BYTE_OF_MODEL * model_bytes


@dataclass(frozen=True)
class Limits:
    """Limits of a trial.

    Attributes:
        memory_bytes: private writable memory in addition to the interpreter's, if the system supports the limit. Mapped libraries do not
            count.
        cpu_s: CPU time of all threads, seconds, if the system supports the limit.
        wall_s: wall time, seconds.
    """

    memory_bytes: int
    cpu_s: int = 60
    wall_s: float = 180.0

    def __str__(self) -> str:
        return f"{self.memory_bytes / 1e6:.0f} MB of memory, {self.cpu_s} s of CPU time, {self.wall_s:g} s of wall time"


class _Job(StrictModel):
    """Job of the child process: one line of JSON, followed by the files."""

    format: Format
    sizes: tuple[int, ...]
    shape: tuple[int, int, int, int]
    pixels: bool = False
    outputs: int
    memory_bytes: int
    cpu_s: int


class _Report(StrictModel):
    """Report of the child process."""

    error: str = ""


def try_variant(bundle: Bundle, variant: Variant, *, limits: Limits | None = None) -> None:
    """Load one variant and run one black image in a separate process, within ``limits``. It takes about a second.

    If the engine is not installed, there is no trial; ``load`` reports the missing engine.

    Raises:
        IntegrityError: a file does not match the manifest.
        EngineError: the engine cannot load the file, exceeds a limit, or crashes. The message names the file.
    """
    if not installed(variant.format):
        return
    files = read_variant(bundle, variant)
    sizes = tuple(map(len, files))
    allowed = limits or Limits(memory_for(sum(sizes)))
    shape = (1, *variant.input_shape(bundle.manifest.preprocess))
    outputs = bundle.manifest.decoding.outputs
    job = _Job(
        format=variant.format,
        sizes=sizes,
        shape=shape,
        pixels=variant.input_form == "uint8",
        outputs=outputs,
        memory_bytes=allowed.memory_bytes,
        cpu_s=allowed.cpu_s,
    )
    given = b"".join([job.model_dump_json().encode(), b"\n", *files])
    try:
        report = run_child(__name__, run_trial.__name__, given, wall_s=allowed.wall_s)
        problem = parse_json(report, _Report, EngineError, name="the report").error
    except EngineError as error:
        problem = str(error)
    if problem:
        raise EngineError(
            f"{bundle.path / variant.files[0].path}: the trial in a separate process failed: {problem} (limits: {allowed}). "
            f"The model was not loaded. Use another variant, or contact the author of the bundle."
        )


def run_child(module: str, function: str, given: bytes, *, wall_s: float) -> bytes:
    """Run a function of a module in a separate process with ``given`` as its standard input. Return the bytes that it reports.

    The function writes its report to the descriptor of ``take_standard_output``.

    Raises:
        EngineError: the process cannot be started, was killed, exceeded the time limit, or ended without a report. The message is a part
            of a sentence.
    """
    try:
        command, nowhere = child_command(module, function), subprocess.DEVNULL
        environment = child_environment()
        done = subprocess.run(command, env=environment, input=given, stdout=subprocess.PIPE, stderr=nowhere, timeout=wall_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"the process did not finish within {wall_s:g} s") from error
    except OSError as error:
        raise EngineError(f"the interpreter {sys.executable} cannot be started ({error.strerror})") from error
    if done.returncode < 0 or not done.stdout:
        raise EngineError(describe_end(done.returncode))
    return done.stdout


def take_standard_output() -> int:
    """Return a descriptor of the standard output for a report, and discard all other output. Engines may print."""
    report = os.dup(1)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    return report


def describe_end(code: int) -> str:
    """Describe the end of a process without a report, as a part of a sentence. A negative ``code`` is the number of a signal."""
    if code >= 0:
        return f"the process ended with exit code {code} and without a report"
    number = -code
    known = {item.value: item.name for item in signal.Signals}
    name = known.get(number, str(number))
    if name == "SIGXCPU":
        return "the limit of CPU time was exceeded"
    return f"the process was killed by {name}. The engine crashed on the file, or had too little memory"


def run_trial() -> None:
    """Run a trial in the child process: read a job and its files from the standard input, and write the report to the standard output."""
    report, stream = take_standard_output(), sys.stdin.buffer
    job = parse_json(stream.readline(), _Job, EngineError, name="the job")
    files = [stream.read(size) for size in job.sizes]
    limit_process(job.memory_bytes, cpu_s=job.cpu_s, oom_score=1000)
    try:
        black: Batch = np.zeros(job.shape, np.uint8) if job.pixels else np.zeros(job.shape, np.float32)
        found = load_engine(job.format, files, threads=1).run(black).shape
        # If OpenVINO 2026.4 cannot allocate a tensor, it returns no rows and reports no error.
        wrong = (
            f"the model returned the shape {list(found)} for one image, expected [1, {job.outputs}], probably because of too little memory"
        )
        error = "" if found == (1, job.outputs) else wrong
    except (EdgetlError, MemoryError) as caught:
        error = str(caught)[:2000] or "too little memory"
    os.write(report, _Report(error=error).model_dump_json().encode())


def limit_process(memory_bytes: int, *, cpu_s: int | None = None, oom_score: int | None = None) -> None:
    """Limit the private writable memory and the CPU time of this process, if the system supports it.

    Args:
        memory_bytes: limit in addition to the present memory of the process. Mapped libraries do not count.
        cpu_s: CPU time of all threads, seconds. None is unlimited.
        oom_score: out-of-memory score, 0..1000. When the host runs out of memory, Linux ends the process with the highest score. None
            keeps the score.
    """
    if oom_score is not None:
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(str(oom_score))
    if sys.platform == "win32":
        return
    # RLIMIT_AS is not used, because it also counts memory that engines map or reserve and never write.
    _lower(resource.RLIMIT_DATA, _data_bytes() + memory_bytes, spare=0)
    _lower(resource.RLIMIT_CORE, 0, spare=0)
    if cpu_s is not None:
        _lower(resource.RLIMIT_CPU, cpu_s, spare=5)


def _lower(kind: int, value: int, *, spare: int) -> None:
    """Lower the soft limit to ``value`` and the hard limit to ``value + spare``. Lower limits stay."""
    _, hard = resource.getrlimit(kind)
    highest = value + spare if hard == resource.RLIM_INFINITY else min(value + spare, hard)
    # macOS rejects some limits below the present use. The limit of wall time still applies.
    with suppress(OSError, ValueError):
        resource.setrlimit(kind, (min(value, highest), highest))


def _data_bytes() -> int:
    """Return the private writable memory of this process, bytes; 0 if the system does not count it."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[5])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * resource.getpagesize()
