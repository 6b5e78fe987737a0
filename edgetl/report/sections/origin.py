"""Origin: lineage and license of the weights, versions and host; and drift events of devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.etree.ElementTree import Element

from edgetl.core.licenses import freedom
from edgetl.core.lineage import describe_parent
from edgetl.device.monitoring.events import Event
from edgetl.report.elements import Child, element, facts, items, paragraph, table
from edgetl.report.models import ReportedModel

_FREEDOM = {
    "permissive": "permissive: commercial use is allowed",
    "share-alike": "share-alike: derived works need the same license",
    "unknown": "unknown: it may forbid commercial use",
    "non-commercial": "forbids commercial use",
}


def origin_section(model: ReportedModel) -> list[Child]:
    """Return the content of the section about lineage, license and versions of a model."""
    run = model.run
    source = run.record if run else model.bundles[0].manifest
    versions = ", ".join(f"{name} {version}" for name, version in sorted(source.versions.items()))
    rows: list[tuple[str, Child]] = [
        ("License of the weights", f"{model.license or 'not stated'} ({_FREEDOM[freedom(model.license)]})"),
        ("Run", element("code", model.run_sha256[:16])),
        ("Created", source.created),
        ("Host", ", ".join(f"{name} {value}" for name, value in sorted(source.host.items()))),
        ("Versions", versions),
    ]
    parents: Child = items([describe_parent(parent) for parent in model.parents])
    if not model.parents:
        parents = paragraph("None: the training started from random weights, or the origin is not recorded.")
    return [facts(rows), element("h4", "Origin of the weights, the oldest first"), parents]


def events_section(events: Sequence[Event]) -> list[Child]:
    """Return the content of the section about drift and other events of a device, the newest first."""
    if not events:
        return [paragraph("The file of events has no event of this model.")]
    rows: list[list[Child]] = [[event.time, event.kind, str(event.release), _changes(event.detail)] for event in events]
    return [table("Events of devices, the newest first", ("time", "event", "release", "changes"), rows, text_columns=4)]


def _changes(detail: dict[str, Any]) -> Element | str:
    """Return the changes of a drift event. The detail of other events is shown as it is."""
    changes = detail.get("changes")
    if not isinstance(changes, list):
        return ", ".join(f"{name} {value}" for name, value in detail.items())[:200]
    shown = [
        f"{change['name']} {change['value']:.2f} (limit {change['limit']:.2f})"
        for change in changes
        if isinstance(change, dict) and isinstance(change.get("value"), float) and isinstance(change.get("limit"), float)
    ]
    return ", ".join(shown) or f"no significant change in the last {detail.get('window', '?')} images"
