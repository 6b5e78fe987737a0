"""Writer of the folder of a continued pretraining: weights without a head in timm's format, hashes of the images, and the record."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn

from edgetl.core.bundle import pack_prefixes
from edgetl.core.files.atomic import write_bytes, write_text
from edgetl.core.files.names import printable
from edgetl.core.system.host import fingerprint, versions
from edgetl.errors import ConfigError
from edgetl.pretrain.loop import CHECKPOINT_NAME
from edgetl.pretrain.unlabeled.inputs import Inputs
from edgetl.train.artifacts.continued import RECORD_NAMES, UNLABELED_NAME, WEIGHTS_NAME, ContinuedRecord
from edgetl.train.artifacts.record import TIMM_CONFIG_NAME
from edgetl.train.artifacts.seen_images import PERCEPTUAL_NAME, SELECTED_NAME, TRAINED_NAME, SeenImages, perceptual_hashes
from edgetl.train.artifacts.writer import published_config
from edgetl.train.config.weights_dir import sha256_of


def check_empty(out: Path) -> None:
    """Raise a ``ConfigError`` if ``out`` has files, and is not a stopped pretraining."""
    if (out / CHECKPOINT_NAME).is_file():
        return
    if files := sorted(path.name for path in out.iterdir() if not path.name.startswith(".")):
        raise ConfigError(f"{printable(out)} has other files ({', '.join(files[:3])}). Choose another --out.")


def publish(out: Path, inputs: Inputs, network: nn.Module, *, seen: SeenImages, facts: dict[str, Any]) -> ContinuedRecord:
    """Write the weights, the hashes of the images, the record, and timm's configuration. Remove the checkpoint.

    The configuration is written last. Without it, no incomplete folder is a backbone, which would then have no lineage.

    Args:
        out: folder to write.
        inputs: start and images.
        network: trained network without a head.
        seen: labeled images that trained or selected the parents.
        facts: fields of the record that belong to the method.
    """
    start, samples = inputs.start, (*inputs.train, *inputs.held)
    state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    write_bytes(out / WEIGHTS_NAME, safetensors.torch.save(state, {"format": "pt"}))
    timm_config = json.dumps(published_config(start, ()), indent=2) + "\n"
    write_bytes(out / UNLABELED_NAME, pack_prefixes(perceptual_hashes(samples) | inputs.known))
    seen.write(out)
    names = (WEIGHTS_NAME, UNLABELED_NAME, TRAINED_NAME, SELECTED_NAME, PERCEPTUAL_NAME)
    hashes = {name: sha256_of(out / name) for name in names}
    record = ContinuedRecord(
        name=out.resolve().name,
        backbone=start.name,
        architecture=start.architecture,
        license=start.license,
        parents=start.parents,
        images=len(samples),
        data_fingerprint=inputs.data_fingerprint(),
        versions=versions(),
        host=fingerprint(),
        files={**hashes, TIMM_CONFIG_NAME: hashlib.sha256(timm_config.encode()).hexdigest()},
        **facts,
    )
    write_text(out / RECORD_NAMES[record.method], record.model_dump_json(indent=1) + "\n")
    write_text(out / TIMM_CONFIG_NAME, timm_config)
    (out / CHECKPOINT_NAME).unlink(missing_ok=True)
    return record
