"""Fixtures: a small disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """File system with 1 MB of space."""
    with disks.small_disk(tmp_path / "disk", "1m") as disk:
        yield disk
