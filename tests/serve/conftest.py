from __future__ import annotations

from collections.abc import Iterator

import pytest

from edgetl.core.bundle import Bundle
from tests.serve.serving import Served, serving


@pytest.fixture(scope="session")
def served(bundle: Bundle) -> Iterator[Served]:
    """A server of the digits' bundle, its fp32 ONNX variant."""
    with serving(bundle.path) as found:
        yield found


@pytest.fixture(scope="session")
def server(served: Served) -> str:
    """Its host and port."""
    return served.address
