// The page of `edgetl serve`: choose a model, give it a picture, read the answer, and watch the server.

import { showAnswer, showTiming } from "./page-answer.js";
import { stopCamera, useCamera } from "./page-camera.js";
import { showCard, summary } from "./page-card.js";
import { buildCharts, drawCharts } from "./page-charts.js";
import { bytes, find, make } from "./page-dom.js";
import { WINDOW_S, between, reading } from "./page-metrics.js";
import { Trouble, answerOf, askToken, fetchFrom, predict, token } from "./page-server.js";

const POLL_MS = 2000;
const SLOW_MS = 200;

const state = { models: [], model: null, most: null, picture: null, address: null, asked: null, last: null, steps: [], locked: false };

// ---- the models

async function loadModels() {
  const { models, max_body_bytes: most } = await answerOf(await fetchFrom("models"));
  Object.assign(state, { models, most });
  const menu = find("model");
  menu.replaceChildren(...models.map((card, index) => make("option", { value: index }, nameOf(card))));
  find("choice").hidden = models.length < 2;
  // After the server loaded its bundles anew, the choice stays where it can.
  const same = (card) => card.name === state.model?.name && card.version === state.model.version;
  const index = Math.max(0, models.findIndex(same), models.findIndex((card) => card.name === state.model?.name && !models.some(same)));
  menu.value = String(index);
  chooseModel(models[index]);
}

function nameOf({ name, version, versions }) {
  return versions.length > 1 ? `${name}, release ${version}` : name;
}

function chooseModel(card) {
  state.model = card;
  document.title = `${card.name} · edgetl`;
  find("name").textContent = card.name;
  find("summary").textContent = summary(card);
  find("curl").textContent = command(card);
  showCard(card);
  if (state.picture) ask();
  else invite();
}

function command({ name, version }) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const query = new URLSearchParams(state.models.length > 1 ? { model: name, version } : { model: name });
  const secret = token() ? ' -H "Authorization: Bearer $TOKEN"' : "";
  return `curl${secret} --data-binary @picture.jpg ${quoted(new URL(`predict?${query}`, location.href).href)}`;
}

function invite() {
  const { labels, task } = state.model;
  const shown = labels.slice(0, 20).join(", ") + (labels.length > 20 ? " …" : "");
  const known = { classification: `It tells ${labels.length} classes apart: ${shown}.`, "multi-label": `It looks for ${labels.length} labels: ${shown}.` };
  find("result").replaceChildren(
    make("p", { class: "quiet-note" }, "No picture yet. The model's answer will stand here."),
    make("p", { class: "quiet-note" }, known[task] ?? `It answers with a ${task === "ordinal" ? "grade" : "number"}: ${shown}.`),
  );
  if (state.most) find("about-picture").textContent = `Up to ${bytes(state.most)}; sent as it is.`;
}

// ---- the picture and its answer

function take(file) {
  if (!file) return;
  stopCamera();
  find("camera-note").textContent = "";
  if (state.address) URL.revokeObjectURL(state.address);
  Object.assign(state, { picture: file, address: URL.createObjectURL(file) });
  const about = `${file.name || "Pasted picture"} · ${bytes(file.size)}`;
  const preview = find("preview");
  const seen = (visible) => {
    find("stage").dataset.shows = visible ? "picture" : "file";
    preview.hidden = !visible;
    find("unseeable").hidden = visible;
  };
  preview.onload = () => {
    seen(true);
    // Enlarged, a tiny picture is clearer as squares than as a blur.
    preview.classList.toggle("tiny", Math.max(preview.naturalWidth, preview.naturalHeight) < 128);
    find("about-picture").textContent = `${about} · ${preview.naturalWidth} × ${preview.naturalHeight} pixels`;
  };
  preview.onerror = () => seen(false);
  preview.src = state.address;
  find("about-picture").textContent = about;
  if (state.model) ask();
}

