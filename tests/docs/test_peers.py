"""Comparison with other tools: the page that is written from the results."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.peers.environments import install
from bench.peers.peers import ENVIRONMENTS, Environment
from bench.peers.results import Results
from bench.peers.table import write_page

REFERENCE, PEER = "edgetl, ONNX Runtime, fp32", "ONNX Runtime, fp32"
HOST = {"date": "2026-01-02 03:04 UTC", "host": "a host", "problems": []}


def _row(latency: list[list[float]]) -> dict[str, object]:
    return {"latency_ms": latency, "network_ms": latency, "cold_start_s": [0.5], "cold_rss_mb": [90.0], "images_per_s": [50.0], **HOST}


@pytest.fixture
def results(tmp_path: Path) -> Results:
    found = Results(tmp_path / "peers.jsonl")
    found.add("latency", REFERENCE, **_row([[4.0, 4.0], [8.0, 8.0]]))
    found.add("latency", PEER, **_row([[6.0, 6.0], [12.0, 12.0]]))
    return found


def _line(page: Path, start: str) -> str:
    return next(line for line in page.read_text("utf-8").splitlines() if line.startswith(f"| {start} |"))


def test_page_divides_latency_by_that_of_edgetl_in_each_round(results: Results, tmp_path: Path) -> None:
    write_page(results, tmp_path / "page.md")
    assert "| 9.00 | 1.50 |" in _line(tmp_path / "page.md", PEER)
    assert "a host" in (tmp_path / "page.md").read_text("utf-8")


def test_page_explains_a_peer_that_is_faster_than_edgetl(results: Results, tmp_path: Path) -> None:
    results.add("latency", PEER, **_row([[3.0, 3.0], [6.0, 6.0]]))
    write_page(results, tmp_path / "page.md")
    assert f"- {PEER}: latency 0.75 of edgetl's. " in (tmp_path / "page.md").read_text("utf-8")


def test_page_lists_a_contender_that_failed_with_its_reason(results: Results, tmp_path: Path) -> None:
    results.add("latency", "Model API, fp32", reason="no such file")
    write_page(results, tmp_path / "page.md")
    assert "not measured: no such file" in _line(tmp_path / "page.md", "Model API, fp32")
    assert "not measured" in _line(tmp_path / "page.md", "OpenVINO, fp32")


def test_page_compares_trainings_with_the_same_images_and_seed(results: Results, tmp_path: Path) -> None:
    facts = {"set": "photos", "budget": "10 per class", "cpu_s": 5.0, "settings": "defaults"}
    for tool, seed, accuracy in (("edgetl", 0, 0.8), ("edgetl", 1, 0.1), ("fastai", 0, 0.7)):
        results.add("training", f"{tool} {seed}", tool=tool, seed=seed, accuracy=accuracy, **facts)
    write_page(results, tmp_path / "page.md")
    assert "| fastai | 0.700 | 0.700 | +10.0, n = 1 | 1 | 5 |" in (tmp_path / "page.md").read_text("utf-8")


def test_results_continue_in_a_second_process(results: Results) -> None:
    again = Results(results.path)
    assert again.get("latency", PEER) == results.get("latency", PEER)
    assert ("latency", PEER) in again


@pytest.mark.parametrize(
    "environment",
    [next(item for item in ENVIRONMENTS if item.missing), Environment("broken", ("./no-such-folder",))],
    ids=["no registry has it", "the installer fails"],
)
def test_environment_that_cannot_be_installed_is_listed_with_the_reason(environment: Environment, results: Results, tmp_path: Path) -> None:
    found = install(tmp_path, environment)
    results.add("environment", environment.name, date="2026-01-02", **found)
    assert found["reason"]
    write_page(results, tmp_path / "page.md")
    if environment.missing:
        assert str(found["reason"]) in _line(tmp_path / "page.md", environment.name)
