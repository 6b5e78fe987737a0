"""``edgetl inspect`` of manifests without the optional fields."""

from __future__ import annotations

from pathlib import Path

from edgetl.core.manifest import MANIFEST_NAME
from tests.command import edgetl
from tests.core.bundles import write_files


def test_a_bundle_without_a_host_is_shown(tmp_path: Path) -> None:
    manifest = write_files(tmp_path)
    assert manifest.host == {}
    (tmp_path / MANIFEST_NAME).write_text(manifest.model_dump_json(indent=1) + "\n", "utf-8")
    done = edgetl("inspect", tmp_path)
    assert done.returncode == 0 and "on an unknown host" in done.stdout, done.stderr
