"""Servers that tests share because they do not change their state."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from edgetl.core.bundle import Bundle
from tests.serve.certificates import write_certificate
from tests.serve.serving import TOKEN, Served, serving


@pytest.fixture(scope="session")
def served(bundle: Bundle) -> Iterator[Served]:
    """Server with two threads and otherwise default options. It admits 66 requests."""
    with serving(bundle.path, options=("--threads", "2")) as found:
        yield found
        assert "Traceback" not in found.log()


@pytest.fixture(scope="session")
def server(served: Served) -> str:
    """Host and port of ``served``."""
    return served.address


@pytest.fixture(scope="session")
def token_server(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Server that requires ``TOKEN``."""
    path = tmp_path_factory.mktemp("token") / "token"
    path.write_text(TOKEN + "\n")
    with serving(bundle.path, options=("--token-file", str(path))) as found:
        yield found


@pytest.fixture(scope="session")
def small_server(bundle: Bundle) -> Iterator[Served]:
    """Server with at most 200 file descriptors."""
    with serving(bundle.path, prepare=_limit_descriptors) as found:
        yield found
        assert "Traceback" not in found.log()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Certificate of 127.0.0.1 that expires in five days, and its key."""
    return write_certificate(tmp_path_factory.mktemp("tls"), end=timedelta(days=5))


@pytest.fixture(scope="session")
def tls_server(bundle: Bundle, certificate: tuple[Path, Path]) -> Iterator[Served]:
    """Server with TLS and at most 200 file descriptors."""
    options = ("--tls-cert", str(certificate[0]), "--tls-key", str(certificate[1]))
    with serving(bundle.path, options=options, prepare=_limit_descriptors, scheme="https") as found:
        yield found
        assert "Traceback" not in found.log()


def _limit_descriptors() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
