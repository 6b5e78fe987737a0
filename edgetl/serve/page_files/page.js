// Web page of `edgetl serve`: choose a model, send an image, show the prediction and the traffic of the server.

import { connectCamera, stopCamera } from "./page-camera.js";
import { showCard, summary } from "./page-card.js";
import { buildCharts, drawCharts } from "./page-charts.js";
import { bytes, find, make } from "./page-dom.js";
import { WINDOW_S, difference, readMetrics } from "./page-metrics.js";
import { showPrediction, showTiming } from "./page-prediction.js";
import { RequestError, fetchPath, predict, promptForToken, readJson, token } from "./page-server.js";

const POLL_MS = 2000;
// Delay before the old prediction is shown as outdated.
const BUSY_AFTER_MS = 200;

const state = { models: [], model: null, maxBytes: null, image: null, imageUrl: null, request: null, metrics: null, steps: [], locked: false };

// ---- models

async function loadModels() {
  const { models, max_body_bytes: maxBytes } = await readJson(await fetchPath("models"));
  Object.assign(state, { models, maxBytes });
  const menu = find("model");
  menu.replaceChildren(...models.map((card, index) => make("option", { value: index }, optionText(card))));
  find("choice").hidden = models.length < 2;
  // After a reload of the bundles, keep the selected model if it is still served.
  const same = (card) => card.name === state.model?.name && card.version === state.model.version;
  const index = Math.max(0, models.findIndex(same), models.findIndex((card) => card.name === state.model?.name && !models.some(same)));
  menu.value = String(index);
  chooseModel(models[index]);
}

function optionText({ name, version, versions }) {
  return versions.length > 1 ? `${name}, release ${version}` : name;
}

function chooseModel(card) {
  state.model = card;
  document.title = `${card.name} · edgetl`;
  find("name").textContent = card.name;
  find("summary").textContent = summary(card);
  find("curl").textContent = curlCommand(card);
  showCard(card);
  if (state.image) predictImage();
  else showPlaceholder();
}

function curlCommand({ name, version }) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const query = new URLSearchParams(state.models.length > 1 ? { model: name, version } : { model: name });
  const header = token() ? ' -H "Authorization: Bearer $TOKEN"' : "";
  return `curl${header} --data-binary @photo.jpg ${quoted(new URL(`predict?${query}`, location.href).href)}`;
}

function showPlaceholder() {
  const { labels, task } = state.model;
  const shown = labels.slice(0, 20).join(", ") + (labels.length > 20 ? " …" : "");
  const outputs = { classification: `Classes (${labels.length}): ${shown}`, "multi-label": `Labels (${labels.length}): ${shown}`, anomaly: `Classes: ${shown}` };
  find("result").replaceChildren(
    make("p", { class: "hint" }, "The prediction appears here."),
    make("p", { class: "hint" }, outputs[task] ?? `Target: ${shown} (${task === "ordinal" ? "ordinal level" : "number"})`),
  );
  if (state.maxBytes) find("image-info").textContent = `At most ${bytes(state.maxBytes)}. The page sends images unchanged.`;
}

// ---- image and prediction

function selectImage(file) {
  if (!file) return;
  stopCamera();
  find("camera-note").textContent = "";
  if (state.imageUrl) URL.revokeObjectURL(state.imageUrl);
  Object.assign(state, { image: file, imageUrl: URL.createObjectURL(file) });
  const info = `${file.name || "Pasted image"} · ${bytes(file.size)}`;
  const preview = find("preview");
  const showPreview = (visible) => {
    find("image-area").dataset.shows = visible ? "image" : "file";
    preview.hidden = !visible;
    find("no-preview").hidden = visible;
  };
  preview.onload = () => {
    showPreview(true);
    // Enlarge small images without interpolation.
    preview.classList.toggle("tiny", Math.max(preview.naturalWidth, preview.naturalHeight) < 128);
    find("image-info").textContent = `${info} · ${preview.naturalWidth} × ${preview.naturalHeight} pixels`;
  };
  preview.onerror = () => showPreview(false);
  preview.src = state.imageUrl;
  find("image-info").textContent = info;
  if (state.model) predictImage();
}

