"""The page at ``/`` in a real browser, before a real server: what a person sees, hears and can reach."""

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
from tests.serve.serving import serving

api = pytest.importorskip("playwright.sync_api", reason="the page is tested with playwright, which is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="the page is tested in Chromium, which is not installed")

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
)  # fmt: skip
SIZES = {"phone": (390, 844), "desktop": (1280, 800)}
BROKEN = {"name": "broken.png", "mimeType": "image/png", "buffer": b"no picture"}
TRANSFER = """([bytes, name]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([Uint8Array.from(bytes)], name, { type: "image/png" }));
  return transfer;
}"""
# Every text that is seen, with the ratio (WCAG 2.2, 1.4.3) between its colour and that of the nearest ground that is not transparent.
CONTRASTS = """() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parts(getComputedStyle(at).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest("option, noscript, script")) continue;
    const style = getComputedStyle(element);
    const shades = [light(parts(element.ownerSVGElement ? style.fill : style.color)), light(ground(element))].sort((a, b) => b - a);
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
    """One visit: its page, what the browser complained about, and every host that it asked."""

    def __init__(self, browser: Any, server: str, size: tuple[int, int] = SIZES["desktop"], **options: Any) -> None:
        self.context = browser.new_context(viewport={"width": size[0], "height": size[1]}, base_url=f"http://{server}", **options)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.hosts: set[str] = set()
        self.page.on("console", lambda message: self.complaints.append(message.text) if message.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.context.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))

    def open(self) -> Any:
        """The page, once it shows the model."""
        self.page.goto("/")
        self.page.wait_for_selector("#card table")
        return self.page


@pytest.fixture
def visit(browser: Any, server: str) -> Iterator[Visit]:
    opened = Visit(browser, server)
    yield opened
    opened.context.close()


@pytest.fixture(scope="module")
def picture(run: Run) -> Path:
    return run.samples("test")[3].path


@pytest.fixture(scope="module")
def expected(bundle: Bundle, picture: Path) -> Prediction:
    return load(bundle, variant="onnx-fp32").predict(picture)


def said(page: Any) -> tuple[str, str]:
    """The verdict that stands there: the class, and its share."""
    page.wait_for_selector(".verdict")
    return page.locator(".verdict strong").inner_text(), page.locator(".verdict .share").inner_text().replace("\u202f", " ")


def answer_of(expected: Prediction) -> tuple[str, str]:
    return expected.label, f"{100 * expected.score:.1f} %"


def test_a_chosen_file_gets_the_devices_own_answer(visit: Visit, server: str, picture: Path, expected: Prediction) -> None:
    page = visit.open()
    page.set_input_files("#file", picture)
    assert said(page) == answer_of(expected)
    assert page.locator(".bars li").count() == 5 and page.locator(".bars .chosen .label").inner_text() == expected.label
    page.get_by_role("button", name="Show all 10 classes").click()
    assert page.locator(".bars li").count() == 10
    assert expected.label in page.locator("#spoken").inner_text(), "a screen reader hears it"
    page.wait_for_selector("#preview:not([hidden])")
    assert picture.name in page.locator("#about-picture").inner_text()
    assert "inference" in page.locator("#timing .legend").inner_text()
    assert visit.hosts - {""} == {server} and not visit.complaints


def test_the_file_is_sent_as_it_is(visit: Visit, bundle: Bundle, picture: Path) -> None:
    page = visit.open()
    # What a re-encoding would lose: bytes behind the picture's end.
    photo = picture.read_bytes() + b"kept"
    with page.expect_request("**/predict?*") as asked:
        page.set_input_files("#file", files=[{"name": "a.png", "mimeType": "image/png", "buffer": photo}])
    assert asked.value.headers["content-type"] == "image/png" and asked.value.method == "POST"
    assert asked.value.all_headers()["content-length"] == str(len(photo))
    assert asked.value.url.endswith(f"/predict?model={bundle.manifest.name}&version={bundle.manifest.release}")


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_a_dropped_or_pasted_picture_is_answered(visit: Visit, picture: Path, expected: Prediction, way: str) -> None:
    page = visit.open()
    transfer = page.evaluate_handle(TRANSFER, [list(picture.read_bytes()), picture.name])
    if way == "drop":
        page.dispatch_event("footer", "dragenter", {"dataTransfer": transfer})
        assert page.locator(".drop-hint").is_visible()
        page.dispatch_event("footer", "drop", {"dataTransfer": transfer})
        assert not page.locator(".drop-hint").is_visible()
    else:
        page.evaluate("data => window.dispatchEvent(new ClipboardEvent('paste', { clipboardData: data }))", transfer)
    assert said(page) == answer_of(expected) and not visit.complaints


def test_the_cameras_picture_is_answered_and_the_camera_stops(visit: Visit) -> None:
    page = visit.open()
    page.get_by_role("button", name="Use the camera").click()
    # Not by wait_for_function: it evaluates a text in the page, which the page's policy forbids.
    api.expect(page.locator("#viewfinder")).to_have_js_property("readyState", 4)
    tracks = page.evaluate_handle("document.getElementById('viewfinder').srcObject.getTracks()")
    with page.expect_request("**/predict?*") as asked:
        page.keyboard.press("Enter")
    assert asked.value.headers["content-type"] == "image/jpeg"
    said(page)
    assert page.evaluate("tracks => tracks.map((track) => track.readyState)", tracks) == ["ended"]
    assert not page.locator("#viewfinder").is_visible() and not visit.complaints


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [("navigator.mediaDevices", "offers no camera to pages"), ("window.isSecureContext", "only to pages on https or on localhost")],
)
def test_without_a_camera_the_page_says_why(visit: Visit, missing: str, sentence: str) -> None:
    owner, name = missing.split(".")
    visit.context.add_init_script(f"Object.defineProperty({owner}, '{name}', {{ value: undefined }})")
    page = visit.open()
    page.get_by_role("button", name="Use the camera").click()
    assert sentence in page.locator("#camera-note").inner_text()


def test_a_broken_file_shows_what_the_server_says_of_it(visit: Visit, server: str, picture: Path, expected: Prediction) -> None:
    page = visit.open()
    refused = httpx.post(f"http://{server}/predict", content=b"no picture").json()["error"]
    page.set_input_files("#file", files=[BROKEN])
    page.wait_for_selector(".trouble-title")
    assert refused.lower().rstrip(".") in page.get_by_role("alert").inner_text().lower()
    assert page.locator("#unseeable").is_visible() and page.locator(".verdict").count() == 0
    page.set_input_files("#file", picture)
    assert said(page) == answer_of(expected) and page.get_by_role("alert").inner_text() == ""


def test_a_busy_and_an_absent_server_are_told_apart_and_asked_again(visit: Visit, picture: Path, expected: Prediction) -> None:
    page = visit.open()
    page.route("**/predict?*", lambda route: route.fulfill(status=503, headers={"Retry-After": "2"}, json={"error": "no"}))
    page.set_input_files("#file", picture)
    page.wait_for_selector(".trouble-title")
    assert "try again in 2 seconds" in page.get_by_role("alert").inner_text()
    page.route("**/predict?*", lambda route: route.abort())
    page.get_by_role("button", name="Ask again").click()
    api.expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
    page.unroute_all()
    page.get_by_role("button", name="Ask again").click()
    assert said(page) == answer_of(expected)


def test_a_file_that_is_too_large_is_not_sent(visit: Visit) -> None:
    page = visit.open()
    page.evaluate(
        """() => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(17_000_000)], "huge.png", { type: "image/png" }));
          window.dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer }));
        }"""
    )
    page.wait_for_selector(".trouble-title")
    assert "It has 17 MB, and the server takes 16 MB at most." in page.get_by_role("alert").inner_text().replace("\u202f", " ")
    assert not visit.complaints


def test_the_token_is_asked_for_once_and_kept_for_the_tab(
    browser: Any, bundle: Bundle, picture: Path, expected: Prediction, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("a-token-of-some-length")
    with serving(bundle.path, options=("--token-file", str(tmp_path / "token"))) as served:
        visit = Visit(browser, served.address)
        page = visit.page
        page.goto("/")
        page.wait_for_selector("dialog[open]")
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        api.expect(page.locator("dialog")).to_contain_text("did not accept that token")
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Enter the token").click()
        page.keyboard.type("a-token-of-some-length")
        page.keyboard.press("Enter")
        page.wait_for_selector("#card table")
        page.set_input_files("#file", picture)
        assert said(page) == answer_of(expected)
        assert page.locator("#curl").inner_text().startswith('curl -H "Authorization: Bearer $TOKEN"')
        page.reload()
        page.wait_for_selector("#card table")
        assert not page.locator("dialog").is_visible()
        visit.context.close()


def test_the_keyboard_alone_is_enough(visit: Visit, picture: Path, expected: Prediction) -> None:
    page = visit.open()

    def tab_to(selector: str) -> None:
        for _ in range(20):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
        raise AssertionError(f"the keyboard does not reach {selector}")

    tab_to("#file")
    assert page.evaluate("getComputedStyle(document.getElementById('choose')).outlineStyle") == "solid", "the focus is seen"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(picture)
    assert said(page) == answer_of(expected)
    tab_to("[aria-controls=bars]")
    page.keyboard.press("Enter")
    assert page.locator(".bars li").count() == 10 and not visit.complaints


def test_the_servers_stages_add_up_to_the_round_trip(visit: Visit, picture: Path) -> None:
    page = visit.open()

    def timed(route: Any) -> None:
        answer = route.fetch()
        stages = "queue;dur=0.12, decode;dur=2.3, preprocess;dur=1.1, inference;dur=4.2, total;dur=8.0"
        route.fulfill(response=answer, headers={**answer.headers, "server-timing": stages})

    page.route("**/predict?*", timed)
    page.set_input_files("#file", picture)
    page.wait_for_selector(".stack")
    text = page.locator("#timing").inner_text().replace("\u202f", " ")
    times = {name: float(value) for name, value in re.findall(r"([a-z ]+?)\s+([\d.]+) ms", text.split("server.")[1])}
    assert [times[name] for name in ("queue", "decode", "preprocess", "inference", "rest of the server")] == [0.12, 2.3, 1.1, 4.2, 0.28]
    whole = re.search(r"Round trip ([\d.]+) ms, of which 8\.00 ms", text)
    assert whole and sum(times.values()) == pytest.approx(float(whole[1]), abs=0.6)


def test_without_the_servers_stages_the_browsers_own_time_stands_there(visit: Visit, picture: Path) -> None:
    page = visit.open()

    def bare(route: Any) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, headers={name: value for name, value in answer.headers.items() if name != "server-timing"})

    page.route("**/predict?*", bare)
    page.set_input_files("#file", picture)
    api.expect(page.locator("#timing")).to_contain_text("measured by the browser")
    assert page.locator(".stack").count() == 0


def test_the_charts_show_what_the_server_answers(visit: Visit, server: str, picture: Path) -> None:
    page = visit.open()
    page.wait_for_selector("#throughput figcaption:empty", state="attached")
    assert "Measuring" in page.locator("#throughput svg.chart").text_content() or page.locator("#throughput .line").count()
    with httpx.Client(base_url=f"http://{server}") as client:
        for _ in range(20):
            assert client.post("/predict", content=picture.read_bytes()).status_code == 200
    api.expect(page.locator("#throughput figcaption")).to_contain_text(re.compile(r"\d+ requests answered, at most [\d.]+ a second"))
    api.expect(page.locator("#latency figcaption")).to_contain_text(re.compile(r"Half of all requests took at most about [\d.]+"))
    assert page.locator("#latency .plot .line, #latency .plot .dot").count() >= 2
    assert "in progress" in page.locator("#gauges").inner_text()
    assert page.locator("#throughput svg.chart").get_attribute("aria-label") == "Throughput of the last two minutes, requests/s"


def test_rates_and_quantiles_are_prometheus_own(visit: Visit) -> None:
    found = visit.open().evaluate(
        """async () => {
          const { between, parse, quantile, reading } = await import("/page-metrics.js");
          const text = (ok, low, all) => `# HELP edgetl_requests_total x\\nedgetl_requests_total{model="a\\\\"}b",code="200"} ${ok}.0\\n` +
            `edgetl_requests_total{model="a",code="503"} 3\\nedgetl_rejected_total{reason="queue full"} 3\\n` +
            ["x", "y"].map((m) => `edgetl_request_duration_seconds_bucket{model="${m}",le="0.1"} ${low}\\n` +
              `edgetl_request_duration_seconds_bucket{model="${m}",le="0.2"} ${all}\\n` +
              `edgetl_request_duration_seconds_bucket{model="${m}",le="+Inf"} ${all}\\n`).join("") + "edgetl_inflight 2.0\\n";
          const step = between(reading(text(10, 5, 10), 0), reading(text(30, 10, 20), 2));
          const again = between(reading(text(30, 10, 20), 2), reading(text(4, 2, 4), 4));
          const cut = [[0.1, 0], [Infinity, 4]];
          return [parse(text(1, 1, 1))[0].labels.model, step.answered, step.rejected, step.failed, quantile(0.5, step.buckets),
            quantile(0.75, step.buckets), quantile(0.25, step.buckets), again.restarted, again.answered, quantile(0.5, cut),
            quantile(0.5, [[0.1, 0], [Infinity, 0]]), reading(text(1, 1, 1), 0).inflight, reading("", 0).waiting ?? "none"];
        }"""
    )
    assert found == ['a"}b', 20, 0, 0, 0.1, pytest.approx(0.15), 0.05, True, 4, 0.1, None, 2, "none"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", [*SIZES, "narrow"])
def test_it_fits_can_be_read_and_is_in_order_for_assistive_technology(
    browser: Any, server: str, picture: Path, tmp_path: Path, device: str, scheme: str
) -> None:
    visit = Visit(browser, server, SIZES.get(device, (360, 640)), color_scheme=scheme)
    page = visit.open()
    page.set_input_files("#file", picture)
    said(page)
    api.expect(page.locator("#throughput figcaption")).not_to_be_empty()
    page.screenshot(path=tmp_path / f"{device}-{scheme}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    pale = [(text, round(ratio, 2)) for text, ratio in page.evaluate(CONTRASTS) if ratio < 4.5]
    assert not pale
    assert page.locator("h1").count() == 1 and page.get_by_role("main").count() == 1
    assert page.locator("html").get_attribute("lang") == "en" and page.locator("img:not([alt])").count() == 0
    assert page.evaluate("[...document.querySelectorAll('input, select')].every((field) => field.labels.length === 1)")
    assert page.evaluate("[...document.querySelectorAll('button')].every((button) => button.textContent.trim())")
    assert not visit.complaints
    visit.context.close()


def test_the_pages_files_are_revalidated_and_let_nothing_else_in(server: str) -> None:
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
