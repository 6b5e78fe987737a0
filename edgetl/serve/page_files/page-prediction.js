// Prediction of one image: the predicted label or value, a bar per score, and the response time.

import { digits, find, make, milliseconds, percent, plural } from "./page-dom.js";

// Number of bars before "Show all".
const SHOWN_FIRST = 5;
// Labels with more characters get a smaller font, and on phones a line above their bar.
const LONG_LABEL = 16;
const STAGES = ["queue", "decode", "preprocess", "inference"];

/** Show a prediction of the model with this card. Return one sentence about it for screen readers. */
export function showPrediction(card, prediction) {
  const describe = { "multi-label": multiLabel, regression, ordinal, anomaly }[card.task] ?? classification;
  const { headline, note, rows, announcement } = describe(card, prediction);
  find("result").replaceChildren(
    make("p", { class: headline[0].textContent.length > LONG_LABEL ? "headline long" : "headline" }, ...headline),
    ...(note ? [make("p", { class: "muted" }, note)] : []),
    ...(Array.isArray(rows) ? bars(rows, card.task === "multi-label" ? "labels" : "classes") : rows ? [rows] : []),
  );
  return announcement;
}

function classification(card, { label, score, scores }) {
  const unknown = label === null;
  return {
    headline: [make("strong", unknown ? { class: "none" } : {}, label ?? "Unknown"), make("span", { class: "score" }, percent(score))],
    note: unknown ? `The highest score is below ${percent(card.reject_below)}, the smallest score of a known image.` : null,
    rows: sorted(scores).map(([name, value], rank) => ({ name, score: value, predicted: rank === 0 && !unknown })),
    announcement: `Prediction of ${card.name}: ${label ?? "unknown"}, ${percent(score)}.`,
  };
}

function multiLabel(card, { labels: predicted, scores }) {
  const thresholds = Object.fromEntries(card.labels.map((name, index) => [name, card.thresholds?.[index]]));
  const rows = sorted(scores).map(([name, score]) => ({ name, score, predicted: predicted.includes(name), threshold: thresholds[name] }));
  return {
    headline: [make("strong", predicted.length ? {} : { class: "none" }, predicted.length ? predicted.join(", ") : "No label")],
    note: `${predicted.length} of ${plural(rows.length, "label", "labels")} predicted. The mark on each bar is the threshold of its label.`,
    // Predicted labels come first and are always visible.
    rows: [...rows.filter((row) => row.predicted), ...rows.filter((row) => !row.predicted)],
    announcement: `Prediction of ${card.name}: ${predicted.length ? predicted.join(", ") : "no label"}.`,
  };
}

function anomaly(card, { label, score, heat_map: heat }) {
  return {
    headline: [make("strong", {}, label === "anomaly" ? "Anomaly" : "Normal"), make("span", { class: "score" }, `anomaly score ${percent(score)}`)],
    note: "The bar is the anomaly score. The mark is the threshold. Orange positions of the map look different from the normal images.",
    rows: make("div", {},
      make("ol", { class: "bars", role: "list" }, bar({ name: "anomaly", score, predicted: label === "anomaly", threshold: card.thresholds[0] })),
      heatMap(heat, card)),
    announcement: `Prediction of ${card.name}: ${label}, anomaly score ${percent(score)}.`,
  };
}

/** Return the heat map on the image, cropped as for the network: a cell per position, more orange for a higher score. */
function heatMap(heat, { crop }) {
  const cells = heat.flat().map((value) => {
    const cell = make("span", {});
    cell.style.opacity = String(0.85 * Math.min(1, Math.max(0, value)));
    return cell;
  });
  const highest = Math.max(...heat.flat());
  const image = make("img", { src: find("preview").src, alt: "" });
  image.style.objectFit = { squash: "fill", border: "contain" }[crop.mode] ?? "cover";
  image.style.transform = `scale(${1 / crop.pct})`;
  const grid = make("div", { class: "heat-map", role: "img", "aria-label": `Heat map, highest score ${percent(highest)}` }, image, ...cells);
  grid.style.gridTemplateColumns = `repeat(${heat[0].length}, 1fr)`;
  grid.style.aspectRatio = `${heat[0].length} / ${heat.length}`;
  return grid;
}

function regression(card, { value }) {
  return {
    headline: [make("strong", {}, digits(value)), make("span", { class: "score" }, card.labels[0])],
    note: card.tolerance
      ? `In the unit of the training table. An error of at most ${Number(card.tolerance.toPrecision(3))} counts as correct.`
      : null,
    rows: null,
    announcement: `Prediction of ${card.name}: ${card.labels[0]} ${digits(value)}.`,
  };
}

