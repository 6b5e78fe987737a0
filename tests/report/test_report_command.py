"""Command ``edgetl report``, and its page in Chromium."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgetl.core.bundle import Bundle
from edgetl.report.models import RunFacts, group_models
from edgetl.report.page import write_report
from edgetl.train.artifacts.run import Run
from tests.command import edgetl

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def test_report_of_a_bundle_imports_no_torch(bundle: Bundle, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom edgetl.cli.app import app\n"
        "app(sys.argv[1:], standalone_mode=False)\nassert not {'torch', 'matplotlib', 'captum'} & set(sys.modules)"
    )
    out = tmp_path / "new" / "report.html"
    done = subprocess.run([sys.executable, "-c", code, "report", bundle.path, "--out", out, "--json"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    (model,) = json.loads(done.stdout)["models"]
    assert model["kind"] == "bundle" and model["test"] is None and model["missing"] and out.is_file()


def test_report_replaces_only_its_own_file(bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    write_report(group_models([], [bundle]), out)
    done = edgetl("report", bundle.path, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "digits (bundle): 6 variants" in done.stdout and f"written to {out}" in done.stdout
    out.write_text("my page")
    done = edgetl("report", bundle.path, "--out", out)
    assert done.returncode == 3 and "edgetl did not write it" in done.stderr and out.read_text() == "my page"


@pytest.mark.slow
def test_report_of_a_run_shows_its_bundle_and_rejects_its_folder(run: Run, bundle: Bundle, tmp_path: Path) -> None:
    done = edgetl("report", run.path, bundle.path, "--images", "1", "--out", tmp_path / "report.html", "--json")
    assert done.returncode == 0, done.stderr
    (model,) = json.loads(done.stdout)["models"]
    assert model["kind"] == "run and bundle" and model["shown"] == 1
    done = edgetl("report", run.path, "--out", run.path / "report.html")
    assert done.returncode == 3 and "is inside the model" in " ".join(done.stderr.split())


def test_occlusion_map_shows_the_part_that_decides() -> None:
    pytest.importorskip("captum", reason="captum is not installed")
    from edgetl.report.saliency import occlusion_maps

    class Corner(nn.Module):
        """Network whose second output is the brightness of the upper left quarter."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            bright = images[:, :, :16, :16].mean(dim=(1, 2, 3))
            return torch.stack([torch.zeros_like(bright), bright], dim=1)

    (found,) = occlusion_maps(Corner(), np.ones((1, 3, 32, 32), np.float32))
    assert found[:12, :12].min() > 0 and found[20:, 20:].max() == 0


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_page_is_accessible_offline_and_fits_a_phone(run_facts: RunFacts, bundle: Bundle, tmp_path: Path) -> None:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed").Axe()
    models, file = group_models([run_facts], [bundle]), tmp_path / "report.html"
    write_report((*models, *group_models([], [bundle])), file)
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        for scheme, width in (("light", 390), ("dark", 1280)):
            context: Any = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme, offline=True)
            page, requests, messages = context.new_page(), list[str](), list[str]()
            page.on("request", lambda request, found=requests: found.append(request.url))
            page.on("console", lambda message, found=messages: found.append(message.text))
            page.goto(file.as_uri(), timeout=300_000)
            assert not page.evaluate("document.documentElement.scrollWidth > innerWidth")
            faults = axe.run(page).response["violations"]
            assert [(item["id"], item["impact"], item["nodes"][0]["html"]) for item in faults] == []
            assert {url.partition(":")[0] for url in requests} <= {"file", "data"} and messages == []
        browser.close()
