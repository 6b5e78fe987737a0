"""Host information compared with the system."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import version

import pytest

from edgetl.core.system import host


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux limits a process to some cores")
def test_available_cores_respects_the_cpu_affinity() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        "from edgetl.core.system.host import available_cores as n; print(n())"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip() == "1"


def test_the_fingerprint_has_text_values() -> None:
    found = host.fingerprint()
    assert found["machine"] == platform.machine()
    assert found["cores"] == str(host.available_cores())
    assert all(isinstance(value, str) for value in found.values()) and found["cpu"]


def test_cpu_flags_are_a_subset_of_the_system_flags() -> None:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        known = set(file.read().split())
    assert set(host.cpu_flags()) <= known
    assert ("avx2" in host.cpu_flags()) == ("avx2" in known)


def test_has_int8_dot_product_follows_the_cpu_flags() -> None:
    expected = bool({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"} & set(host.cpu_flags()))
    assert host.has_int8_dot_product() == (expected or platform.machine() in ("arm64", "aarch64"))


def test_versions_are_those_of_the_installed_packages() -> None:
    found = host.versions()
    assert found["numpy"] == version("numpy") and found["edgetl"] == version("edgetl")
    assert "flask" not in found


def test_the_load_average_is_not_negative() -> None:
    assert host.load_average() >= 0.0
