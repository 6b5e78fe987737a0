"""Throughput and latency of `edgetl serve`, compared with a prediction loop without a server, FastAPI, and LitServe.

``python -m bench.server.throughput BUNDLE``. wrk runs a closed loop with one 65 KB photograph, with 1 and with 8 connections. The FastAPI
peer uses the same predictor in threads, the LitServe peer in the same number of processes. Each round measures all servers in turn. Ratios
are computed per round; the table has their medians. wrk is a package of Debian. Peers are skipped if they are not installed: ``pip install
fastapi litserve``.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from bench.memory import family, family_mb
from bench.paths import SHARED
from edgetl.core.system.host import available_cores, describe_host, versions
from edgetl.runtime.predictor import load

PHOTO_BYTES = 65_000
_LUA = """
wrk.method, wrk.path = "POST", "{path}"
local file = io.open("{file}", "rb")
wrk.body = file:read("*a")
wrk.headers["Content-Type"] = "{kind}"
done = function(summary, latency)
  local bad = summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
  io.write(string.format('\\nRESULT {{"requests": %d, "us": %d, "p50": %d, "p99": %d, "bad": %d}}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), bad))
end
"""


@dataclass(frozen=True)
class Load:
    """Result of wrk: responses per second, latencies in ms, and the number of errors."""

    rate: float
    p50_ms: float
    p99_ms: float
    bad: int


@dataclass(frozen=True)
class Contender:
    """Server of the comparison: its command line for a port. ``form`` sends the image as a form."""

    name: str
    command: Callable[[int], list[str]]
    form: bool = False


def photo() -> bytes:
    """Return a photograph as a JPEG of about 65 KB, 640 x 480 pixels. Noise is added to reach this size."""
    path = sorted((SHARED / "data/trashnet").rglob("*.jpg"))[0]
    image = Image.open(path).convert("RGB").resize((640, 480))
    grain = np.random.default_rng(0).integers(-8, 9, (480, 640, 1))
    noisy = Image.fromarray((np.asarray(image).astype(int) + grain).clip(0, 255).astype(np.uint8))
    data = b""
    for quality in range(50, 100):
        buffer = io.BytesIO()
        noisy.save(buffer, "JPEG", quality=quality)
        data = buffer.getvalue()
        if len(data) >= PHOTO_BYTES:
            break
    return data


def plain_loop(bundle: Path, variant: str, image: bytes, threads: int, seconds: float) -> float:
    """Return the images per second of prediction threads without a server, in a separate process, for the same encoded image."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "bench.server.throughput",
            "--loop",
            str(seconds),
            str(bundle),
            "--variant",
            variant,
            "--threads",
            str(threads),
        ],
        input=image,
        capture_output=True,
        check=True,
    )
    return float(done.stdout)


def _loop(bundle: Path, variant: str, image: bytes, threads: int, seconds: float) -> float:
    predictor = load(bundle, variant=variant, threads=1)
    counts = [0] * threads
    end = time.monotonic() + 1.0 + seconds
    begin = time.monotonic() + 1.0

    def work(number: int) -> None:
        while time.monotonic() < end:
            started = time.monotonic()
            predictor.predict(image)
            counts[number] += started >= begin

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts) / seconds


def press(address: str, script: Path, connections: int, seconds: float) -> Load:
    """Run wrk as a closed loop and return its result."""
    done = subprocess.run(
        ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "10s", "-s", str(script), address],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.split("RESULT ")[1])
    return Load(found["requests"] / found["us"] * 1e6, found["p50"] / 1e3, found["p99"] / 1e3, found["bad"])


def contenders(bundle: Path, variant: str, threads: int) -> list[Contender]:
    """Return edgetl and the installed peers."""
    module, given = [sys.executable, "-m"], [str(bundle), variant, str(threads)]
    fastapi, litserve = ([*module, f"bench.server.{name}_with_predictor", *given] for name in ("fastapi", "litserve"))

    def edgetl(port: int) -> list[str]:
        options = ["--variant", variant, "--threads", str(threads), "--port", str(port), "--no-access-log"]
        return [*module, "edgetl.cli.app", "serve", str(bundle), *options]

    found = [Contender("edgetl serve", edgetl)]
    if find_spec("fastapi"):
        found.append(Contender("FastAPI, threads", lambda port: [*fastapi, str(port)]))
    if find_spec("litserve"):
        found.append(Contender("LitServe, processes", lambda port: [*litserve, str(port)], form=True))
    return found


