"""What machine this is: cores that may be used, instruction sets, versions."""

from __future__ import annotations

import math
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from edgetl.core.system.cgroup import cpu_quota

_CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm")
_PACKAGES = (
    "edgetl",
    "numpy",
    "pillow",
    "onnxruntime",
    "openvino",
    "torch",
    "torchvision",
    "timm",
    "lightning",
    "nncf",
    "onnx",
    "scikit-learn",
)


def available_cores() -> int:
    """Cores that this process may use: those of its affinity and CPU set, limited by the CPU quota of its control groups."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return cores if quota is None else min(cores, max(1, math.ceil(quota)))


def cpu_flags() -> tuple[str, ...]:
    """Instruction sets of this CPU that matter for inference, as Linux names them; empty on other systems."""
    found = set((_cpuinfo("flags") or _cpuinfo("Features")).split())
    return tuple(flag for flag in _CPU_FLAGS if flag in found)


def has_int8_dot_product() -> bool:
    """Whether the CPU adds int8 products in 32 bits (VNNI, AMX, Arm dot product).

    Without it x86 kernels add pairs of products in 16 bits, which saturates unless weights keep to 7 bits (ONNX Runtime,
    "Quantize ONNX models", on ``reduce_range``).
    """
    return bool({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"} & set(cpu_flags())) or platform.machine() in ("arm64", "aarch64")


def fingerprint() -> dict[str, str]:
    """CPU, cores, instruction sets, memory and system, for reports and manifests."""
    return {
        "cpu": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "machine": platform.machine(),
        "cores": str(available_cores()),
        "flags": " ".join(cpu_flags()),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "unknown",
        "memory_mb": _memory_mb(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def describe_host() -> str:
    """CPU, cores, instruction sets, load average and system in one line, for figures."""
    host = fingerprint()
    return f"{host['cpu']}, {host['cores']} cores, {host['flags']}; load {load_average():.2f}; {host['system']}, Python {host['python']}"


def versions() -> dict[str, str]:
    """Versions of edgetl and of the libraries it may use, as far as they are installed."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def load_average() -> float:
    """Processes that wanted a core over the last minute; 0 where the system does not count them."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def _memory_mb() -> str:
    if not hasattr(os, "sysconf"):
        return "unknown"
    return str(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 1_000_000)


def _cpuinfo(key: str) -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text("utf-8", "replace").strip()
    except OSError:
        return ""
