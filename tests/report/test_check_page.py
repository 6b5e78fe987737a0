"""Page of a data audit: strong and weak label errors, label conflicts, and links of the overview."""

from __future__ import annotations

from pathlib import Path

from edgetl.data.audit.result import AuditReport, BrokenFile, CopySet, LabelIssue, UncertainLabel
from edgetl.data.folder import scan_without_limits
from edgetl.report.check.galleries import MOST_OPEN, Galleries
from edgetl.report.check.page import render_check_page
from tests.data.test_data_audit import photo, save


def test_the_page_states_the_accuracy_of_the_probe_and_folds_weak_indications(tmp_path: Path) -> None:
    for seed, name in enumerate(("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png")):
        save(photo(seed), tmp_path / name)
    issues = tuple(
        LabelIssue(file=file, label="cat", suggested="dog", given_probability=0.1, suggested_probability=value, strong=value > 0.6)
        for file, value in (("cat/0.png", 0.9), ("cat/1.png", 0.5))
    )
    conflict = CopySet(
        kind="copy", files=("cat/0.png", "dog/0.png"), labels=("cat", "dog"), conflict=True, suggested="dog", suggested_probability=0.8
    )
    report = AuditReport(
        data="photos",
        images=4,
        distinct=3,
        counts={"cat": 2, "dog": 2},
        broken=(BrokenFile(file="cat/2.png", reason="is empty."),),
        copies=(conflict,),
        label_issues=issues,
        uncertain=(UncertainLabel(file="dog/1.png", label="dog", probability=0.2),),
        probe_accuracy=0.75,
        remaining={"label-errors": 2},
    )
    html = render_check_page(report, scan_without_limits(tmp_path))
    strong, weak = html.split("Weak indications (1)")
    assert "Uncertain labels" in weak and "dog (1)" in weak and "dog 0.20" in weak
    assert "They predict 75.0% of all labels." in html and "prediction: dog (0.80)" in html and "label-errors (2)" in html
    assert "cat 0.10, dog 0.90" in strong and "cat 0.10, dog 0.50" in weak
    assert '<a href="#part-1">Broken files</a>' in html and '<section id="part-1"><h2>Broken files</h2>' in html


def test_entries_beyond_the_first_ones_are_folded(tmp_path: Path) -> None:
    save(photo(0), tmp_path / "a.png")
    galleries = Galleries({"a": tmp_path / "a.png"}, 1_000_000)
    first, details = galleries.gallery([(("a",), str(number), ()) for number in range(MOST_OPEN + 3)])
    assert len(first) == MOST_OPEN and len(details[1]) == 0
    galleries.fill()
    assert len(details[1]) == 3 and details[0].text == "3 more"