def start(command: list[str], port: int, path: str = "/predict") -> subprocess.Popen[bytes]:
    """Start a server and return it when it responds at its port."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    for _ in range(600):
        if process.poll() is not None:
            raise RuntimeError(f"{command} ended with exit code {process.returncode}")
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=1)
            break
        except urllib.error.HTTPError:
            break
        except OSError:
            time.sleep(0.1)
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    """Stop a server and its worker processes. LitServe does not stop its workers itself."""
    members = family(process.pid)
    process.terminate()
    process.wait(60)
    for member in members[1:]:
        with suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)


def scripts(work: Path, image: bytes) -> dict[bool, Path]:
    """Write the scripts for wrk. False: the image is the body. True: the image is part of a form."""
    boundary = "edgetl-bench"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="x.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    bodies = {False: image, True: head.encode() + image + f"\r\n--{boundary}--\r\n".encode()}
    kinds = {False: "image/jpeg", True: f"multipart/form-data; boundary={boundary}"}
    made = {}
    for form, body in bodies.items():
        (work / f"{form}.body").write_bytes(body)
        made[form] = work / f"{form}.lua"
        made[form].write_text(_LUA.format(path="/predict", file=work / f"{form}.body", kind=kinds[form]))
    return made


def closed_loop(bundle: Path, variant: str, threads: int, rounds: int, seconds: float) -> None:
    """Print the results of each round, and a table of medians over the rounds."""
    image, rows = photo(), list[tuple[str, Load, Load, float, float]]()
    with tempfile.TemporaryDirectory() as work:
        made = scripts(Path(work), image)
        for number in range(rounds):
            plain = plain_loop(bundle, variant, image, threads, seconds)
            print(f"round {number + 1}: plain loop {plain:.1f} images/s", flush=True)
            for offset, contender in enumerate(contenders(bundle, variant, threads)):
                port = 8300 + offset
                process = start(contender.command(port), port)
                try:
                    address = f"http://127.0.0.1:{port}"
                    press(address, made[contender.form], 8, 1.0)
                    one = press(address, made[contender.form], 1, seconds / 2)
                    many = press(address, made[contender.form], 8, seconds)
                    memory = family_mb(process.pid)
                finally:
                    end(process)
                rows.append((contender.name, one, many, many.rate / plain, memory))
                print(
                    f"  {contender.name}: 8 connections {many.rate:.1f}/s ({many.rate / plain:.3f} of the plain loop), "
                    f"p50 {many.p50_ms:.1f} ms, p99 {many.p99_ms:.1f} ms; 1 connection {one.rate:.1f}/s, p50 {one.p50_ms:.1f} ms, "
                    f"p99 {one.p99_ms:.1f} ms; {memory:.0f} MB; {one.bad + many.bad} errors",
                    flush=True,
                )
    print("\n| server | throughput / plain loop | p99 at 8 connections / p50 at 1 | RSS MB |\n|---|---|---|---|")
    for name in dict.fromkeys(row[0] for row in rows):
        mine = [row for row in rows if row[0] == name]
        throughput = np.median([row[3] for row in mine])
        ratio = np.median([row[2].p99_ms / row[1].p50_ms for row in mine])
        print(f"| {name} | {throughput:.3f} | {ratio:.1f} | {max(row[4] for row in mine):.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.server.throughput", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--variant", default="openvino-fp32")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--loop", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.loop:
        print(_loop(given.bundle, given.variant, sys.stdin.buffer.read(), given.threads, given.loop))
        return
    if not shutil.which("wrk"):
        parser.exit(3, "wrk is not installed: apt install wrk\n")
    print(describe_host())
    print(", ".join(f"{name} {version}" for name, version in versions().items()))
    closed_loop(given.bundle, given.variant, given.threads, given.rounds, given.seconds)


if __name__ == "__main__":
    main()
