// Prometheus text format: parser, and differences between two samples of the metrics.

// Time range of the charts, seconds.
export const WINDOW_S = 120;

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/;
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g;

/** Parse the Prometheus text format into samples ``{name, labels, value}``. */
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

/** Return the metrics of the page at ``time`` (seconds). Gauges that the server does not have are undefined. */
export function readMetrics(text, time) {
  const samples = parse(text);
  const counters = new Map();
  const add = (key, value) => counters.set(key, (counters.get(key) ?? 0) + value);
  const gauge = (name) => samples.filter((sample) => sample.name === name).reduce((sum, { value }) => (sum ?? 0) + value, undefined);
  const served = [], drifted = [];
  for (const { name, labels, value } of samples) {
    if (name === "edgetl_model_info" && value) served.push(JSON.stringify(Object.entries(labels).sort()));
    if (name === "edgetl_drift" && value) drifted.push(labels.model);
    if (name === "edgetl_requests_total") add(/^2/.test(labels.code ?? "") ? "successful" : "unsuccessful", value);
    if (name === "edgetl_rejected_total") add("rejected", value);
    if (name === "edgetl_request_duration_seconds_bucket") add(number(labels.le), value);
  }
  return {
    time,
    counters,
    inflight: gauge("edgetl_inflight"),
    waiting: gauge("edgetl_queue_depth"),
    captured: gauge("edgetl_captured_total"),
    drifted: drifted.sort(),
    served: served.sort().join(),
  };
}

/** Return the difference of two results of ``readMetrics``. A smaller counter means that the server restarted and counts from 0. */
export function difference(before, after) {
  const restarted = [...after.counters].some(([key, value]) => value < (before.counters.get(key) ?? 0));
  const grown = new Map([...after.counters].map(([key, value]) => [key, restarted ? value : value - (before.counters.get(key) ?? 0)]));
  const buckets = [...grown].filter(([key]) => typeof key === "number").sort(([one], [other]) => one - other);
  const count = (key) => grown.get(key) ?? 0;
  return {
    time: after.time,
    seconds: after.time - before.time,
    restarted,
    successful: count("successful"),
    rejected: count("rejected"),
    // Rejected requests are also among the requests with an error status.
    failed: Math.max(0, count("unsuccessful") - count("rejected")),
    buckets,
  };
}

/** Add the histogram buckets of several steps. */
export function mergeBuckets(steps) {
  const sums = new Map();
  for (const { buckets } of steps) for (const [bound, value] of buckets) sums.set(bound, (sums.get(bound) ?? 0) + value);
  return [...sums].sort(([one], [other]) => one - other);
}

/**
 * Estimate a quantile (0..1) of a histogram, as Prometheus' histogram_quantile: linear within a bucket.
 * In the last bucket the result is its lower bound. Without observations the result is null.
 */
export function quantile(level, buckets) {
  const total = buckets.at(-1)?.[1] ?? 0;
  if (!(total > 0) || buckets.at(-1)[0] !== Infinity) return null;
  const rank = level * total;
  const index = buckets.findIndex(([, value]) => value >= rank);
  if (index === buckets.length - 1) return index > 0 ? buckets[index - 1][0] : null;
  const [low, below] = index > 0 ? buckets[index - 1] : [0, 0];
  const [high, value] = buckets[index];
  return value === below ? high : low + ((high - low) * (rank - below)) / (value - below);
}
