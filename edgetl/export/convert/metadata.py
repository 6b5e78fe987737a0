"""Metadata of exported files, in the keys that other tools read."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from edgetl.core.preprocess import InputForm, PreprocessSpec
from edgetl.core.tasks import OutputDecoding

INPUT_NAME = "input"
OUTPUT_NAME = "logits"

# Blocks of the metadata; a key is its block and its name, joined by a space, as Intel Model API reads ``metadata_props`` of ONNX.
_BLOCKS = ("model_info", "edgetl")
_INTERPOLATIONS = {"bilinear": "LINEAR", "bicubic": "CUBIC", "nearest": "NEAREST"}


def file_metadata(spec: PreprocessSpec, decoding: OutputDecoding, version: str, form: InputForm = "float") -> dict[str, str]:
    """Metadata of an ONNX file: Intel Model API's block and our own."""
    blocks = model_info(spec, decoding, form), own_info(spec, decoding, version, form)
    return {f"{block} {key}": value for block, values in zip(_BLOCKS, blocks, strict=True) for key, value in values.items()}


def model_info(spec: PreprocessSpec, decoding: OutputDecoding, form: InputForm = "float") -> dict[str, str]:
    """Intel Model API's ``model_info``: strings, lists separated by spaces, means and scales for 0..255.

    Model API cannot express "resize the shorter side with antialiasing, then crop"; ``crop`` is its nearest resize, so its predictions
    are close to ours and not equal. The exact preprocessing stands under ``edgetl``. It knows one threshold for all labels (the lowest
    is given) and no model of numbers, which get no block. A file that takes pixels (``form``) normalises them itself and names no mean.
    """
    if decoding.task in ("regression", "ordinal"):
        return {}
    several = {"multilabel": "True", "confidence_threshold": f"{min(decoding.decision_rule.thresholds, default=0.5):g}"}
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
    """Labels without white space, all different: Model API splits its list at any white space, so that ``hot dog`` becomes ``hot_dog``.

    Where that word is taken, a number is added to the label that had to change: ``hot_dog-2``.
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
    """The ``edgetl`` block: the exact preprocessing, the labels as they are, the task if it is not classification, and the version."""
    task = {"task": decoding.task, "decision_rule": decoding.decision_rule.model_dump_json()} if decoding.task != "classification" else {}
    taken = {"input": "uint8 [batch, H, W, 3] RGB, resized and cropped; normalised by the network"} if form == "uint8" else {}
    labels = json.dumps(decoding.labels, ensure_ascii=False)
    return {"preprocess": spec.model_dump_json(), "labels": labels, "version": version, "model_info_resize": "approximate", **taken, **task}