function ordinal(card, { value: level, scores }) {
  const [lowest, highest] = card.ordinal_levels;
  const output = Object.values(scores)[0];
  return {
    headline: [make("strong", {}, String(level)), make("span", { class: "score" }, `${card.labels[0]}, levels ${lowest} to ${highest}`)],
    note: `Level nearest to the model output ${digits(output)}.`,
    rows: scale(lowest, highest, level, output),
    announcement: `Prediction of ${card.name}: ${card.labels[0]} ${level}, on levels from ${lowest} to ${highest}.`,
  };
}

function scale(lowest, highest, level, output) {
  const marker = make("span", { class: "marker" });
  marker.style.left = `${(100 * (Math.min(Math.max(output, lowest), highest) - lowest)) / (highest - lowest)}%`;
  const levels = Array.from({ length: highest - lowest + 1 }, (_, index) => lowest + index);
  // With more than 12 levels, the numbers would overlap.
  const shown = levels.length > 12 ? levels.filter((one) => one === lowest || one === highest || one === level) : levels;
  const ticks = shown.map((one) => {
    const tick = make("span", { class: one === level ? "tick predicted" : "tick" }, String(one));
    tick.style.left = `${(100 * (one - lowest)) / (highest - lowest)}%`;
    return tick;
  });
  return make("div", { class: "scale", "aria-hidden": "true" }, marker, ...ticks);
}

const sorted = (scores) => Object.entries(scores).sort(([, one], [, other]) => other - one);

function bars(rows, noun) {
  const shownFirst = Math.max(SHOWN_FIRST, rows.filter((row) => row.predicted).length);
  const long = rows.some(({ name }) => name.length > LONG_LABEL);
  const list = make("ol", { class: long ? "bars long" : "bars", role: "list", id: "bars" });
  list.append(...rows.slice(0, shownFirst).map(bar));
  if (rows.length <= shownFirst) return [list];
  const toggle = make("button", { type: "button", class: "quiet", "aria-expanded": "false", "aria-controls": "bars" });
  const setText = (open) => { toggle.textContent = open ? `Show only the first ${shownFirst}` : `Show all ${rows.length} ${noun}`; };
  setText(false);
  toggle.onclick = () => {
    const open = toggle.getAttribute("aria-expanded") !== "true";
    toggle.setAttribute("aria-expanded", String(open));
    list.replaceChildren(...rows.slice(0, open ? rows.length : shownFirst).map(bar));
    setText(open);
  };
  return [list, toggle];
}

function bar({ name, score, predicted, threshold }) {
  const fill = make("span", { class: "fill" });
  fill.style.width = `${100 * Math.min(1, Math.max(0, score))}%`;
  const track = make("span", { class: "track", "aria-hidden": "true" }, fill);
  if (threshold !== undefined) {
    const mark = make("span", { class: "threshold" });
    mark.style.left = `${100 * threshold}%`;
    track.append(mark);
  }
  const state = threshold === undefined ? null : make("span", { class: "visually-hidden" }, predicted ? " (predicted)" : " (not predicted)");
  return make("li", { class: predicted ? "predicted" : "" }, make("span", { class: "label" }, name, state), track, make("span", { class: "figure" }, percent(score)));
}

/** Show the response time: the stages in the server, the rest of the server, network and browser. */
export function showTiming({ stages, roundTrip }) {
  const heading = make("h3", {}, "Response time");
  const total = stages.find(([name]) => name === "total")?.[1];
  const named = stages.filter(([name]) => name !== "total");
  if (!named.length) {
    find("timing").replaceChildren(heading, make("p", {}, `Round trip ${milliseconds(roundTrip)}, measured by the browser.`));
    return;
  }
  const sum = named.reduce((all, [, duration]) => all + duration, 0);
  const inServer = Math.max(sum, total ?? 0);
  const parts = named.map(([name, duration]) => ({ name, duration, tone: STAGES.includes(name) ? name : "other" }));
  // Ignore differences up to the rounding error of the stages.
  if (inServer - sum > 0.05) parts.push({ name: "rest of the server", duration: inServer - sum, tone: "other" });
  parts.push({ name: "network and browser", duration: Math.max(0, roundTrip - inServer), tone: "network" });
  find("timing").replaceChildren(
    heading,
    make("p", {}, `Round trip ${milliseconds(roundTrip)}, of which ${milliseconds(inServer)} in the server.`),
    make("div", { class: "stack", "aria-hidden": "true" }, ...parts.map(segment)),
    make("ul", { class: "legend", role: "list" }, ...parts.map(entry)),
  );
}

function segment({ duration, tone }) {
  const part = make("span", { class: `tone-${tone}` });
  part.style.flexGrow = String(duration);
  return part;
}

function entry({ name, duration, tone }) {
  return make("li", {}, make("span", { class: `swatch tone-${tone}`, "aria-hidden": "true" }), name, make("span", { class: "figure" }, milliseconds(duration)));
}
