// Prometheus' text format, and what changes between two readings of it. No elements here.

export const WINDOW_S = 120;

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/;
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g;

/** The samples of a text: ``{name, labels, value}`` each. */
export function parse(text) {
  const samples = [];
  for (const line of text.split("\n")) {
    const found = line.startsWith("#") ? null : LINE.exec(line);
    if (!found) continue;
    const labels = {};
    for (const [, name, value] of (found[2] ?? "").matchAll(LABEL)) labels[name] = value.replace(/\\(.)/g, (_, c) => (c === "n" ? "\n" : c));
    samples.push({ name: found[1], labels, value: number(found[3]) });
  }
  return samples;
}

const number = (text) => (text === "+Inf" ? Infinity : text === "-Inf" ? -Infinity : Number(text));

/** What the page follows, at ``time`` (seconds); gauges that the server does not have are undefined. */
export function reading(text, time) {
  const samples = parse(text);
  const counters = new Map();
  const add = (key, value) => counters.set(key, (counters.get(key) ?? 0) + value);
  const gauge = (name) => samples.filter((sample) => sample.name === name).reduce((sum, { value }) => (sum ?? 0) + value, undefined);
  const served = [];
  for (const { name, labels, value } of samples) {
    if (name === "edgetl_model_info" && value) served.push(JSON.stringify(Object.entries(labels).sort()));
    if (name === "edgetl_requests_total") add(/^2/.test(labels.code ?? "") ? "answered" : "unanswered", value);
    if (name === "edgetl_rejected_total") add("rejected", value);
    if (name === "edgetl_request_duration_seconds_bucket") add(number(labels.le), value);
  }
  return { time, counters, inflight: gauge("edgetl_inflight"), waiting: gauge("edgetl_queue_depth"), served: served.sort().join() };
}

/** What was counted between two readings; a counter that went back began again at 0, since the server did. */
export function between(before, after) {
  const restarted = [...after.counters].some(([key, value]) => value < (before.counters.get(key) ?? 0));
  const grown = new Map([...after.counters].map(([key, value]) => [key, restarted ? value : value - (before.counters.get(key) ?? 0)]));
  const buckets = [...grown].filter(([key]) => typeof key === "number").sort(([one], [other]) => one - other);
  const count = (key) => grown.get(key) ?? 0;
  return {
    time: after.time,
    seconds: after.time - before.time,
    restarted,
    answered: count("answered"),
    rejected: count("rejected"),
    // A rejected request is also counted with its status.
    failed: Math.max(0, count("unanswered") - count("rejected")),
    buckets,
  };
}

/** The buckets of several steps together. */
export function together(steps) {
  const sums = new Map();
  for (const { buckets } of steps) for (const [bound, value] of buckets) sums.set(bound, (sums.get(bound) ?? 0) + value);
  return [...sums].sort(([one], [other]) => one - other);
}

/** As Prometheus' histogram_quantile: linear within a bucket; from the last bucket, its lower bound. Null where nothing was counted. */
export function quantile(share, buckets) {
  const total = buckets.at(-1)?.[1] ?? 0;
  if (!(total > 0) || buckets.at(-1)[0] !== Infinity) return null;
  const rank = share * total;
  const index = buckets.findIndex(([, value]) => value >= rank);
  if (index === buckets.length - 1) return index > 0 ? buckets[index - 1][0] : null;
  const [low, below] = index > 0 ? buckets[index - 1] : [0, 0];
  const [high, value] = buckets[index];
  return value === below ? high : low + ((high - low) * (rank - below)) / (value - below);
}
