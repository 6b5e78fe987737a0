// Asking the server: the token where it wants one, and a kind sentence for whatever goes wrong.

import { bytes, find } from "./page-dom.js";

const KEPT = "edgetl-token";
let asking = null;

/** What went wrong, in words for people; ``again`` says whether the same request may succeed later. */
export class Trouble extends Error {
  constructor(title, detail = "", { again = false, locked = false } = {}) {
    super(detail ? `${title} ${detail}` : title);
    Object.assign(this, { title, detail, again, locked });
  }
}

export const token = () => sessionStorage.getItem(KEPT);

/** Fetch from this server; on 401 ask for the token and try once more, for as long as there are tokens to try. */
export async function fetchFrom(path, options = {}) {
  for (;;) {
    const used = token();
    const headers = { ...options.headers, ...(used ? { Authorization: `Bearer ${used}` } : {}) };
    let response;
    try {
      response = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Trouble("The server cannot be reached.", "Is it still running, and is this device still connected to it?", { again: true });
    }
    if (response.status !== 401) return response;
    if (used === token()) await askToken(used !== null);
  }
}

/** One dialog at a time, however many requests were refused. */
export function askToken(refused) {
  asking ??= openDialog(refused).finally(() => { asking = null; });
  return asking;
}

function openDialog(refused) {
  const dialog = find("ask-token");
  find("token-note").textContent = refused
    ? "The server did not accept that token. Please look whether it is whole."
    : "Whoever started it knows the token. This tab keeps it until it is closed.";
  find("token").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve, reject) => {
    find("token-cancel").onclick = () => dialog.close("cancel");
    find("token-form").onsubmit = (event) => {
      event.preventDefault();
      dialog.close("given");
    };
    dialog.onclose = () => {
      const given = find("token").value.trim();
      find("token").value = "";
      if (dialog.returnValue === "given" && given) {
        sessionStorage.setItem(KEPT, given);
        resolve();
      } else {
        reject(new Trouble("This server answers only with its token.", "", { locked: true, again: true }));
      }
    };
  });
}

/** A response's JSON, or the trouble that it tells of. */
export async function answerOf(response) {
  if (response.ok) return response.json();
  let said = "";
  try {
    said = (await response.json()).error ?? "";
  } catch {
    // A proxy in between may answer with a page of its own; the status alone must do.
  }
  throw new Trouble(titleFor(response.status), waitFor(response) || sentence(String(said)), { again: response.status >= 500 });
}

function titleFor(status) {
  if (status === 400 || status === 415 || status === 422) return "The server could not use this picture.";
  if (status === 404) return "The server does not know this model any more.";
  if (status === 408 || status === 504) return "This took too long.";
  if (status === 413) return "The file is too large for this server.";
  if (status === 429 || status === 503) return "The server has more to do than it can.";
  return `The server could not answer (${status}).`;
}

function waitFor(response) {
  const seconds = Number(response.headers.get("Retry-After"));
  if (!(seconds > 0)) return "";
  return `It asks to try again in ${seconds === 1 ? "a second" : `${seconds} seconds`}.`;
}

function sentence(text) {
  const whole = text.trim();
  if (!whole) return "";
  return whole[0].toUpperCase() + whole.slice(1) + (/[.!?]$/.test(whole) ? "" : ".");
}

/** Ask one model about a file, whose bytes are sent as they are. */
export async function predict(model, file, { most, signal }) {
  if (most && file.size > most) {
    throw new Trouble("The file is too large for this server.", `It has ${bytes(file.size)}, and the server takes ${bytes(most)} at most.`);
  }
  const query = new URLSearchParams({ model: model.name, version: model.version });
  const begin = performance.now();
  const headers = { "Content-Type": file.type || "application/octet-stream" };
  const response = await fetchFrom(`predict?${query}`, { method: "POST", body: file, headers, signal });
  const answer = await answerOf(response);
  return { answer, roundTrip: performance.now() - begin, stages: stagesOf(response.headers.get("Server-Timing")) };
}

/** ``queue;dur=0.12, decode;dur=2.3`` as ``[["queue", 0.12], ["decode", 2.3]]``, milliseconds. */
export function stagesOf(header) {
  const stages = [];
  for (const part of (header ?? "").split(",")) {
    const [name, ...parameters] = part.split(";").map((piece) => piece.trim());
    const given = parameters.find((piece) => piece.toLowerCase().startsWith("dur="));
    const duration = Number.parseFloat(given?.slice(4).replaceAll('"', ""));
    if (name && duration >= 0) stages.push([name, duration]);
  }
  return stages;
}
