"""arm64 device under emulation: ``python -m tests.arm64`` builds it in ``.arm64/`` (``make test-arm64``).

Debian's arm64 Python and the aarch64 wheels of a device run in qemu's user-mode emulation. The host is not changed: apt uses its own
folders, packages are unpacked without installation, and no root rights are needed. Needs qemu-user-static, apt-get and dpkg-deb, the
package sources of a Debian host, and a Python package registry. The first call downloads 150 MB.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
# ``make clean`` removes it.
FOLDER = ROOT / ".arm64"
ENGINES = ("onnxruntime", "openvino")
DEBIAN_PACKAGES = ("python3", "libstdc++6")
# Lowest glibc with an OpenVINO wheel for aarch64. Debian 12 has glibc 2.36.
WHEELS = "aarch64-manylinux_2_35"


class Arm64Error(Exception):
    """The emulated device cannot be built. The message is the missing program, or a command and the end of its output."""


@dataclass(frozen=True)
class Cpu:
    """Emulated CPU. ``midr`` is its main ID register, ``features`` are the flags of ``/proc/cpuinfo``."""

    name: str
    midr: int
    features: str


# Raspberry Pi 4, without int8 dot products, and Raspberry Pi 5, with int8 dot products and float16 arithmetic.
CPUS = {
    "cortex-a72": Cpu("cortex-a72", 0x410FD083, "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"),
    "cortex-a76": Cpu(
        "cortex-a76",
        0x414FD0B1,
        "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
    ),
}


def main() -> int:
    """Build the device and return the exit code."""
    try:
        build_device()
    except Arm64Error as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def build_device() -> None:
    """Build the device with this checkout and the engine versions of this environment.

    Unpacked Debian packages are kept for the next call. The Python packages are always installed again.

    Raises:
        Arm64Error: a program is missing, no package source is reachable, or an engine has no wheel for aarch64.
    """
    _qemu()
    system = FOLDER / "system"
    if not system.exists():
        _unpack_debian(system)
    _install_packages(system)


def select_cpu(name: str) -> Path:
    """Set the CPU of the device, and return its interpreter.

    The interpreter is a script, which the host can start: child processes work without binfmt_misc. It is in the folder of the emulated
    interpreter, and passes its own path as the program name. Python then finds its library, and ``sys.executable`` is the script.
    """
    system, cpu = FOLDER / "system", CPUS[name]
    _describe_cpu(system, cpu)
    python = system / "usr/bin/python"
    emulated = system / "usr/bin/python3"
    python.write_text(f'#!/bin/sh\nexec "{_qemu()}" -cpu {cpu.name} -L "{system}" -0 "$0" "{emulated}" "$@"\n', "utf-8")
    python.chmod(0o755)
    return python


def _qemu() -> str:
    for program in ("qemu-aarch64-static", "qemu-aarch64"):
        if found := shutil.which(program):
            return found
    raise Arm64Error("qemu-aarch64-static is not installed. Install Debian's package qemu-user-static.")


def _unpack_debian(system: Path) -> None:
    """Download Debian's arm64 Python with all its dependencies, and unpack the packages in ``system``."""
    apt, part = FOLDER / "apt", system.with_suffix(".part")
    for folder in (apt / "state/lists/partial", apt / "cache/archives/partial"):
        folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "root",
        "Dir::State": apt / "state",
        # No package counts as installed, so that all dependencies are downloaded.
        "Dir::State::status": "/dev/null",
        "Dir::Cache": apt / "cache",
    }
    options = [f"--option={name}={value}" for name, value in settings.items()]
    _run("apt-get", "update", "--quiet", *options)
    _run("apt-get", "install", "--quiet", "--yes", "--no-install-recommends", "--download-only", *options, *DEBIAN_PACKAGES)
    shutil.rmtree(part, ignore_errors=True)
    # Debian 13 has no packages with files in /lib.
    (part / "usr/lib").mkdir(parents=True)
    (part / "lib").symlink_to("usr/lib")
    for package in sorted((apt / "cache/archives").glob("*.deb")):
        _run("dpkg-deb", "--extract", package, part)
    part.rename(system)
    shutil.rmtree(apt)


def _install_packages(system: Path) -> None:
    """Install this checkout with both engines, in the engine versions of this environment, which the test compares with."""
    wheels, name = FOLDER / "wheel", (system / "usr/bin/python3").readlink().name
    for folder in (wheels, site := system / "usr/local/lib" / name / "dist-packages"):
        shutil.rmtree(folder, ignore_errors=True)
    _run(sys.executable, "-m", "uv", "build", "--quiet", "--wheel", "--out-dir", wheels, ROOT)
    (wheel,) = wheels.glob("*.whl")
    target = ("--target", site, "--python-platform", WHEELS, "--python-version", name.removeprefix("python"), "--only-binary", ":all:")
    engines = [f"{engine}=={version(engine)}" for engine in ENGINES]
    _run(sys.executable, "-m", "uv", "pip", "install", "--quiet", *target, f"{wheel}[{','.join(ENGINES)}]", *engines)


def _describe_cpu(system: Path, cpu: Cpu) -> None:
    """Write the files in which the libraries look for the CPU. qemu opens a file of ``system`` instead of the file of the host.

    qemu 7.2 does not emulate ``/proc/cpuinfo``. ONNX Runtime 1.29 and later crash on that of an x86-64 host.
    """
    processor = (
        f"BogoMIPS\t: 108.00\nFeatures\t: {cpu.features}\nCPU implementer\t: {cpu.midr >> 24:#x}\nCPU architecture: 8\n"
        f"CPU variant\t: {cpu.midr >> 20 & 0xF:#x}\nCPU part\t: {cpu.midr >> 4 & 0xFFF:#x}\nCPU revision\t: {cpu.midr & 0xF}\n\n"
    )
    identification = "sys/devices/system/cpu/cpu0/regs/identification/midr_el1"
    for name, text in (("proc/cpuinfo", f"processor\t: 0\n{processor}"), (identification, f"{cpu.midr:#018x}\n")):
        path = system / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")


def _run(*command: object) -> None:
    words = list(map(str, command))
    try:
        subprocess.run(words, capture_output=True, text=True, check=True)
    except OSError as error:
        raise Arm64Error(f"{words[0]} cannot be started: {error.strerror}") from error
    except subprocess.CalledProcessError as error:
        raise Arm64Error(f"{' '.join(words)}\n{error.stdout[-1000:]}\n{error.stderr[-1000:]}") from error


if __name__ == "__main__":
    sys.exit(main())
