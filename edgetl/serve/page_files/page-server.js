// Requests to the server: token dialog, predictions, and messages for errors.

import { bytes, find } from "./page-dom.js";

const TOKEN_KEY = "edgetl-token";
let openPrompt = null;

/** Failed request. ``retryable``: the same request may succeed later. ``locked``: the server requires a token. */
export class RequestError extends Error {
  constructor(title, detail = "", { retryable = false, locked = false } = {}) {
    super(detail ? `${title} ${detail}` : title);
    Object.assign(this, { title, detail, retryable, locked });
  }
}

export const token = () => sessionStorage.getItem(TOKEN_KEY);

/** Fetch a path of this server. After a 401, prompt for the token and try again, until the user cancels. */
export async function fetchPath(path, options = {}) {
  for (;;) {
    const used = token();
    const headers = { ...options.headers, ...(used ? { Authorization: `Bearer ${used}` } : {}) };
    let response;
    try {
      response = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new RequestError("The server is unreachable.", "Check that it is running, and that this device is connected to it.", { retryable: true });
    }
    if (response.status !== 401) return response;
    if (used === token()) await promptForToken(used !== null);
  }
}

/** Open the token dialog, unless it is open already. ``rejected``: the server did not accept the previous token. */
export function promptForToken(rejected) {
  openPrompt ??= openDialog(rejected).finally(() => { openPrompt = null; });
  return openPrompt;
}

function openDialog(rejected) {
  const dialog = find("token-dialog");
  find("token-note").textContent = rejected
    ? "The server did not accept this token. Check that it is complete."
    : "The operator of the server has the token. This browser tab keeps it until you close the tab.";
  find("token").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve, reject) => {
    find("token-cancel").onclick = () => dialog.close("cancel");
    find("token-form").onsubmit = (event) => {
      event.preventDefault();
      dialog.close("submit");
    };
    dialog.onclose = () => {
      const entered = find("token").value.trim();
      find("token").value = "";
      if (dialog.returnValue === "submit" && entered) {
        sessionStorage.setItem(TOKEN_KEY, entered);
        resolve();
      } else {
        reject(new RequestError("This server requires a token.", "", { locked: true, retryable: true }));
      }
    };
  });
}

/** Return the JSON of a response. Throw a RequestError for an error status. */
export async function readJson(response) {
  if (response.ok) return response.json();
  let message = "";
  try {
    message = (await response.json()).error ?? "";
  } catch {
    // A proxy may respond with a body that is not JSON.
  }
  throw new RequestError(titleFor(response.status), retryText(response) || sentence(String(message)), { retryable: response.status >= 500 });
}

function titleFor(status) {
  if (status === 400 || status === 415 || status === 422) return "The server cannot use this image.";
  if (status === 404) return "The server no longer has this model.";
  if (status === 408 || status === 504) return "The request took too long.";
  if (status === 413) return "The file is too large for this server.";
  if (status === 429 || status === 503) return "The server is overloaded.";
  return `The server failed on this request (status ${status}).`;
}

function retryText(response) {
  const seconds = Number(response.headers.get("Retry-After"));
  if (!(seconds > 0)) return "";
  return `Try again in ${seconds === 1 ? "a second" : `${seconds} seconds`}.`;
}

function sentence(text) {
  const trimmed = text.trim();
  if (!trimmed) return "";
  return trimmed[0].toUpperCase() + trimmed.slice(1) + (/[.!?]$/.test(trimmed) ? "" : ".");
}

/** Predict the unchanged bytes of a file with one model. */
export async function predict(model, file, { maxBytes, signal }) {
  if (maxBytes && file.size > maxBytes) {
    throw new RequestError("The file is too large for this server.", `The file has ${bytes(file.size)}, and the limit is ${bytes(maxBytes)}.`);
  }
  const query = new URLSearchParams({ model: model.name, version: model.version });
  const begin = performance.now();
  const headers = { "Content-Type": file.type || "application/octet-stream" };
  const response = await fetchPath(`predict?${query}`, { method: "POST", body: file, headers, signal });
  const prediction = await readJson(response);
  return { prediction, roundTrip: performance.now() - begin, stages: parseServerTiming(response.headers.get("Server-Timing")) };
}

/** Parse ``queue;dur=0.12, decode;dur=2.3`` into ``[["queue", 0.12], ["decode", 2.3]]``, milliseconds. */
export function parseServerTiming(header) {
  const stages = [];
  for (const part of (header ?? "").split(",")) {
    const [name, ...parameters] = part.split(";").map((piece) => piece.trim());
    const given = parameters.find((piece) => piece.toLowerCase().startsWith("dur="));
    const duration = Number.parseFloat(given?.slice(4).replaceAll('"', ""));
    if (name && duration >= 0) stages.push([name, duration]);
  }
  return stages;
}
