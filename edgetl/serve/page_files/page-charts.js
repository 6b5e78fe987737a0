// Live charts (SVG) of throughput and latency.

import { digits, draw, find, make, milliseconds, plural } from "./page-dom.js";
import { WINDOW_S, mergeBuckets, quantile } from "./page-metrics.js";

const HEIGHT = 176;
const EDGE = { left: 44, right: 10, top: 12, bottom: 26 };
// Largest time between two samples that a line connects, seconds. A hidden page takes no samples.
const GAP_S = 7;

const CHARTS = {
  throughput: {
    title: "Throughput",
    unit: "requests/s",
    write: (value) => `${digits(value)}/s`,
    lines: [
      { key: "successful", name: "successful", tone: "first", of: (step) => step.successful / step.seconds },
      { key: "rejected", name: "rejected", tone: "second", of: (step) => step.rejected / step.seconds },
      { key: "failed", name: "failed", tone: "third", optional: true, of: (step) => step.failed / step.seconds },
    ],
    caption: throughputCaption,
  },
  latency: {
    title: "Latency",
    unit: "ms",
    write: milliseconds,
    lines: [
      { key: "p50", name: "p50", tone: "first", of: (step) => inMilliseconds(quantile(0.5, step.buckets)) },
      { key: "p99", name: "p99", tone: "second", of: (step) => inMilliseconds(quantile(0.99, step.buckets)) },
    ],
    caption: latencyCaption,
  },
};

const inMilliseconds = (seconds) => (seconds === null ? null : 1000 * seconds);
const sum = (steps, key) => steps.reduce((all, step) => all + step[key], 0);

function throughputCaption(steps) {
  const [successful, rejected, failed] = ["successful", "rejected", "failed"].map((key) => sum(steps, key));
  const peak = Math.max(0, ...steps.map((step) => step.successful / step.seconds));
  const others = [`${rejected.toLocaleString("en")} rejected`, failed ? `${failed.toLocaleString("en")} failed` : ""];
  return `${plural(successful, "successful request", "successful requests")}, ${others.filter(Boolean).join(", ")}. Peak: ${digits(peak)} requests per second.`;
}

function latencyCaption(steps) {
  const buckets = mergeBuckets(steps);
  const [p50, p99] = [0.5, 0.99].map((level) => inMilliseconds(quantile(level, buckets)));
  return `Median (p50) about ${milliseconds(p50)}, p99 about ${milliseconds(p99)}, estimated from a histogram.`;
}

// Horizontal position of the pointer in a chart, pixels.
let pointerX = null;

/** Build the empty charts. Call once. */
export function buildCharts(redraw) {
  for (const [id, { title, unit }] of Object.entries(CHARTS)) {
    const plot = make("div", { class: "plot" });
    // The legends of both charts show the values at the pointer.
    plot.onpointermove = ({ clientX }) => { pointerX = clientX - plot.getBoundingClientRect().left; redraw(); };
    plot.onpointerleave = () => { pointerX = null; redraw(); };
    find(id).replaceChildren(
      make("h3", {}, title, make("span", { class: "unit" }, ` ${unit}`)),
      make("ul", { class: "legend", role: "list" }),
      plot,
      make("figcaption", { id: `${id}-caption`, class: "muted small" }),
    );
  }
  let drawn = 0;
  new ResizeObserver(([{ contentRect }]) => {
    // Drawing changes the height. Only a new width needs another drawing.
    if (contentRect.width !== drawn) requestAnimationFrame(redraw);
    drawn = contentRect.width;
  }).observe(find("throughput"));
}

/** Draw the last two minutes before ``now`` (seconds). ``message`` replaces the charts if it is not empty. */
export function drawCharts(steps, now, message) {
  const busy = steps.some((step) => step.successful + step.rejected + step.failed > 0);
  for (const [id, chart] of Object.entries(CHARTS)) {
    const empty = message || (busy ? "" : steps.length ? "No requests in the last two minutes" : "Measuring");
    const lines = chart.lines.map((line) => ({ ...line, points: steps.map((step) => [step.time, line.of(step)]) }));
    const shown = lines.filter((line) => !line.optional || line.points.some(([, value]) => value > 0));
    const width = Math.max(240, find(id).querySelector(".plot").clientWidth);
    const at = empty ? null : nearest(steps, now, width);
    find(id).querySelector(".legend").replaceChildren(...(empty ? [] : shown.map((line) => legendEntry(line, chart.write, at))), ...timeText(steps[at], now));
    find(id).querySelector(".plot").replaceChildren(plot(id, chart, shown, { steps, now, empty, width, at }));
    find(id).querySelector("figcaption").textContent = empty ? "" : chart.caption(steps) + restartText(steps, now);
  }
}

