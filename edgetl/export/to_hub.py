"""Hugging Face folder of a run: the files that timm's ``push_to_hf_hub`` uploads, with a model card."""

from __future__ import annotations

import json
from pathlib import Path

from edgetl.core.output.folders import new_folder
from edgetl.errors import RunError
from edgetl.export.model_card import run_lines
from edgetl.train.artifacts.record import TIMM_CONFIG_NAME, WEIGHTS_NAME, RunRecord
from edgetl.train.artifacts.run import Run, open_run
from edgetl.train.networks.pruned import PRUNED

HUB_WEIGHTS_NAME = "model.safetensors"
CARD_NAME = "README.md"
# License identifiers of the hub (hf.co/docs/hub/repositories-licenses) that published image weights use. Any other license is written as
# `other`, with its name in `license_name`.
HUB_LICENSES = frozenset(
    (
        *("apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "isc", "unlicense", "zlib"),
        *("cc0-1.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0"),
        *("cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0"),
        *("gpl-2.0", "gpl-3.0", "lgpl-2.1", "lgpl-3.0", "agpl-3.0", "mpl-2.0", "epl-2.0", "eupl-1.2"),
        *("openrail", "openrail++", "apple-ascl", "apple-amlr"),
    )
)


def share_run(run_path: Path, out: Path, *, overwrite: bool = False) -> list[Path]:
    """Write a run as a Hugging Face folder for timm, transformers and ``huggingface_hub.upload_folder``.

    The weights are copied after their hash is checked. A link is not used, because a change of one folder would damage the other.

    Args:
        run_path: folder of the run.
        out: folder to write.
        overwrite: replace an existing ``out``.

    Returns:
        the written files.

    Raises:
        RunError: ``run_path`` is not a run, the run is damaged, or the format does not support its network or task.
        StorageError: the folder cannot be written.
    """
    run = open_run(run_path)
    _check_expressible(run)
    with new_folder(out, inputs={"the run": run_path}, overwrite=overwrite) as folder:
        (folder / HUB_WEIGHTS_NAME).write_bytes(run.read(WEIGHTS_NAME))
        (folder / TIMM_CONFIG_NAME).write_bytes(run.read(TIMM_CONFIG_NAME))
        (folder / CARD_NAME).write_text(hub_card(run.record), "utf-8", newline="\n")
    return [out / name for name in (TIMM_CONFIG_NAME, HUB_WEIGHTS_NAME, CARD_NAME)]


def _check_expressible(run: Run) -> None:
    """Check that timm can rebuild the network from a ``config.json`` and returns the same predictions.

    Raises:
        RunError: it cannot.
    """
    record = run.record
    reason = ""
    if record.task != "classification":
        reason = f"the task is {record.task}, and the hub's image-classification supports one class per image only"
    elif record.backbone.columns is not None:
        reason = "the network has several columns, and timm builds a single network"
    elif not record.head.plain:
        reason = f"the head is {record.head.describe()}, and timm builds one linear layer"
    elif PRUNED in record.backbone.model_args:
        reason = "the network is pruned, and timm builds the complete architecture"
    elif TIMM_CONFIG_NAME not in record.files:
        reason = f"the network is {record.backbone.architecture}, which timm does not build"
    if reason:
        raise RunError(
            f"{run.path} cannot be written as a Hugging Face folder: {reason}. Share the bundle instead: edgetl export {run.path}"
        )


def hub_card(record: RunRecord) -> str:
    """Return ``README.md`` of a Hugging Face folder: YAML front matter for the hub, and a model card in Markdown."""
    task, *facts = run_lines(record, record.preprocess, record.validation.score)
    return "\n".join(
        [
            *_front_matter(record),
            "",
            f"# {record.name}",
            "",
            task,
            "",
            "```python",
            "import timm",
            "",
            'model = timm.create_model("hf-hub:OWNER/NAME", pretrained=True).eval()  # for a local folder: "local-dir:PATH"',
            "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
            'label = model.pretrained_cfg["label_names"][model(transform(image)[None]).argmax(1).item()]',
            "```",
            "",
            '`transformers.pipeline("image-classification", model=…)` also loads this model if timm is installed.',
            "",
            *facts,
            "",
            "Intervals are 95 % Wilson intervals. Created by `edgetl share`.",
            "",
        ]
    )


def _front_matter(record: RunRecord) -> list[str]:
    license = (record.backbone.license or "").strip()
    if license.lower() in HUB_LICENSES:
        stated = [f"license: {license.lower()}"]
    elif license:
        stated = ["license: other", f"license_name: {_quoted(license)}"]
    else:
        stated = ["license: unknown"]
    source = record.backbone.name
    base = [f"base_model: {_quoted(source.removeprefix('hf-hub:').split('@')[0])}"] if source.startswith("hf-hub:") else []
    tags = ["tags:", "- image-classification", "- timm", "- edgetl"]
    return ["---", *stated, "library_name: timm", "pipeline_tag: image-classification", *base, *tags, "---"]


def _quoted(text: str) -> str:
    """Return ``text`` as a JSON string, which is valid YAML."""
    return json.dumps(text, ensure_ascii=False)