async function predictImage() {
  state.request?.abort();
  const request = new AbortController();
  state.request = request;
  const { model, image } = state;
  const busy = setTimeout(() => find("result").setAttribute("aria-busy", "true"), BUSY_AFTER_MS);
  try {
    const result = await predict(model, image, { maxBytes: state.maxBytes, signal: request.signal });
    if (state.request !== request) return;
    find("error").replaceChildren();
    find("announcement").textContent = showPrediction(model, result.prediction);
    showTiming(result);
    // On a phone, the prediction is below the visible part of the page.
    find("result").scrollIntoView({ block: "nearest" });
    find("curl").textContent = curlCommand(model);
  } catch (error) {
    if (state.request === request && error.name !== "AbortError") showError(error);
  } finally {
    clearTimeout(busy);
    if (state.request === request) find("result").setAttribute("aria-busy", "false");
  }
}

function showError(error) {
  const known = error instanceof RequestError ? error : new RequestError("The page cannot show the prediction.", String(error.message));
  find("result").replaceChildren();
  find("timing").replaceChildren();
  find("announcement").textContent = "";
  const retry = make("button", { type: "button" }, "Try again");
  retry.onclick = predictImage;
  find("error").replaceChildren(
    make("p", { class: "error-title" }, known.title),
    ...(known.detail ? [make("p", {}, known.detail)] : []),
    ...(known.retryable ? [retry] : []),
  );
  find("error").scrollIntoView({ block: "nearest" });
}

function connectImageInputs() {
  find("file").onchange = ({ target }) => {
    selectImage(target.files[0]);
    // Choosing the same file again is then a change event too.
    target.value = "";
  };
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  let depth = 0;
  const trackDrag = (change) => (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    depth = Math.max(0, depth + change);
    document.body.toggleAttribute("data-dropping", depth > 0);
  };
  window.addEventListener("dragenter", trackDrag(1));
  window.addEventListener("dragleave", trackDrag(-1));
  window.addEventListener("dragover", trackDrag(0));
  window.addEventListener("drop", (event) => {
    trackDrag(-depth)(event);
    if (hasFiles(event)) selectImage(event.dataTransfer.files[0]);
  });
  window.addEventListener("paste", (event) => selectImage(event.clipboardData?.files[0]));
  connectCamera(selectImage);
}

// ---- server

function showState(name, text) {
  find("state").dataset.state = name;
  // An unchanged text must not be announced again every two seconds.
  if (find("state").textContent !== text) find("state").textContent = text;
  find("unlock").hidden = name !== "locked";
}

async function refresh() {
  if (!state.models.length) await loadModels();
  const response = await fetchPath("metrics");
  if (!response.ok) await readJson(response);
  const now = readMetrics(await response.text(), performance.now() / 1000);
  if (state.metrics && state.metrics.served !== now.served) await loadModels();
  if (state.metrics) state.steps.push(difference(state.metrics, now));
  state.metrics = now;
  state.steps = state.steps.filter((step) => step.time > now.time - WINDOW_S);
  const { inflight, waiting, captured, drifted } = now;
  const gauges = [
    inflight === undefined ? "" : `${inflight} in progress`,
    waiting === undefined ? "" : `${waiting} waiting`,
    captured === undefined ? "" : `${captured} captured`,
    drifted.length ? `drift: ${drifted.join(", ")}` : "",
  ];
  find("gauges").textContent = gauges.filter(Boolean).join(" · ");
  showState("ready", "ready");
  redraw();
}

function redraw(message = "") {
  drawCharts(state.steps, performance.now() / 1000, message);
}

async function poll() {
  if (!document.hidden && !state.locked) {
    try {
      await refresh();
    } catch (error) {
      state.locked = error.locked === true;
      showState(state.locked ? "locked" : "away", state.locked ? "token required" : "unreachable");
      find("gauges").textContent = "";
      if (!state.models.length) find("name").textContent = state.locked ? "Token required" : "Server unreachable";
      redraw(state.locked ? "Metrics require the token" : "Server unreachable");
    }
  }
  setTimeout(poll, POLL_MS);
}

function unlock() {
  promptForToken(false).then(() => { state.locked = false; }, () => {});
}

function connectCopyButton() {
  const button = find("copy");
  button.hidden = !navigator.clipboard;
  button.onclick = async () => {
    await navigator.clipboard.writeText(find("curl").textContent);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  };
}

find("model").onchange = ({ target }) => chooseModel(state.models[Number(target.value)]);
find("unlock").onclick = unlock;
connectImageInputs();
connectCopyButton();
buildCharts(() => redraw());
poll();
