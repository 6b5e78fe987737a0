"""Table of the export sweep: one row for each architecture, as CSV and as Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from edgetl.core.config import StrictModel
from edgetl.core.files.atomic import write_text
from edgetl.errors import ConfigError, first_line

Status = Literal["agrees", "differs", "failed", "not reached"]
SCHEMA_VERSION = 1
LIBRARIES = ("torch", "timm", "onnx", "onnxscript", "onnxruntime", "openvino")


class Row(StrictModel):
    """Result of one architecture.

    Attributes:
        architecture: name in timm.
        family: module of timm with its builder.
        parameters: number of parameters with a head for 1,000 classes.
        side: height and width of the input, px; 0 if the network was not run.
        linear_head: True if the network ends in one linear layer, which ``edgetl train`` requires.
        variation: largest deviation of the torch logits from their mean over the images, relative to the largest logit. Differences of the
            engines must be much smaller.
        onnx: result of the export to ONNX.
        onnx_difference: largest difference between the logits of torch and ONNX Runtime at batch 1, 2 and 5, relative to the largest logit.
        openvino: result of the conversion to OpenVINO.
        openvino_difference: the same difference for OpenVINO.
        seconds: CPU time on one thread, from building to the last comparison.
        cause: reason for a status other than ``agrees``.
        made_with: versions of the libraries. A row of other versions is measured again.
    """

    schema_version: int = Field(default=SCHEMA_VERSION, ge=SCHEMA_VERSION, le=SCHEMA_VERSION)  # an int, because a CSV has no literals
    architecture: str
    family: str
    parameters: int
    side: int = 0
    linear_head: bool = False
    variation: float | None = None
    onnx: Status = "not reached"
    onnx_difference: float | None = None
    openvino: Status = "not reached"
    openvino_difference: float | None = None
    seconds: float = 0.0
    cause: str = ""
    made_with: str = ""

    @property
    def passed(self) -> bool:
        """True if the architecture exports to both formats and agrees with torch in both engines."""
        return self.onnx == self.openvino == "agrees"


class Sweep(StrictModel):
    """All rows of a sweep, for ``--json``."""

    schema_version: Literal[1] = 1
    passed: int
    rows: tuple[Row, ...]


def libraries() -> str:
    """Return the library versions that the results depend on."""
    return ", ".join(f"{name} {version(name)}" for name in LIBRARIES)


def read_rows(path: Path) -> dict[str, Row]:
    """Read the rows of a CSV that ``write_table`` wrote, by architecture. A missing file has no rows.

    Raises:
        ConfigError: the file is not a table of this version.
    """
    if not path.is_file():
        return {}
    try:
        rows = [
            Row.model_validate({key: value for key, value in record.items() if value != ""})
            for record in csv.DictReader(io.StringIO(path.read_text("utf-8")))
        ]
    except (ValidationError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} is not a table of this version of `bench.zoo` ({first_line(error)}). Move the file away.") from error
    return {row.architecture: row for row in rows}


def write_table(folder: Path, rows: Iterable[Row], *, limit: float, batches: Sequence[int], left: int = 0) -> None:
    """Write ``export-sweep.csv`` and ``export-sweep.md``, each atomically. ``left`` is the number of architectures not yet measured."""
    ordered = sorted(rows, key=lambda row: row.architecture)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(Row.model_fields), lineterminator="\n")
    writer.writeheader()
    for row in ordered:
        writer.writerow({key: _cell(value) for key, value in row.model_dump().items()})
    write_text(folder / "export-sweep.csv", text.getvalue())
    write_text(folder / "export-sweep.md", to_markdown(ordered, limit=limit, batches=batches, left=left))


def _cell(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.3g}"
    return "" if value is None else value


def to_markdown(rows: Sequence[Row], *, limit: float, batches: Sequence[int], left: int = 0) -> str:
    """Return the sweep as Markdown: summary, exceptions with their causes, and the table."""
    passed = [row for row in rows if row.passed]
    ratio = f"{100 * len(passed) / len(rows):.1f} %" if rows else "none"
    worst = max((max(row.onnx_difference or 0, row.openvino_difference or 0) for row in passed), default=0)
    families = len({row.family for row in rows})
    sizes = ", ".join(str(size) for size in batches)
    lines = [
        "# Export sweep over timm architectures",
        "",
        f"The sweep covers {len(rows)} architectures of timm with at most 12 million parameters, from {families} modules.",
        f"**{len(passed)} ({ratio}) export to ONNX and OpenVINO and agree with torch in both engines.** At batch sizes {sizes}, no logit",
        f"differs by more than {limit:g} of the largest logit. The largest difference of those that pass is {worst:.1e}.",
        *([f"**{left} architectures are not measured yet.** The same command continues the sweep."] if left else []),
        "",
        "`python -m bench.zoo` writes this file. Of names that differ only in size, the smallest architecture is measured. Weights and",
        "BatchNorm statistics are random. The functions of `edgetl export` write the files, and the engines of a device run them.",
        "",
        "- head: `linear` if the network ends in one linear layer, which `edgetl train` requires.",
        "- variation: largest deviation of the logits from their mean over the images, relative to the largest logit.",
        "- difference: largest difference from the logits of torch, relative to the largest logit.",
        "- s: CPU time, seconds.",
        "",
        *sorted({f"Versions: {row.made_with}." for row in rows if row.made_with}),
        "",
        "## Exceptions",
        "",
        *([f"- `{row.architecture}` ({row.family}): {row.cause}" for row in rows if not row.passed] or ["None."]),
        "",
        "## All architectures",
        "",
        "| architecture | module | parameters, M | input, px | head | variation | ONNX | difference | OpenVINO | difference | s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *(_line(row) for row in rows),
    ]
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.0e}"

    variation = "" if row.variation is None else f"{row.variation:.2f}"
    head = "linear" if row.linear_head else "other"
    cells = [
        row.architecture,
        row.family,
        f"{row.parameters / 1e6:.2f}",
        row.side or "",
        head,
        variation,
        row.onnx,
        number(row.onnx_difference),
        row.openvino,
        number(row.openvino_difference),
        f"{row.seconds:.0f}",
    ]
    return "| " + " | ".join(str(cell) for cell in cells) + " |"
