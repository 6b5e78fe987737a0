"""timm with ``torch.compile`` in its default mode. Its cache on disk is warm when the cold start is measured."""

from __future__ import annotations

from bench.peers.inference.timm_eager import Eager
from bench.peers.worker import Setting


def load(setting: Setting) -> Eager:
    return Eager(setting, compile_=True)