function restartText(steps, now) {
  const last = steps.findLast((step) => step.restarted);
  return last ? ` The server restarted ${Math.round(now - last.time)} seconds ago.` : "";
}

/** Return the index of the step at the pointer, or null. */
function nearest(steps, now, width) {
  if (pointerX === null) return null;
  const time = now - (WINDOW_S * (width - EDGE.right - pointerX)) / (width - EDGE.right - EDGE.left);
  const far = steps.map((step) => Math.abs(step.time - time));
  const least = Math.min(...far);
  return least < GAP_S ? far.indexOf(least) : null;
}

function timeText(step, now) {
  return step ? [make("li", { class: "muted" }, `${Math.round(now - step.time)} s ago`)] : [];
}

function legendEntry({ name, tone, points }, write, at) {
  const value = points.at(at ?? -1)?.[1];
  const sample = draw("svg", { class: "dash", viewBox: "0 0 20 8", "aria-hidden": "true" }, draw("line", { class: `line ${tone}`, x1: 0, y1: 4, x2: 20, y2: 4 }));
  return make("li", {}, sample, name, make("span", { class: "figure" }, value == null ? "–" : write(value)));
}

function plot(id, { title, unit }, lines, { steps, now, empty, width, at }) {
  const described = `${title} of the last two minutes, ${unit}${empty ? `: ${empty}` : ""}`;
  const svg = draw("svg", { class: "chart", viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, role: "img", "aria-label": described, "aria-describedby": `${id}-caption` });
  const [floor, right] = [HEIGHT - EDGE.bottom, width - EDGE.right];
  const x = (time) => right - ((now - time) / WINDOW_S) * (right - EDGE.left);
  if (empty) {
    svg.append(...timeAxis(x, now, floor), draw("text", { class: "empty", x: (EDGE.left + right) / 2, y: floor / 2 + 8 }, empty));
    return svg;
  }
  const step = tickStep(Math.max(...lines.flatMap((line) => line.points.map(([, value]) => value ?? 0))));
  const top = step.size * step.count;
  const y = (value) => floor - (value / top) * (floor - EDGE.top);
  for (let tick = 0; tick <= step.count; tick += 1) {
    const level = y(tick * step.size);
    svg.append(draw("line", { class: tick ? "grid" : "axis", x1: EDGE.left, x2: right, y1: level, y2: level }));
    svg.append(draw("text", { class: "tick end", x: EDGE.left - 8, y: level + 4 }, Number((tick * step.size).toPrecision(6)).toLocaleString("en")));
  }
  svg.append(...timeAxis(x, now, floor));
  if (at !== null) svg.append(draw("line", { class: "rule", x1: x(steps[at].time), x2: x(steps[at].time), y1: EDGE.top, y2: floor }));
  for (const { time, restarted } of steps) if (restarted) svg.append(draw("line", { class: "restart", x1: x(time), x2: x(time), y1: EDGE.top, y2: floor }));
  // Draw the first line last, on top of the others.
  for (const line of lines.toReversed()) svg.append(...trace(line, steps, x, y));
  return svg;
}

function timeAxis(x, now, floor) {
  const marks = [[WINDOW_S, "2 min ago", "start"], [WINDOW_S / 2, "1 min ago", "middle"], [0, "now", "end"]];
  const base = draw("line", { class: "axis", x1: x(now - WINDOW_S), x2: x(now), y1: floor, y2: floor });
  return [base, ...marks.map(([ago, text, side]) => draw("text", { class: `tick ${side}`, x: x(now - ago), y: floor + 18 }, text))];
}

function trace({ tone, points }, steps, x, y) {
  const runs = [[]];
  points.forEach(([time, value], index) => {
    if (value === null || steps[index].seconds > GAP_S) runs.push([]);
    if (value !== null) runs.at(-1).push([x(time), y(value)]);
  });
  return runs.filter((run) => run.length).map((run) => {
    // A single point has no line, so draw a dot.
    if (run.length === 1) return draw("circle", { class: `dot ${tone}`, cx: run[0][0], cy: run[0][1], r: 2.5 });
    return draw("path", { class: `line ${tone}`, d: `M${run.map((at) => at.map((part) => part.toFixed(1)).join(" ")).join("L")}` });
  });
}

/** Return the tick size (1, 2 or 5 times a power of 10) and the number of ticks, at most four, up to ``highest``. */
function tickStep(highest) {
  const rough = (highest > 0 ? highest : 1) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const size = [1, 2, 5, 10].map((factor) => factor * power).find((one) => one >= rough * 0.999);
  return { size, count: Math.max(1, Math.ceil((highest || 1) / size - 1e-9)) };
}
