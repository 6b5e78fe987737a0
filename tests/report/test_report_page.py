"""Report page: numbers, hostile names, size limit, missing parts."""

from __future__ import annotations

import io
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgetl.core.bundle import Bundle
from edgetl.core.metrics import evaluate
from edgetl.core.results import Proportion, Rejection, wilson
from edgetl.core.tasks import DecisionRule, OutputDecoding, Task
from edgetl.data.predictions import PREDICTIONS_NAME, LabeledFile, PredictedFile, predicted_files
from edgetl.data.scan_notes import ScanNote
from edgetl.device.monitoring.events import Event
from edgetl.errors import RunError
from edgetl.report.charts import Axis, Bubble, Series, bubble_chart, line_chart, value_chart
from edgetl.report.config import ReportConfig
from edgetl.report.elements import element, facts, paragraph, to_html
from edgetl.report.images import SIDE, saliency_overlay, thumbnail
from edgetl.report.models import ReportedModel, RunFacts, group_models
from edgetl.report.page import MAX_PAGE_BYTES, is_own_report, limit_images, render_page, unique_names, write_report
from edgetl.report.run_facts import NO_CAPTUM, read_run, worst_predictions
from edgetl.report.sections.variants import pareto_front
from edgetl.train.artifacts.run import Run
from edgetl.train.workflows.runs.evaluate import evaluate_run

SCRIPT = "<script>alert(1)</script>"
QUOTES = "\"' onload='alert(1)' &amp; \u202e.png"


