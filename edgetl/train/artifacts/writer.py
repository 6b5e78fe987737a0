"""A run's network as files: the weights, and timm's ``config.json`` beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch

from edgetl.train.artifacts.run import TIMM_CONFIG_NAME, WEIGHTS_NAME
from edgetl.train.networks.backbone import Backbone
from edgetl.train.networks.pruned import PRUNED


def write_model(folder: Path, backbone: Backbone, labels: tuple[str, ...]) -> None:
    """Write the weights, and for timm architectures the ``config.json`` that makes the folder a ``local-dir:`` of timm.

    timm cannot build several columns, a head other than the architecture's own, or a pruned network: these get no ``config.json``.
    """
    state = {key: value.detach().cpu().contiguous() for key, value in backbone.model.state_dict().items()}
    (folder / WEIGHTS_NAME).write_bytes(safetensors.torch.save(state, {"format": "pt"}))
    if hasattr(backbone.model, "pretrained_cfg") and PRUNED not in backbone.model_args:
        (folder / TIMM_CONFIG_NAME).write_text(json.dumps(_timm_config(backbone, labels), indent=2) + "\n", "utf-8", newline="\n")


def _timm_config(backbone: Backbone, labels: tuple[str, ...]) -> dict[str, Any]:
    spec = backbone.spec
    old = dict(getattr(backbone.model, "pretrained_cfg", {}))
    kept = {key: old[key] for key in ("pool_size", "first_conv", "classifier", "fixed_input_size") if key in old}
    if backbone.license:
        kept["license"] = backbone.license
    return {
        "architecture": backbone.architecture,
        "num_classes": len(labels),
        "num_features": backbone.head.in_features,
        "label_names": list(labels),
        "model_args": backbone.model_args,
        "pretrained_cfg": {
            **kept,
            "tag": "edgetl",
            "custom_load": False,
            "input_size": [3, *spec.input_size],
            "interpolation": spec.interpolation,
            "crop_pct": spec.crop_pct,
            "crop_mode": spec.crop_mode,
            "mean": list(spec.mean),
            "std": list(spec.std),
            "num_classes": len(labels),
        },
    }
