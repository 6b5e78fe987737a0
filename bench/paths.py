"""Folder of the reference images and weights."""

from __future__ import annotations

import os
from pathlib import Path

SHARED = Path(os.environ.get("EDGETL_SHARED", Path(__file__).parents[2] / "shared"))