class Page(HTMLParser):
    """Parsed page: tags, text, exact numbers, and the addresses of links and images."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.addresses: list[str] = []
        self.numbers: list[float] = []
        self.texts: list[str] = []
        self._style = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._style = tag == "style"
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)
        self.addresses += [value or "" for name, value in attrs if name in ("href", "src")]
        self.numbers += [float(value or "nan") for name, value in attrs if (tag, name) == ("data", "value")]

    def handle_endtag(self, tag: str) -> None:
        self._style = False

    def handle_data(self, data: str) -> None:
        if not self._style:
            self.texts.append(data)

    @property
    def text(self) -> str:
        """All visible text, with single spaces."""
        return " ".join("".join(self.texts).split())


def test_numbers_of_the_page_equal_those_of_evaluate(run: Run, run_facts: RunFacts, bundle: Bundle, digits: Path, tmp_path: Path) -> None:
    summary = write_report(group_models([run_facts], [bundle]), tmp_path / "report.html")
    (model,), expected = summary.models, evaluate_run(run.path, digits).result
    assert model.test is not None and model.test.reliability is not None and expected.reliability is not None
    assert (model.test.accuracy, model.test.confusion, model.test.classes) == (expected.accuracy, expected.confusion, expected.classes)
    assert model.test.reliability.ece == pytest.approx(expected.reliability.ece, abs=1e-5)
    page = Page((tmp_path / "report.html").read_text("utf-8"))
    for value in (model.test.accuracy.value, model.test.macro_f1, model.test.reliability.ece, *(item.f1 for item in model.test.classes)):
        assert value in page.numbers
    wrong = sum(sum(row) for row in expected.confusion) - sum(row[index] for index, row in enumerate(expected.confusion))
    assert model.wrong == wrong == len(run_facts.wrong)
    assert f"{wrong} of {expected.accuracy.n} predictions on test images are wrong. 2 are shown" in page.text
    assert [item.name for item in model.variants] == [item.name for item in bundle.manifest.variants] and model.missing == ()
    assert json.loads(summary.model_dump_json())["size_bytes"] == (tmp_path / "report.html").stat().st_size < MAX_PAGE_BYTES


def test_page_has_no_scripts_and_no_addresses(run_facts: RunFacts, bundle: Bundle) -> None:
    page = Page(render_page(group_models([run_facts], [bundle])))
    assert not page.tags & {"script", "iframe", "object", "link", "form"} and not any(name.startswith("on") for name in page.attributes)
    assert all(address.startswith(("#", "data:image/jpeg;base64,")) for address in page.addresses)


def test_commands_in_messages_are_code() -> None:
    assert to_html(paragraph("Run `edgetl calibrate`.", " <b>")) == "<p>Run <code>edgetl calibrate</code>. &lt;b&gt;</p>"
    assert to_html(facts([("groups", "none: `edgetl train`")])).count("<code>edgetl train</code>") == 1


def test_page_is_the_same_for_the_same_models(run: Run, run_facts: RunFacts, bundle: Bundle) -> None:
    again = read_run(run.path, ReportConfig(images=2), None)
    assert again.wrong == run_facts.wrong and [item.jpeg for item in again.gallery] == [item.jpeg for item in run_facts.gallery]
    assert render_page(group_models([run_facts], [bundle])) == render_page(group_models([run_facts], [bundle]))


def test_page_shows_the_temperature_and_the_rejected_images(run_facts: RunFacts) -> None:
    assert "The scores are not calibrated: the temperature is 1." in Page(render_page([ReportedModel(run_facts)])).text
    record = run_facts.record
    assert record.test is not None
    rejection = Rejection(below=0.7, coverage=wilson(80, 100), precision=wilson(76, 80))
    changed = {
        "decision_rule": record.decision_rule.model_copy(update={"temperature": 1.75, "reject_below": 0.7}),
        "test": record.test.model_copy(update={"rejection": rejection}),
    }
    page = Page(render_page([ReportedModel(replace(run_facts, record=record.model_copy(update=changed)))]))
    assert "divided by the temperature 1.75." in page.text
    assert "Images with a score below 0.7 have no label (unknown). Coverage: 0.800 (0.711 to 0.867) of the images" in page.text


@pytest.mark.parametrize(
    ("decoding", "texts"),
    [
        (OutputDecoding("multi-label", ("a", "b"), DecisionRule(thresholds=(0.5, 0.5))), ("Mean average precision", "average precision")),
        (OutputDecoding("regression", ("mm",), DecisionRule(tolerance=0.1)), ("MAE", "Predicted over true numbers")),
        (OutputDecoding("ordinal", ("grade",), DecisionRule(ordinal_levels=(0, 2), tolerance=0.5)), ("kappa", "Confusion matrix")),
    ],
    ids=lambda value: value.task if isinstance(value, OutputDecoding) else "",
)
def test_page_of_other_tasks_has_their_metrics(run_facts: RunFacts, decoding: OutputDecoding, texts: tuple[str, ...]) -> None:
    rng, entries = np.random.default_rng(0), [entry for entry in run_facts.splits.entries if entry.part == "test"]
    truth = rng.integers(0, 2, (len(entries), len(decoding.labels))).astype(float)
    outputs = (truth + rng.normal(0, 0.4, truth.shape)).astype(np.float32)
    given = [entry.model_copy(update={"targets": tuple(row)}) for entry, row in zip(entries, truth.tolist(), strict=True)]
    rows = predicted_files(decoding, [LabeledFile(entry.path, "test", entry.label, entry.targets) for entry in given], outputs)
    update = {"task": decoding.task, "labels": decoding.labels, "decision_rule": decoding.decision_rule}
    record = run_facts.record.model_copy(update={**update, "test": evaluate(decoding, truth, outputs), "notes": ()})
    splits = run_facts.splits.model_copy(update={"entries": tuple(given)})
    wrong = worst_predictions(rows, decoding.task, decoding.decision_rule)
    changed = replace(run_facts, record=record, splits=splits, predictions=tuple(rows), wrong=wrong)
    page = Page(render_page([ReportedModel(changed)]))
    assert record.test is not None and len(wrong) == round((1 - record.test.accuracy.value) * len(rows)) > 0
    assert all(text in page.text for text in texts) and f"{len(wrong)} of {len(rows)} predictions" in page.text


def test_page_has_no_folder_of_the_label_table(run_facts: RunFacts) -> None:
    record, table = run_facts.record, "/home/user/tables/labels.csv"
    data = record.config.data.model_copy(update={"labels": table})
    note = ScanNote(reason="table", used=True, count=0, text=f"{table}: the column mm is not used.")
    changed = record.model_copy(update={"config": record.config.model_copy(update={"data": data}), "notes": (note,)})
    text = render_page([ReportedModel(replace(run_facts, record=changed))])
    assert "labels.csv: the column mm is not used." in text and "/home/user" not in text


def test_hostile_names_stay_text(run_facts: RunFacts, bundle: Bundle) -> None:
    record = run_facts.record
    labels = (SCRIPT, QUOTES, *record.labels[2:])
    named = dict(zip(record.labels, labels, strict=True))
    assert record.test is not None
    classes = tuple(item.model_copy(update={"label": named[item.label]}) for item in record.test.classes)
    hostile = replace(
        run_facts,
        record=record.model_copy(update={"labels": labels, "name": SCRIPT, "test": record.test.model_copy(update={"classes": classes})}),
        gallery=tuple(replace(item, caption=(SCRIPT, QUOTES, "a\ud800\x00b.png")) for item in run_facts.gallery),
    )
    manifest = bundle.manifest.model_copy(update={"name": SCRIPT, "labels": labels})
    events = [Event("2026-11-26", SCRIPT, 1, SCRIPT, {"changes": [{"name": SCRIPT, "value": 0.5, "limit": 0.1}, {"value": SCRIPT}, 3]})]
    page = Page(render_page(group_models([hostile], [replace(bundle, manifest=manifest)]), events))
    assert "script" not in page.tags and not any(name.startswith("on") for name in page.attributes)
    assert SCRIPT in page.text and "onload='alert(1)' &amp; \\u202e.png" in page.text and "a\\ud800\\x00b.png" in page.text
    assert f"{SCRIPT} 0.50 (limit 0.10)" in page.text


def test_bundle_alone_gives_a_smaller_page_with_the_missing_parts(bundle: Bundle) -> None:
    models = group_models([], [bundle])
    page = Page(render_page(models))
    assert models[0].kind == "bundle" and "Golden images" in page.text and "Exported variants" in page.text and "Missing parts" in page.text
    assert "Images, training curves, results of each class, calibration and wrong predictions" in page.text
    assert "Confusion matrix" not in page.text


def test_several_models_are_compared_in_columns(run_facts: RunFacts, bundle: Bundle) -> None:
    other = replace(run_facts, digest="0" * 64, record=run_facts.record.model_copy(update={"data_fingerprint": "1" * 64}))
    models = group_models([run_facts, other], [bundle])
    assert [model.kind for model in models] == ["run and bundle", "run"], "a bundle belongs to the run with its hash"
    assert unique_names([*models, models[1]]) == ["digits (run and bundle)", "digits (run)", "digits (run) 2"]
    page = Page(render_page(models))
    assert "Models side by side" in page.text and "trained on different images" in page.text
    assert "Exported variants: add a bundle of this run (edgetl report digits BUNDLE)." in page.text


def test_images_that_exceed_the_limit_are_left_out_and_counted(run_facts: RunFacts, tmp_path: Path) -> None:
    assert run_facts.gallery[0].saliency is not None
    first = len(run_facts.gallery[0].jpeg) + len(run_facts.gallery[0].saliency)
    (model,), left_out = limit_images([ReportedModel(run_facts)], first)
    assert model.run is not None and len(model.run.gallery) == 1 and model.run.samples == ()
    assert left_out == 1 + len(run_facts.samples)
    assert f"{left_out} images were left out" in Page(render_page([model], left_out=left_out)).text


def test_read_run_reports_what_is_missing(run: Run, digits: Path, tmp_path: Path) -> None:
    assert read_run(run.path, ReportConfig(images=1), None).missing == (NO_CAPTUM,)
    assert read_run(run.path, ReportConfig(images=0), None).missing == ()
    found = read_run(run.path, ReportConfig(images=1, data=tmp_path), None)
    assert found.gallery == found.samples == () and re.match(r"\d+ images are missing or changed since the training", found.missing[0])
    # A run of an earlier version has no table of predictions.
    old = tmp_path / "old"
    shutil.copytree(run.path, old)
    record = json.loads((old / "run.json").read_text())
    del record["files"][PREDICTIONS_NAME]
    (old / "run.json").write_text(json.dumps(record))
    (missing,) = read_run(old, ReportConfig(images=1), None).missing
    assert missing.startswith("Wrong predictions: the run has no predictions.csv")


def test_read_run_reports_a_changed_table(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    (tmp_path / "run" / PREDICTIONS_NAME).write_text("file,split,label,prediction,score\n")
    with pytest.raises(RunError, match=r"predictions\.csv changed since the training"):
        read_run(tmp_path / "run", ReportConfig(), None)


@pytest.mark.parametrize(
    ("task", "rule", "rows", "expected"),
    [
        ("classification", DecisionRule(), [("a", "b", 0.5), ("a", "a", 0.9), ("a", "c", 0.7), ("b", "a", float("nan"))], [3, 2, 0]),
        ("multi-label", DecisionRule(), [("a, b", "a, b", 0.9), ("a, b", "a", 0.8), ("none", "a, b", 0.6)], [2, 1]),
        ("regression", DecisionRule(tolerance=0.5), [("1", "1.5", 1.5), ("1", "1.75", 1.75), ("1", "-1", -1.0)], [2, 1]),
        ("ordinal", DecisionRule(ordinal_levels=(0, 3)), [("1", "1", 1.4), ("1", "2", 1.6), ("0", "3", 2.9)], [2, 1]),
    ],
)
def test_worst_predictions_are_sorted_by_task(
    task: Task, rule: DecisionRule, rows: list[tuple[str, str, float]], expected: list[int]
) -> None:
    files = [PredictedFile(str(index), "test", *row) for index, row in enumerate(rows)]
    assert [int(row.file) for row in worst_predictions(files, task, rule)] == expected


def test_pareto_front_has_the_variants_that_no_other_exceeds(bundle: Bundle) -> None:
    def variant(name: str, correct: int, ms: float, size: int) -> object:
        base = bundle.manifest.variants[0]
        return base.model_copy(
            update={
                "name": name,
                "validation": wilson(correct, 100),
                "median_ms": ms,
                "files": (base.files[0].model_copy(update={"size_bytes": size}),),
            }
        )

    rows = [variant("best", 90, 2.0, 10), variant("fast", 80, 1.0, 10), variant("small", 80, 2.0, 5), variant("worse", 89, 2.0, 10)]
    assert pareto_front(rows) == {"best", "fast", "small"}  # type: ignore[arg-type]


def test_images_are_small_and_have_no_metadata() -> None:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E], exif[0x8825] = "my garden", {1: "N", 2: (52.0, 30.0, 0.0)}
    Image.new("RGB", (800, 400), "red").save(buffer, "JPEG", exif=exif, comment=b"secret")
    with Image.open(io.BytesIO(buffer.getvalue())) as photo:
        data = thumbnail(photo)
    with Image.open(io.BytesIO(data)) as small:
        assert small.size == (SIDE, SIDE // 2) and not small.getexif() and "comment" not in small.info
    assert b"garden" not in data and b"secret" not in data and b"Exif" not in data


def test_saliency_overlay_colors_the_largest_values() -> None:
    saliency = np.full((64, 64), -1.0, np.float32)
    saliency[:32, :32] = 2.0
    with Image.open(io.BytesIO(saliency_overlay(np.full((64, 64, 3), 128, np.uint8), saliency))) as image:
        pixels = np.asarray(image).astype(int)
    assert pixels[8, 8, 0] - pixels[8, 8, 2] > 150, "orange"
    assert abs(pixels[56, 56, 0] - pixels[56, 56, 2]) < 10, "gray"
    assert np.ptp(np.asarray(Image.open(io.BytesIO(saliency_overlay(np.full((64, 64, 3), 128, np.uint8), -np.abs(saliency)))))) < 10


@pytest.mark.parametrize(("low", "high", "expected"), [(0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (-3.0, 21.0, [0, 5, 10, 15, 20])])
def test_ticks_are_round_values(low: float, high: float, expected: list[float]) -> None:
    assert Axis("", low, high).ticks() == pytest.approx(expected)


def test_charts_of_odd_values_are_drawn() -> None:
    same = Proportion(value=1.0, n=1, low=1.0, high=1.0)
    for chart in (
        line_chart("x", "y", [Series("a", [(0.0, float("nan")), (1.0, 2.0)], 0), Series("b", [], 1)], label="odd"),
        bubble_chart("x", "y", [Bubble(index, 1.0, same, 1.0, 0, True) for index in range(20)], label="equal"),
        value_chart("mm", [(1.0, 1.0), (1.0, float("nan"))], label="constant"),
    ):
        text = to_html(element("div", chart))
        assert "nan" not in text.lower().replace("nano", "") and "<svg" in text


def test_own_reports_are_recognized(run_facts: RunFacts, tmp_path: Path) -> None:
    own, other = tmp_path / "own.html", tmp_path / "other.html"
    write_report([ReportedModel(run_facts)], own)
    other.write_text("<!DOCTYPE html>\n<title>mine</title>")
    assert is_own_report(own) and not is_own_report(other) and not is_own_report(tmp_path)
