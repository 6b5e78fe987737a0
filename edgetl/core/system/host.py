"""Host: available cores, instruction sets, memory, versions."""

from __future__ import annotations

import math
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from edgetl.core.system.cgroup import cpu_quota

_CPU_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimdhp",
    "asimddp",
    "i8mm",
    "bf16",
)
_PACKAGES = (
    "edgetl",
    "numpy",
    "pillow",
    "onnxruntime",
    "openvino",
    "torch",
    "torchvision",
    "timm",
    "lightning-fabric",
    "nncf",
    "onnx",
    "scikit-learn",
)


def available_cores() -> int:
    """Return the number of cores that this process may use, by affinity, CPU set and the CPU quota of its control groups."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return cores if quota is None else min(cores, max(1, math.ceil(quota)))


def cpu_flags() -> tuple[str, ...]:
    """Return the instruction sets of this CPU that matter for inference, by their names in Linux; empty on other systems."""
    found = set((_cpuinfo("flags") or _cpuinfo("Features")).split())
    return tuple(flag for flag in _CPU_FLAGS if flag in found)


def has_int8_dot_product() -> bool:
    """Return true if the CPU accumulates int8 products in 32 bits (VNNI, AMX, Arm dot product).

    Other x86 kernels add pairs of products in 16 bits, which saturates unless weights have at most 7 bits (ONNX Runtime, "Quantize ONNX
    models", ``reduce_range``).
    """
    return bool({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"} & set(cpu_flags())) or platform.machine() in ("arm64", "aarch64")


def fingerprint() -> dict[str, str]:
    """Return CPU, cores, instruction sets, memory (MB) and system, for reports and manifests."""
    return {
        "cpu": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "machine": platform.machine(),
        "cores": str(available_cores()),
        "flags": " ".join(cpu_flags()),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "unknown",
        "memory_mb": str(memory_bytes() // 1_000_000) if memory_bytes() else "unknown",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def describe_host() -> str:
    """Describe CPU, cores, instruction sets, load average and system in one line."""
    host = fingerprint()
    return f"{host['cpu']}, {host['cores']} cores, {host['flags']}; load {load_average():.2f}; {host['system']}, Python {host['python']}"


def versions() -> dict[str, str]:
    """Return the versions of edgetl and of its installed libraries."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def load_average() -> float:
    """Return the load average of the last minute; 0 if the system does not report it."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def memory_bytes() -> int:
    """Return the physical memory of this host, bytes; 0 if the system does not report it."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0


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
