// The facts of the chosen model, as a table.

import { bytes, digits, find, make, milliseconds, percent, plural } from "./page-dom.js";

const TASKS = {
  classification: "One class of several",
  "multi-label": "Any number of labels",
  regression: "A number",
  ordinal: "A grade",
};
const SHARES = ["accuracy", "mean average precision"];

/** One line under the model's name. */
export function summary(card) {
  const many = { classification: plural(card.labels.length, "class", "classes"), "multi-label": plural(card.labels.length, "label", "labels") };
  const [height, width] = card.input_size;
  return [many[card.task] ?? TASKS[card.task], `release ${card.version}`, card.variant, bytes(card.size_bytes), `${height} × ${width} pixels`].join(" · ");
}

export function showCard(card) {
  const is = [
    ["Task", `${TASKS[card.task] ?? card.task} (${card.task})`],
    [card.task === "classification" ? "Classes" : card.task === "multi-label" ? "Labels" : "Learned", names(card.labels)],
    ["Release", card.versions.length > 1 ? `${card.version} (served: ${card.versions.join(", ")})` : card.version],
    ["File", `${card.variant}: ${card.format}, ${card.precision}, ${bytes(card.size_bytes)}`],
    ["Input", `${card.input_size.join(" × ")} pixels (height × width), RGB`],
  ];
  const measured = [
    ["As trained", figure(card, card.trained)],
    ["Served, validation", figure(card, card.validation)],
    ["Served, test", figure(card, card.test)],
    ["Lost by the export", loss(card)],
    ["Speed", `${milliseconds(card.median_ms)} an image on one thread of the machine that exported it (median)`],
  ];
  const made = [
    ["Trained on", plural(card.train_images, "image", "images")],
    ["Backbone", card.architecture === card.backbone ? card.backbone : `${card.backbone} (${card.architecture})`],
    ["Strategy", card.strategy],
    ["Exported", when(card.created)],
    ["License", card.license ?? "not stated"],
  ];
  const tables = [table("What is served", is), table(`How good it is: ${card.score_name}`, measured), table("Where it comes from", made)];
  if (card.rejected.length) tables.push(table("Left out at the export", card.rejected.map(({ name, reason }) => [name, reason])));
  find("card").replaceChildren(...tables);
}

function table(caption, rows) {
  const body = rows.filter(([, fact]) => fact).map(([name, fact]) => make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, fact)));
  return make("table", { class: "facts" }, make("caption", {}, caption), make("tbody", {}, ...body));
}

function names(labels) {
  const shown = labels.slice(0, 40).join(", ");
  return labels.length > 40 ? `${shown} and ${labels.length - 40} more` : shown;
}

function figure(card, score) {
  if (!score) return "no images were set aside";
  const written = SHARES.includes(card.score_name) ? percent : (value) => value.toFixed(3);
  return `${written(score.value)} (${written(score.low)} to ${written(score.high)}; ${plural(score.n, "image", "images")})`;
}

function loss({ drop, score_name: name }) {
  const size = Math.abs(drop);
  const text = SHARES.includes(name) ? `${digits(100 * size)} percentage points` : size.toFixed(3);
  if (Number.parseFloat(text) === 0) return "none";
  return drop > 0 ? text : `none; it gains ${text}`;
}

function when(text) {
  const date = new Date(text);
  return Number.isNaN(date.getTime()) ? text : date.toLocaleString("en-GB", { dateStyle: "long", timeStyle: "short" });
}
