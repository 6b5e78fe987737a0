"""Records: one per accepted frame, with the prediction or the error of the image; and the interface of a sink."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from typing import Protocol

from pydantic import JsonValue

from edgetl.core.config import StrictModel

# Columns of a CSV sink. They do not depend on the labels, so that a file stays valid when a new release has other labels.
COLUMNS = ("id", "time", "image", "model", "release", "label", "score", "labels", "value", "ms", "error")

# ``json.dumps`` would create one for each record.
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True)
class Record:
    """Record of an accepted frame.

    Attributes:
        values: ``id`` (unique; receivers recognize a repeated delivery by it), ``time`` (UTC, ISO 8601), ``image``, ``model``, ``release``;
            then the prediction as ``edgetl predict --json`` prints it and ``ms`` (decoding to scores), or ``error``.
    """

    values: dict[str, JsonValue]

    def to_json(self) -> bytes:
        """Return the record as one line of JSON, UTF-8, without a newline."""
        return _ENCODER.encode(self.values).encode()

    def to_csv(self) -> bytes:
        """Return the record as a line of CSV with the columns ``COLUMNS``. Several labels are separated by semicolons."""
        return csv_line([";".join(map(str, value)) if isinstance(value, list) else value for value in map(self.values.get, COLUMNS)])


def csv_line(values: object) -> bytes:
    """Return a line of CSV, UTF-8, with a newline."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)  # type: ignore[arg-type]
    return text.getvalue().encode()


class SinkStatus(StrictModel):
    """State of a sink in the health file.

    Attributes:
        name: address of the sink, without user name and password.
        delivered: records that arrived: written to the file, or confirmed by the receiver.
        waiting: records in memory and in the spool.
        rejected: records that the receiver refused as invalid. They are not sent again.
        lost: records that could not be delivered or stored when the process ended.
        problem: reason why the sink takes no records at present; empty if it works.
    """

    name: str
    delivered: int = 0
    waiting: int = 0
    rejected: int = 0
    lost: int = 0
    problem: str = ""


class Sink(Protocol):
    """Sink of records."""

    def put(self, record: Record) -> bool:
        """Take a record. Return false if the sink cannot take it now. The runner then accepts no frame and tries again."""

    def status(self) -> SinkStatus:
        """Return the state of the sink."""

    def close(self, timeout_s: float) -> None:
        """Deliver or store the records that wait, within ``timeout_s`` seconds, and close the sink."""
