"""Hugging Face folder of a run: the files that timm's ``push_to_hf_hub`` would upload, with a model card."""

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
# Of the licenses that a hub's card can name (hf.co/docs/hub/repositories-licenses) those that published image weights carry; another is
# written as `other` with its name beside it.
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
    """Write the run at ``run_path`` as the folder ``out`` that timm, transformers and ``huggingface_hub.upload_folder`` take.

    The weights are copied, byte for byte, after comparing their hash: a link would let a change of one folder damage the other.

    Returns:
        the files written.

    Raises:
        RunError: not a run, a damaged one, or one that the format cannot express.
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
    """Refuse what timm could not rebuild from a ``config.json``, or would predict otherwise than edgetl does."""
    record = run.record
    reason = ""
    if record.task != "classification":
        reason = f"its task is {record.task}, and the hub's image-classification knows only one class an image"
    elif record.backbone.columns is not None:
        reason = "it has several networks side by side, and timm builds one"
    elif not record.head.plain:
        reason = f"its head is {record.head.describe()}, and timm builds one linear layer"
    elif PRUNED in record.backbone.model_args:
        reason = "it is pruned, and timm builds the whole architecture"
    elif TIMM_CONFIG_NAME not in record.files:
        reason = f"its network is {record.backbone.architecture}, which timm does not build"
    if reason:
        raise RunError(f"{run.path} cannot become a Hugging Face folder: {reason}. Share its bundle instead: edgetl export {run.path}")


def hub_card(record: RunRecord) -> str:
    """``README.md``: YAML for the hub, Markdown for people."""
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
            'model = timm.create_model("hf-hub:OWNER/NAME", pretrained=True).eval()  # of this folder on a disk: "local-dir:PATH"',
            "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
            'label = model.pretrained_cfg["label_names"][model(transform(image)[None]).argmax(1).item()]',
            "```",
            "",
            '`transformers.pipeline("image-classification", model=…)` takes it too, if timm is installed.',
            "",
            *facts,
            "",
            "Intervals are Wilson's, 95 %. Made by `edgetl share`.",
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
    """A JSON string, which every YAML reader takes."""
    return json.dumps(text, ensure_ascii=False)
