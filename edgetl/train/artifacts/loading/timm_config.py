"""timm configuration: ``config.json`` of ``local-dir:`` folders and ``hf-hub:`` repositories, checked against an allow-list.

timm itself accepts every key, including locations of weights. Here only keys that describe the network are accepted. The weights are
loaded only from the source that the user named.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from timm.models import load_model_config_from_hf

from edgetl.core.config import problems
from edgetl.core.preprocess import Side
from edgetl.errors import BackboneError, first_line
from edgetl.train.config.weights_dir import local_dir_config
from edgetl.train.networks.model_args import architecture_problem, args_problem

Size = tuple[int, Side, Side]
Names = str | tuple[str, ...] | None


class PublishedConfig(BaseModel):
    """Allowed keys of timm's ``pretrained_cfg``: preprocessing and names of layers. Other keys are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    tag: str | None = None
    input_size: Size = (3, 224, 224)
    test_input_size: Size | None = None
    min_input_size: Size | None = None
    fixed_input_size: bool = False
    interpolation: str = "bicubic"
    crop_pct: float = Field(default=0.875, gt=0.0)
    test_crop_pct: float | None = None
    crop_mode: str = "center"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    num_classes: int = Field(default=1000, ge=0, le=1_000_000)
    label_offset: int | None = Field(default=None, ge=0, le=1)
    pool_size: tuple[int, ...] | None = None
    first_conv: Names = None
    classifier: Names = None
    license: str | None = None


@dataclass(frozen=True)
class TimmConfig:
    """Description of a timm network to build.

    Attributes:
        architecture: name in timm's registry.
        model_args: constructor arguments from the allow-list.
        pretrained_cfg: preprocessing and layer names, without any location of weights.
    """

    architecture: str
    model_args: dict[str, Any]
    pretrained_cfg: dict[str, Any]


def folder_config(folder: Path) -> TimmConfig:
    """Read ``config.json`` of a local folder.

    Raises:
        BackboneError: the file is missing, is not timm's, or has arguments outside the allow-list.
    """
    found = local_dir_config(folder)
    args = found.get("model_args") or {}
    published = found.get("pretrained_cfg", found)  # older folders have all keys at the top level
    try:
        published = {**published, **{key: found[key] for key in ("num_classes",) if key in found}}
        if (side := args.get("img_size")) is not None and published.get("fixed_input_size"):
            published["input_size"] = [3, *([side, side] if isinstance(side, int) else side)]
        return _checked((published, found["architecture"], args), str(folder))
    except _SHAPE_ERRORS as error:
        raise BackboneError(f"{folder / 'config.json'} is not a config.json of timm: {first_line(error)}") from error


def hub_config(name: str) -> TimmConfig:
    """Read ``config.json`` of the hub repository ``name``, from the cache or by download.

    Args:
        name: ``ORG/NAME`` or ``ORG/NAME@REVISION``.

    Raises:
        BackboneError: the file is not timm's, or has arguments outside the allow-list.
        OSError: the file cannot be downloaded.
    """
    try:
        return _checked(load_model_config_from_hf(name), name)
    except _SHAPE_ERRORS as error:
        raise BackboneError(f"config.json of {name} is not a config.json of timm: {first_line(error)}") from error


# Errors raised by a JSON document with another structure than timm's.
_SHAPE_ERRORS = (KeyError, TypeError, AttributeError, IndexError, ValueError)


def _checked(loaded: tuple[dict[str, Any], str, dict[str, Any]], name: str) -> TimmConfig:
    published, architecture, args = loaded
    args = dict(args or {})
    if problem := architecture_problem(str(architecture)) or args_problem(args):
        raise BackboneError(f"config.json of {name}: {problem}.")
    try:
        cfg = PublishedConfig.model_validate(published)
    except ValidationError as error:
        mistakes = "; ".join(problems(error, PublishedConfig)[:3])
        raise BackboneError(f"config.json of {name}: pretrained_cfg.{mistakes}.") from error
    return TimmConfig(str(architecture), args, cfg.model_dump(exclude_none=True))
