"""Metadata of exported files, including the keys that Intel Model API reads."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from edgetl.core.preprocess import InputForm, PreprocessSpec
from edgetl.core.tasks import OutputDecoding

INPUT_NAME = "input"
OUTPUT_NAME = "logits"

# Blocks of the metadata. In ``metadata_props`` of ONNX a key is its block and its name, joined by a space, as Intel Model API expects.
_BLOCKS = ("model_info", "edgetl")
_INTERPOLATIONS = {"bilinear": "LINEAR", "bicubic": "CUBIC", "nearest": "NEAREST"}


def file_metadata(spec: PreprocessSpec, decoding: OutputDecoding, version: str, form: InputForm = "float") -> dict[str, str]:
    """Return the metadata of an ONNX file: the block ``model_info`` of Intel Model API and the block ``edgetl``."""
    blocks = model_info(spec, decoding, form), own_info(spec, decoding, version, form)
    return {f"{block} {key}": value for block, values in zip(_BLOCKS, blocks, strict=True) for key, value in values.items()}


def model_info(spec: PreprocessSpec, decoding: OutputDecoding, form: InputForm = "float") -> dict[str, str]:
    """Return the block ``model_info`` of Intel Model API: strings, lists separated by spaces, means and scales for 0..255.

    Model API has no equivalent of "resize the shorter side with antialiasing, then crop". ``crop`` is the closest resize type, and its
    predictions are close to edgetl's, not equal. The block ``edgetl`` has the exact preprocessing. Model API has one threshold for all
    labels; the lowest is written. Regression, ordinal and anomaly models get no block. If ``form`` is ``uint8``, the file
    normalizes the pixels, and the block has no mean and scale.
    """
    if decoding.task in ("regression", "ordinal", "anomaly"):
        return {}
    # Model API has no temperature.
    thresholds = decoding.uncalibrated.decision_rule.thresholds
    several = {"multilabel": "True", "confidence_threshold": f"{min(thresholds, default=0.5):g}"}
    normalization = {
        "mean_values": " ".join(f"{value * 255:g}" for value in spec.mean),
        "scale_values": " ".join(f"{value * 255:g}" for value in spec.std),
    }
    return {
        "model_type": "Classification",
        **(several if decoding.task == "multi-label" else {}),
        "labels": " ".join(_words(decoding.labels)),
        **(normalization if form == "float" else {}),
        "reverse_input_channels": "True",
        "resize_type": "standard" if spec.crop_mode == "squash" else "crop",
        "interpolation_mode": _INTERPOLATIONS.get(spec.interpolation, "CUBIC"),
        "output_raw_scores": "True",
        "topk": "1",
    }


def _words(labels: Sequence[str]) -> list[str]:
    """Return the labels without white space and without duplicates, because Model API splits its list at white space.

    ``hot dog`` becomes ``hot_dog``. If that label exists, the changed label gets a number: ``hot_dog-2``.
    """
    taken = {label for label in labels if not re.search(r"\s", label)}
    words = []
    for label in labels:
        word = plain = re.sub(r"\s", "_", label)
        if word != label:
            number = 1
            while word in taken:
                number += 1
                word = f"{plain}-{number}"
            taken.add(word)
        words.append(word)
    return words


def own_info(spec: PreprocessSpec, decoding: OutputDecoding, version: str, form: InputForm = "float") -> dict[str, str]:
    """Return the block ``edgetl``: exact preprocessing, unchanged labels, edgetl's version, and the task unless it is classification."""
    task = {"task": decoding.task, "decision_rule": decoding.decision_rule.model_dump_json()} if decoding.task != "classification" else {}
    pixels = {"input": "uint8 [batch, H, W, 3] RGB, resized and cropped; normalized by the network"} if form == "uint8" else {}
    labels = json.dumps(decoding.labels, ensure_ascii=False)
    return {
        "preprocess": spec.model_dump_json(),
        "labels": labels,
        "version": version,
        "model_info_resize": "approximate",
        **pixels,
        **task,
    }
