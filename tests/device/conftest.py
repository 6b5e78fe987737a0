"""Fixtures: a small bundle without real models, and key pairs."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetl.device.keys import PrivateKey, generate_key, read_private_key
from edgetl.device.signature import Trust, sign_bundle, trust_keys
from tests.core.bundles import write_folder
from tests.core.conftest import small_disk as small_disk


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Bundle with two variants. Its model files are not models, because no engine opens them."""
    return write_folder(tmp_path / "bundle")


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the key pairs ``release`` and ``other``."""
    root = tmp_path_factory.mktemp("keys")
    for name in ("release", "other"):
        generate_key(root / f"{name}.key")
    return root


@pytest.fixture(scope="session")
def key(keys: Path) -> PrivateKey:
    """Private key ``release``."""
    return read_private_key(keys / "release.key")


@pytest.fixture(scope="session")
def trust(key: PrivateKey) -> Trust:
    """Trust of the key ``release``."""
    return trust_keys([key.public])


@pytest.fixture
def signed(folder: Path, key: PrivateKey) -> Path:
    """The bundle, signed by the key ``release``."""
    sign_bundle(folder, key)
    return folder
