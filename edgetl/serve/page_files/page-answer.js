// An answer as people read it: the verdict, every score as a bar, and where the time went.

import { digits, find, make, milliseconds, percent, plural } from "./page-dom.js";

const AT_FIRST = 5;
// Characters from which a name is written smaller, and on a phone over its bar.
const LONG = 16;
const STAGES = ["queue", "decode", "preprocess", "inference"];

/** Show ``answer`` of the model with this card; returns one sentence that says it. */
export function showAnswer(card, answer) {
  const parts = { "multi-label": labels, regression: value, ordinal: grade }[card.task] ?? classes;
  const { verdict, note, rows, spoken } = parts(card, answer);
  find("result").replaceChildren(
    make("p", { class: verdict[0].textContent.length > LONG ? "verdict long" : "verdict" }, ...verdict),
    ...(note ? [make("p", { class: "muted" }, note)] : []),
    ...(Array.isArray(rows) ? bars(rows, card.task === "multi-label" ? "labels" : "classes") : rows ? [rows] : []),
  );
  return spoken;
}

function classes(card, { label, score, scores }) {
  return {
    verdict: [make("strong", {}, label), make("span", { class: "share" }, percent(score))],
    rows: sorted(scores).map(([name, share], rank) => ({ name, share, chosen: rank === 0 })),
    spoken: `${card.name} says: ${label}, ${percent(score)}.`,
  };
}

function labels(card, { labels: held, scores }) {
  const threshold = Object.fromEntries(card.labels.map((name, index) => [name, card.thresholds?.[index]]));
  const rows = sorted(scores).map(([name, share]) => ({ name, share, chosen: held.includes(name), mark: threshold[name] }));
  return {
    verdict: [make("strong", held.length ? {} : { class: "none" }, held.length ? held.join(", ") : "None of the labels")],
    note: `${held.length} of ${plural(rows.length, "label", "labels")} found. The mark on each bar is its threshold.`,
    // Those that hold come first, so that none of them is folded away unseen.
    rows: [...rows.filter((row) => row.chosen), ...rows.filter((row) => !row.chosen)],
    spoken: held.length ? `${card.name} finds: ${held.join(", ")}.` : `${card.name} finds none of its labels.`,
  };
}

function value(card, { value: found }) {
  return {
    verdict: [make("strong", {}, digits(found)), make("span", { class: "share" }, card.labels[0])],
    note: card.tolerance ? `In the unit of the training table; within ± ${Number(card.tolerance.toPrecision(3))} counts as right.` : null,
    rows: null,
    spoken: `${card.name} says: ${card.labels[0]} ${digits(found)}.`,
  };
}

function grade(card, { value: found, scores }) {
  const [least, most] = card.ordinal_levels;
  const raw = Object.values(scores)[0];
  return {
    verdict: [make("strong", {}, String(found)), make("span", { class: "share" }, `${card.labels[0]}, from ${least} to ${most}`)],
    note: `The grade nearest to the network's ${digits(raw)}.`,
    rows: scale(least, most, found, raw),
    spoken: `${card.name} says: ${card.labels[0]} ${found}, on a scale from ${least} to ${most}.`,
  };
}

function scale(least, most, found, raw) {
  const needle = make("span", { class: "needle" });
  needle.style.left = `${(100 * (Math.min(Math.max(raw, least), most) - least)) / (most - least)}%`;
  const grades = Array.from({ length: most - least + 1 }, (_, index) => least + index);
  // More names than fit would run into each other; the ends and the grade itself are enough then.
  const shown = grades.length > 12 ? grades.filter((one) => one === least || one === most || one === found) : grades;
  const ticks = shown.map((one) => {
    const tick = make("span", { class: one === found ? "tick chosen" : "tick" }, String(one));
    tick.style.left = `${(100 * (one - least)) / (most - least)}%`;
    return tick;
  });
  return make("div", { class: "scale", "aria-hidden": "true" }, needle, ...ticks);
}

const sorted = (scores) => Object.entries(scores).sort(([, one], [, other]) => other - one);

function bars(rows, things) {
  const most = Math.max(AT_FIRST, rows.filter((row) => row.chosen).length);
  const long = rows.some(({ name }) => name.length > LONG);
  const list = make("ol", { class: long ? "bars long" : "bars", role: "list", id: "bars" });
  list.append(...rows.slice(0, most).map(bar));
  if (rows.length <= most) return [list];
  const more = make("button", { type: "button", class: "quiet", "aria-expanded": "false", "aria-controls": "bars" });
  const say = (open) => { more.textContent = open ? `Show only the first ${most}` : `Show all ${rows.length} ${things}`; };
  say(false);
  more.onclick = () => {
    const open = more.getAttribute("aria-expanded") !== "true";
    more.setAttribute("aria-expanded", String(open));
    list.replaceChildren(...rows.slice(0, open ? rows.length : most).map(bar));
    say(open);
  };
  return [list, more];
}

function bar({ name, share, chosen, mark }) {
  const filled = make("span", { class: "fill" });
  filled.style.width = `${100 * Math.min(1, Math.max(0, share))}%`;
  const track = make("span", { class: "track", "aria-hidden": "true" }, filled);
  if (mark !== undefined) {
    const thin = make("span", { class: "mark" });
    thin.style.left = `${100 * mark}%`;
    track.append(thin);
  }
  const held = mark === undefined ? null : make("span", { class: "unseen" }, chosen ? " (held)" : " (not held)");
  return make("li", { class: chosen ? "chosen" : "" }, make("span", { class: "label" }, name, held), track, make("span", { class: "figure" }, percent(share)));
}

/** Where the time went: the server's stages, what it does not name, and the way there and back. */
export function showTiming({ stages, roundTrip }) {
  const heading = make("h3", {}, "Time");
  const total = stages.find(([name]) => name === "total")?.[1];
  const named = stages.filter(([name]) => name !== "total");
  if (!named.length) {
    find("timing").replaceChildren(heading, make("p", {}, `Round trip ${milliseconds(roundTrip)}, measured by the browser.`));
    return;
  }
  const sum = named.reduce((all, [, duration]) => all + duration, 0);
  const inServer = Math.max(sum, total ?? 0);
  const parts = named.map(([name, duration]) => ({ name, duration, tone: STAGES.includes(name) ? name : "other" }));
  // Rounding of the stages leaves a little; only what is more than that is worth a line.
  if (inServer - sum > 0.05) parts.push({ name: "rest of the server", duration: inServer - sum, tone: "other" });
  parts.push({ name: "network and browser", duration: Math.max(0, roundTrip - inServer), tone: "way" });
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
