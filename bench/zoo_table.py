"""The table that ``bench.zoo`` writes: one row for each architecture, as CSV for machines and Markdown for people."""

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
    """What one architecture did.

    Attributes:
        family: the module of timm that holds its builder.
        parameters: with timm's own head of 1,000 classes.
        side: height and width of the input that was used, px; 0 if the network was never run.
        linear_head: whether it ends in one linear layer, which ``edgetl train`` needs.
        variation: how far the torch logits of the pictures differ from their mean, of the largest logit: what a difference is seen against.
        onnx_difference: the largest of torch's logits from ONNX Runtime's at batch 1, 2 and 5, of the largest logit.
        seconds: of the processor's time, from building to the last comparison, with one thread.
        cause: why a status is not ``agrees``.
        made_with: versions of the libraries; a row of other versions is measured again.
    """

    schema_version: int = Field(default=SCHEMA_VERSION, ge=SCHEMA_VERSION, le=SCHEMA_VERSION)  # a CSV holds no literal 1
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
        """Exports to both formats and agrees with torch in both engines."""
        return self.onnx == self.openvino == "agrees"


class Sweep(StrictModel):
    """All rows, as ``--json`` prints them."""

    schema_version: Literal[1] = 1
    passed: int
    rows: tuple[Row, ...]


def libraries() -> str:
    """The versions that a row depends on."""
    return ", ".join(f"{name} {version(name)}" for name in LIBRARIES)


def read_rows(path: Path) -> dict[str, Row]:
    """The rows of a CSV that ``write_table`` wrote, by architecture; none where there is no file.

    Raises:
        ConfigError: it is not such a file.
    """
    if not path.is_file():
        return {}
    try:
        rows = [
            Row.model_validate({key: value for key, value in record.items() if value != ""})
            for record in csv.DictReader(io.StringIO(path.read_text("utf-8")))
        ]
    except (ValidationError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} is not a table that this version of `bench.zoo` wrote ({first_line(error)}). Move it away.") from error
    return {row.architecture: row for row in rows}


def write_table(folder: Path, rows: Iterable[Row], *, limit: float, batches: Sequence[int], left: int = 0) -> None:
    """Write ``export-sweep.csv`` and ``export-sweep.md``, each whole or not at all; ``left`` architectures are not measured yet."""
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
    """The summary, the exceptions with their causes, and the table."""
    passed = [row for row in rows if row.passed]
    share = f"{100 * len(passed) / len(rows):.1f} %" if rows else "none"
    worst = max((max(row.onnx_difference or 0, row.openvino_difference or 0) for row in passed), default=0)
    families = len({row.family for row in rows})
    sizes = ", ".join(str(size) for size in batches)
    lines = [
        "# Which architectures export",
        "",
        f"{len(rows)} architectures of timm with at most 12 million parameters, from {families} of its modules; **{len(passed)} ({share})",
        f"export to ONNX and OpenVINO and answer like torch in both engines**, at batch {sizes}: no logit differs by more than {limit:g}",
        f"of the largest (worst of those that pass: {worst:.1e}).",
        *([f"**{left} more are not measured yet**: the sweep was stopped, and the same command goes on."] if left else []),
        "",
        "Written by `python -m bench.zoo`. Of timm's names that differ only in size the smallest is taken. Weights are random, BatchNorm",
        "statistics drawn; the files are written by the functions that `edgetl export` calls and run in the engines that a device uses.",
        "`varies` is how far the logits of different pictures lie apart, of the largest logit: what a difference is to be seen against.",
        "`head` says whether the network ends in one linear layer, without which `edgetl train` refuses it; `s` is processor time.",
        "",
        *sorted({f"Made with {row.made_with}." for row in rows if row.made_with}),
        "",
        "## Exceptions",
        "",
        *([f"- `{row.architecture}` ({row.family}): {row.cause}" for row in rows if not row.passed] or ["None."]),
        "",
        "## All",
        "",
        "| architecture | module | parameters, M | input, px | head | varies | ONNX | difference | OpenVINO | difference | s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *(_line(row) for row in rows),
    ]
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.0e}"

    varies = "" if row.variation is None else f"{row.variation:.2f}"
    head = "linear" if row.linear_head else "other"
    cells = [
        row.architecture, row.family, f"{row.parameters / 1e6:.2f}", row.side or "", head, varies, row.onnx, number(row.onnx_difference),
        row.openvino, number(row.openvino_difference), f"{row.seconds:.0f}",
    ]  # fmt: skip
    return "| " + " | ".join(str(cell) for cell in cells) + " |"