async function ask() {
  state.asked?.abort();
  const asked = new AbortController();
  state.asked = asked;
  const { model, picture } = state;
  const waiting = setTimeout(() => find("result").setAttribute("aria-busy", "true"), SLOW_MS);
  try {
    const found = await predict(model, picture, { most: state.most, signal: asked.signal });
    if (state.asked !== asked) return;
    find("trouble").replaceChildren();
    find("spoken").textContent = showAnswer(model, found.answer);
    showTiming(found);
    // On a phone the picture fills the screen, and the answer would be missed below it.
    find("result").scrollIntoView({ block: "nearest" });
    find("curl").textContent = command(model);
  } catch (error) {
    if (state.asked === asked && error.name !== "AbortError") showTrouble(error);
  } finally {
    clearTimeout(waiting);
    if (state.asked === asked) find("result").setAttribute("aria-busy", "false");
  }
}

function showTrouble(error) {
  const known = error instanceof Trouble ? error : new Trouble("The page could not show the answer.", String(error.message));
  find("result").replaceChildren();
  find("timing").replaceChildren();
  find("spoken").textContent = "";
  const again = make("button", { type: "button" }, "Ask again");
  again.onclick = ask;
  find("trouble").replaceChildren(
    make("p", { class: "trouble-title" }, known.title),
    ...(known.detail ? [make("p", {}, known.detail)] : []),
    ...(known.again ? [again] : []),
  );
  find("trouble").scrollIntoView({ block: "nearest" });
}

function listenForPictures() {
  find("file").onchange = ({ target }) => {
    take(target.files[0]);
    // The same file may be chosen again after it changed on the disk.
    target.value = "";
  };
  const holdsFiles = (event) => event.dataTransfer?.types.includes("Files");
  let inside = 0;
  const enter = (by) => (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    inside = Math.max(0, inside + by);
    document.body.toggleAttribute("data-dropping", inside > 0);
  };
  window.addEventListener("dragenter", enter(1));
  window.addEventListener("dragleave", enter(-1));
  window.addEventListener("dragover", enter(0));
  window.addEventListener("drop", (event) => {
    enter(-inside)(event);
    if (holdsFiles(event)) take(event.dataTransfer.files[0]);
  });
  window.addEventListener("paste", (event) => take(event.clipboardData?.files[0]));
  useCamera(take);
}

// ---- the server

function showState(name, text) {
  find("state").dataset.state = name;
  // Spoken only when it changes: this runs every two seconds.
  if (find("state").textContent !== text) find("state").textContent = text;
  find("unlock").hidden = name !== "locked";
}

async function look() {
  if (!state.models.length) await loadModels();
  const response = await fetchFrom("metrics");
  if (!response.ok) await answerOf(response);
  const now = reading(await response.text(), performance.now() / 1000);
  if (state.last && state.last.served !== now.served) await loadModels();
  if (state.last) state.steps.push(between(state.last, now));
  state.last = now;
  state.steps = state.steps.filter((step) => step.time > now.time - WINDOW_S);
  const { inflight, waiting } = now;
  const gauges = [inflight === undefined ? "" : `${inflight} in progress`, waiting === undefined ? "" : `${waiting} waiting`];
  find("gauges").textContent = gauges.filter(Boolean).join(" · ");
  showState("ready", "answering");
  redraw();
}

function redraw(silence = "") {
  drawCharts(state.steps, performance.now() / 1000, silence);
}

async function poll() {
  if (!document.hidden && !state.locked) {
    try {
      await look();
    } catch (error) {
      state.locked = error.locked === true;
      showState(state.locked ? "locked" : "away", state.locked ? "needs a token" : "not reachable");
      find("gauges").textContent = "";
      if (!state.models.length) find("name").textContent = state.locked ? "Locked" : "The server does not answer";
      redraw(state.locked ? "Figures need the token" : "The server does not answer");
    }
  }
  setTimeout(poll, POLL_MS);
}

function unlock() {
  askToken(false).then(() => { state.locked = false; }, () => {});
}

function offerCopy() {
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
listenForPictures();
offerCopy();
buildCharts(() => redraw());
poll();
