"""Web page in Chromium with a real server: predictions, errors, charts, keyboard, accessibility."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from edgetl.core.bundle import Bundle
from edgetl.core.results import Prediction
from edgetl.runtime.predictor import load
from edgetl.train.artifacts.run import Run
from tests.serve.serving import TOKEN, Served

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)
SIZES = {"desktop": (1280, 800), "phone": (390, 844), "narrow": (360, 640)}
# Time limit of a wait, ms. Chromium is slow on a busy host.
TIMEOUT_MS = 300_000
api.expect.set_options(timeout=TIMEOUT_MS)
BROKEN = {"name": "broken.png", "mimeType": "image/png", "buffer": b"not an image"}
TRANSFER = """([bytes, name]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([Uint8Array.from(bytes)], name, { type: "image/png" }));
  return transfer;
}"""
# All visible texts with their contrast ratio (WCAG 2.2, 1.4.3) against the nearest opaque background.
CONTRASTS = """() => {
  const parts = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const background = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = parts(getComputedStyle(at).backgroundColor);
      if (color.length < 4 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest("option, noscript, script")) continue;
    const style = getComputedStyle(element);
    const shades = [light(parts(element.ownerSVGElement ? style.fill : style.color)), light(background(element))].sort((a, b) => b - a);
    found.push([walker.currentNode.data.trim(), (shades[0] + 0.05) / (shades[1] + 0.05)]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


class Visit:
    """Visit of the page in a browser context of its own.

    Attributes:
        page: playwright's page.
        complaints: errors and warnings in the browser's console.
        hosts: hosts of all requests.
    """

    def __init__(self, browser: Any, server: str, size: tuple[int, int] = SIZES["desktop"], **options: Any) -> None:
        self.context = browser.new_context(viewport={"width": size[0], "height": size[1]}, base_url=f"http://{server}", **options)
        self.context.set_default_timeout(TIMEOUT_MS)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.hosts: set[str] = set()
        self.page.on("console", lambda message: self.complaints.append(message.text) if message.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.context.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))

    def open(self) -> Any:
        """Open the page, and wait until it shows the model card."""
        self.page.goto("/")
        self.page.wait_for_selector("#card table")
        return self.page


@pytest.fixture
def visit(browser: Any, server: str) -> Iterator[Visit]:
    opened = Visit(browser, server)
    yield opened
    opened.context.close()


@pytest.fixture(scope="module")
def image(run: Run) -> Path:
    return run.samples("test")[3].path


@pytest.fixture(scope="module")
def expected(bundle: Bundle, image: Path) -> Prediction:
    return load(bundle, variant="onnx-fp32").predict(image)


def shown_prediction(page: Any) -> tuple[str, str]:
    """Wait for a prediction, and return its label and score as the page shows them."""
    page.wait_for_selector(".headline")
    return page.locator(".headline strong").inner_text(), page.locator(".headline .score").inner_text().replace("\u202f", " ")


def as_shown(expected: Prediction) -> tuple[str | None, str]:
    return expected.label, f"{100 * expected.score:.1f} %"


def test_page_shows_the_same_prediction_as_python(visit: Visit, server: str, image: Path, expected: Prediction) -> None:
    page = visit.open()
    page.set_input_files("#file", image)
    assert shown_prediction(page) == as_shown(expected)
    assert page.locator(".bars li").count() == 5 and page.locator(".bars .predicted .label").inner_text() == expected.label
    page.get_by_role("button", name="Show all 10 classes").click()
    assert page.locator(".bars li").count() == 10
    assert expected.label in page.locator("#announcement").inner_text(), "a screen reader announces it"
    page.wait_for_selector("#preview:not([hidden])")
    assert image.name in page.locator("#image-info").inner_text()
    assert "inference" in page.locator("#timing .legend").inner_text()
    assert visit.hosts - {""} == {server} and not visit.complaints


def test_page_sends_the_file_unchanged(visit: Visit, bundle: Bundle, image: Path) -> None:
    page = visit.open()
    # Encoding the image again would drop bytes behind its end.
    data = image.read_bytes() + b"kept"
    with page.expect_request("**/predict?*") as sent:
        page.set_input_files("#file", files=[{"name": "a.png", "mimeType": "image/png", "buffer": data}])
    assert sent.value.headers["content-type"] == "image/png" and sent.value.method == "POST"
    assert sent.value.all_headers()["content-length"] == str(len(data))
    assert sent.value.url.endswith(f"/predict?model={bundle.manifest.name}&version={bundle.manifest.release}")


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_page_predicts_a_dropped_or_pasted_image(visit: Visit, image: Path, expected: Prediction, way: str) -> None:
    page = visit.open()
    transfer = page.evaluate_handle(TRANSFER, [list(image.read_bytes()), image.name])
    if way == "drop":
        page.dispatch_event("footer", "dragenter", {"dataTransfer": transfer})
        assert page.locator(".drop-hint").is_visible()
        page.dispatch_event("footer", "drop", {"dataTransfer": transfer})
        assert not page.locator(".drop-hint").is_visible()
    else:
        page.evaluate("data => window.dispatchEvent(new ClipboardEvent('paste', { clipboardData: data }))", transfer)
    assert shown_prediction(page) == as_shown(expected) and not visit.complaints


def test_page_predicts_a_camera_image_and_stops_the_camera(visit: Visit) -> None:
    page = visit.open()
    page.get_by_role("button", name="Use the camera").click()
    # The page's content security policy forbids `wait_for_function`, which evaluates a string.
    api.expect(page.locator("#viewfinder")).to_have_js_property("readyState", 4)
    tracks = page.evaluate_handle("document.getElementById('viewfinder').srcObject.getTracks()")
    with page.expect_request("**/predict?*") as sent:
        page.keyboard.press("Enter")
    assert sent.value.headers["content-type"] == "image/jpeg"
    shown_prediction(page)
    assert page.evaluate("tracks => tracks.map((track) => track.readyState)", tracks) == ["ended"]
    assert not page.locator("#viewfinder").is_visible() and not visit.complaints


@pytest.mark.parametrize(
    ("missing", "message"),
    [("navigator.mediaDevices", "does not support the camera"), ("window.isSecureContext", "only to pages on https or on localhost")],
)
def test_page_shows_why_the_camera_is_unavailable(visit: Visit, missing: str, message: str) -> None:
    owner, name = missing.split(".")
    visit.context.add_init_script(f"Object.defineProperty({owner}, '{name}', {{ value: undefined }})")
    page = visit.open()
    page.get_by_role("button", name="Use the camera").click()
    assert message in page.locator("#camera-note").inner_text()


def test_page_shows_the_servers_error_for_a_broken_file(visit: Visit, server: str, image: Path, expected: Prediction) -> None:
    page = visit.open()
    error = httpx.post(f"http://{server}/predict", content=b"not an image", timeout=None).json()["error"]
    page.set_input_files("#file", files=[BROKEN])
    page.wait_for_selector(".error-title")
    assert error.lower().rstrip(".") in page.get_by_role("alert").inner_text().lower()
    api.expect(page.locator("#no-preview")).to_be_visible()
    assert page.locator(".headline").count() == 0
    page.set_input_files("#file", image)
    assert shown_prediction(page) == as_shown(expected) and page.get_by_role("alert").inner_text() == ""


def test_page_distinguishes_an_overloaded_and_an_unreachable_server(visit: Visit, image: Path, expected: Prediction) -> None:
    page = visit.open()
    page.route("**/predict?*", lambda route: route.fulfill(status=503, headers={"Retry-After": "2"}, json={"error": "no"}))
    page.set_input_files("#file", image)
    page.wait_for_selector(".error-title")
    assert "Try again in 2 seconds" in page.get_by_role("alert").inner_text()
    page.route("**/predict?*", lambda route: route.abort())
    page.get_by_role("button", name="Try again").click()
    api.expect(page.get_by_role("alert")).to_contain_text("unreachable")
    page.unroute_all()
    page.get_by_role("button", name="Try again").click()
    assert shown_prediction(page) == as_shown(expected)


def test_page_does_not_send_a_file_that_is_too_large(visit: Visit) -> None:
    page = visit.open()
    page.evaluate(
        """() => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(17_000_000)], "huge.png", { type: "image/png" }));
          window.dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer }));
        }"""
    )
    page.wait_for_selector(".error-title")
    assert "The file has 17 MB, and the limit is 16 MB." in page.get_by_role("alert").inner_text().replace("\u202f", " ")
    assert not visit.complaints


def test_page_prompts_for_the_token_once_per_tab(browser: Any, token_server: Served, image: Path, expected: Prediction) -> None:
    visit = Visit(browser, token_server.address)
    page = visit.page
    page.goto("/")
    page.wait_for_selector("dialog[open]")
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    api.expect(page.locator("dialog")).to_contain_text("did not accept this token")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Enter the token").click()
    page.keyboard.type(TOKEN)
    page.keyboard.press("Enter")
    page.wait_for_selector("#card table")
    page.set_input_files("#file", image)
    assert shown_prediction(page) == as_shown(expected)
    assert page.locator("#curl").inner_text().startswith('curl -H "Authorization: Bearer $TOKEN"')
    page.reload()
    page.wait_for_selector("#card table")
    assert not page.locator("dialog").is_visible()
    visit.context.close()


def test_page_works_with_the_keyboard_alone(visit: Visit, image: Path, expected: Prediction) -> None:
    # Playwright enables the interception of file choosers asynchronously, and `expect_file_chooser` does not wait for it. Chromium may then
    # handle the Enter key first and open its own dialog. A listener before the page loads enables the interception in time.
    visit.page.on("filechooser", lambda _chooser: None)
    page = visit.open()

    def tab_to(selector: str) -> None:
        for _ in range(20):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
        raise AssertionError(f"the keyboard does not reach {selector}")

    tab_to("#file")
    assert page.evaluate("getComputedStyle(document.getElementById('choose')).outlineStyle") == "solid", "the focus is visible"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(image)
    assert shown_prediction(page) == as_shown(expected)
    tab_to("[aria-controls=bars]")
    page.keyboard.press("Enter")
    assert page.locator(".bars li").count() == 10 and not visit.complaints


def test_stages_add_up_to_the_round_trip(visit: Visit, image: Path) -> None:
    page = visit.open()

    def timed(route: Any) -> None:
        response = route.fetch()
        stages = "queue;dur=0.12, decode;dur=2.3, preprocess;dur=1.1, inference;dur=4.2, total;dur=8.0"
        route.fulfill(response=response, headers={**response.headers, "server-timing": stages})

    page.route("**/predict?*", timed)
    page.set_input_files("#file", image)
    page.wait_for_selector(".stack")
    text = page.locator("#timing").inner_text().replace("\u202f", " ")
    times = {name: float(value) for name, value in re.findall(r"([a-z ]+?)\s+([\d.]+) ms", text.split("server.")[1])}
    assert [times[name] for name in ("queue", "decode", "preprocess", "inference", "rest of the server")] == [0.12, 2.3, 1.1, 4.2, 0.28]
    whole = re.search(r"Round trip ([\d.]+) ms, of which 8\.00 ms", text)
    assert whole and sum(times.values()) == pytest.approx(float(whole[1]), abs=0.6)


def test_round_trip_is_shown_without_server_timing(visit: Visit, image: Path) -> None:
    page = visit.open()

    def bare(route: Any) -> None:
        response = route.fetch()
        route.fulfill(response=response, headers={name: value for name, value in response.headers.items() if name != "server-timing"})

    page.route("**/predict?*", bare)
    page.set_input_files("#file", image)
    api.expect(page.locator("#timing")).to_contain_text("measured by the browser")
    assert page.locator(".stack").count() == 0


def test_charts_show_throughput_and_latency(visit: Visit, server: str, image: Path) -> None:
    page = visit.open()
    api.expect(page.locator("#throughput svg.chart")).to_contain_text(re.compile("Measuring|No requests in the last two minutes"))
    with httpx.Client(base_url=f"http://{server}", timeout=None) as client:
        for _ in range(20):
            assert client.post("/predict", content=image.read_bytes()).status_code == 200
    throughput = re.compile(r"\d+ successful requests, 0 rejected\. Peak: [\d.]+ requests per second\.")
    api.expect(page.locator("#throughput figcaption")).to_contain_text(throughput)
    api.expect(page.locator("#latency figcaption")).to_contain_text(re.compile(r"Median \(p50\) about [\d.]+"))
    assert page.locator("#latency .plot .line, #latency .plot .dot").count() >= 2
    assert "in progress" in page.locator("#gauges").inner_text()
    assert page.locator("#throughput svg.chart").get_attribute("aria-label") == "Throughput of the last two minutes, requests/s"


def test_rates_and_quantiles_equal_those_of_prometheus(visit: Visit) -> None:
    found = visit.open().evaluate(
        """async () => {
          const { difference, parse, quantile, readMetrics } = await import("/page-metrics.js");
          const text = (ok, low, all) => `# HELP edgetl_requests_total x\\nedgetl_requests_total{model="a\\\\"}b",code="200"} ${ok}.0\\n` +
            `edgetl_requests_total{model="a",code="503"} 3\\nedgetl_rejected_total{reason="queue full"} 3\\n` +
            ["x", "y"].map((m) => `edgetl_request_duration_seconds_bucket{model="${m}",le="0.1"} ${low}\\n` +
              `edgetl_request_duration_seconds_bucket{model="${m}",le="0.2"} ${all}\\n` +
              `edgetl_request_duration_seconds_bucket{model="${m}",le="+Inf"} ${all}\\n`).join("") + "edgetl_inflight 2.0\\n";
          const step = difference(readMetrics(text(10, 5, 10), 0), readMetrics(text(30, 10, 20), 2));
          const again = difference(readMetrics(text(30, 10, 20), 2), readMetrics(text(4, 2, 4), 4));
          const cut = [[0.1, 0], [Infinity, 4]];
          return [parse(text(1, 1, 1))[0].labels.model, step.successful, step.rejected, step.failed, quantile(0.5, step.buckets),
            quantile(0.75, step.buckets), quantile(0.25, step.buckets), again.restarted, again.successful, quantile(0.5, cut),
            quantile(0.5, [[0.1, 0], [Infinity, 0]]), readMetrics(text(1, 1, 1), 0).inflight, readMetrics("", 0).waiting ?? "none"];
        }"""
    )
    assert found == ['a"}b', 20, 0, 0, 0.1, pytest.approx(0.15), 0.05, True, 4, 0.1, None, 2, "none"]


@pytest.mark.parametrize("device", SIZES)
def test_page_fits_the_screen_and_is_accessible(browser: Any, server: str, image: Path, device: str) -> None:
    visit = Visit(browser, server, SIZES[device])
    page = visit.open()
    page.set_input_files("#file", image)
    shown_prediction(page)
    api.expect(page.locator("#throughput figcaption")).not_to_be_empty()
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        low = [(text, round(ratio, 2)) for text, ratio in page.evaluate(CONTRASTS) if ratio < 4.5]
        assert not low, scheme
    assert page.locator("h1").count() == 1 and page.get_by_role("main").count() == 1
    assert page.locator("html").get_attribute("lang") == "en" and page.locator("img:not([alt])").count() == 0
    assert page.evaluate("[...document.querySelectorAll('input, select')].every((field) => field.labels.length === 1)")
    assert page.evaluate("[...document.querySelectorAll('button')].every((button) => button.textContent.trim())")
    assert not visit.complaints
    visit.context.close()


def test_page_files_have_an_etag_and_a_strict_content_security_policy(server: str) -> None:
    with httpx.Client(base_url=f"http://{server}") as client:
        page = client.get("/")
        assert page.headers["content-type"] == "text/html; charset=utf-8" and page.headers["cache-control"] == "no-cache"
        assert page.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
        assert page.headers["x-content-type-options"] == "nosniff" and page.headers["referrer-policy"] == "no-referrer"
        again = client.get("/", headers={"If-None-Match": f'W/"old", {page.headers["etag"]}'})
        assert again.status_code == 304 and not again.content and again.headers["etag"] == page.headers["etag"]
        named = re.findall(r'(?:src|href)="(page\.[a-z]+)"', page.text)
        assert len(named) == 3 and all(client.get(f"/{name}").status_code == 200 for name in named)
        assert not re.search(r"<style|\sstyle=|\son\w+=|https?://", page.text)
