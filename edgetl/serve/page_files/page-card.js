// Model card of the selected model, as tables.

import { bytes, digits, find, make, milliseconds, percent, plural } from "./page-dom.js";

const TASKS = {
  classification: "One class per image",
  "multi-label": "Any number of labels per image",
  regression: "A number per image",
  ordinal: "An ordinal level per image",
  anomaly: "Anomalies, with a heat map",
};
// Scores that are shown as percentages.
const PERCENTAGES = ["accuracy", "agreement", "mean average precision"];

/** Return one line about the model: labels, release, variant, size, input size. */
export function summary(card) {
  const counts = { classification: plural(card.labels.length, "class", "classes"), "multi-label": plural(card.labels.length, "label", "labels") };
  const [height, width] = card.input_size;
  return [counts[card.task] ?? TASKS[card.task], `release ${card.version}`, card.variant, bytes(card.size_bytes), `${height} × ${width} pixels`].join(" · ");
}

export function showCard(card) {
  const model = [
    ["Task", `${TASKS[card.task] ?? card.task} (${card.task})`],
    [["classification", "anomaly"].includes(card.task) ? "Classes" : card.task === "multi-label" ? "Labels" : "Target", names(card.labels)],
    ["Release", card.versions.length > 1 ? `${card.version} (served: ${card.versions.join(", ")})` : card.version],
    ["Variant", `${card.variant}: ${card.format}, ${card.precision}, ${bytes(card.size_bytes)}`],
    ["Input", `${card.input_size.join(" × ")} pixels (height × width), RGB`],
  ];
  const measured = [
    ["Trained model", scoreText(card, card.trained)],
    [`Served variant, ${card.gate_images}`, scoreText(card, card.validation)],
    ["Served variant, test", scoreText(card, card.test)],
    ["Drop by the export", dropText(card)],
    ["Latency", `${milliseconds(card.median_ms)} per image (median, one thread, host of the export)`],
  ];
  const origin = [
    ["Training images", plural(card.train_images, "image", "images")],
    ["Backbone", card.architecture === card.backbone ? card.backbone : `${card.backbone} (${card.architecture})`],
    ["Strategy", card.strategy],
    ["Exported", dateText(card.created)],
    ["Signature", card.key ? `checked at the installation: key ${card.key}` : card.signed ? "not checked by this server" : "none"],
    ["License", card.license ?? "not stated"],
  ];
  const score = card.score_name[0].toUpperCase() + card.score_name.slice(1);
  const tables = [table("Served model", model), table(`${score} and latency`, measured), table("Training and export", origin)];
  if (card.rejected.length) tables.push(table("Rejected variants", card.rejected.map(({ name, reason }) => [name, reason])));
  find("card").replaceChildren(...tables);
}

function table(caption, rows) {
  const body = rows.filter(([, value]) => value).map(([name, value]) => make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, value)));
  return make("table", { class: "facts" }, make("caption", {}, caption), make("tbody", {}, ...body));
}

function names(labels) {
  const shown = labels.slice(0, 40).join(", ");
  return labels.length > 40 ? `${shown} and ${labels.length - 40} more` : shown;
}

function scoreText(card, score) {
  if (!score) return "not measured (no test images)";
  const format = PERCENTAGES.includes(card.score_name) ? percent : (value) => value.toFixed(3);
  return `${format(score.value)} (95${"\u202f"}% interval ${format(score.low)} to ${format(score.high)}, ${plural(score.n, "image", "images")})`;
}

function dropText({ drop, score_name: name }) {
  const size = Math.abs(drop);
  const text = PERCENTAGES.includes(name) ? `${digits(100 * size)} percentage points` : size.toFixed(3);
  if (Number.parseFloat(text) === 0) return "none";
  return drop > 0 ? text : `none (gain of ${text})`;
}

function dateText(text) {
  const date = new Date(text);
  return Number.isNaN(date.getTime()) ? text : date.toLocaleString("en-GB", { dateStyle: "long", timeStyle: "short" });
}
