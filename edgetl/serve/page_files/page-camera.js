// Camera: open it, show its preview, capture an image, and close it.

import { find } from "./page-dom.js";

const MESSAGES = {
  NotAllowedError: "The browser blocked the camera. Allow the camera for this page in the settings of the browser.",
  NotFoundError: "The browser found no camera on this device.",
  NotReadableError: "The camera is not available. Another program may be using it.",
};
let stream = null;

const showNote = (text) => { find("camera-note").textContent = text; };

/** Return the reason why the page cannot use a camera, or an empty string. */
function unavailableReason() {
  if (!window.isSecureContext) {
    return `Browsers allow the camera only to pages on https or on localhost. This page is at ${location.origin}. Choose an image instead. On a phone, the file dialog may offer the camera.`;
  }
  return navigator.mediaDevices?.getUserMedia ? "" : "This browser does not support the camera in web pages. Choose an image instead.";
}

function showViewfinder(open) {
  find("image-area").toggleAttribute("data-camera", open);
  for (const id of ["viewfinder", "capture", "stop"]) find(id).hidden = !open;
  for (const id of ["camera", "choose"]) find(id).hidden = open;
}

export function stopCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  find("viewfinder").srcObject = null;
  showViewfinder(false);
}

async function start() {
  const reason = unavailableReason();
  showNote(reason);
  if (reason) return;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1280 } }, audio: false });
  } catch (error) {
    showNote(MESSAGES[error.name] ?? `The camera could not be opened (${error.name}).`);
    return;
  }
  find("viewfinder").srcObject = stream;
  showViewfinder(true);
  find("capture").focus();
  await find("viewfinder").play();
}

function capture(onImage) {
  const video = find("viewfinder");
  if (!video.videoWidth) {
    showNote("The camera has not sent an image yet. Try again in a moment.");
    return;
  }
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob((blob) => {
    stopCamera();
    find("camera").focus();
    onImage(new File([blob], "camera.jpg", { type: "image/jpeg" }));
  }, "image/jpeg", 0.95);
}

/** Connect the camera buttons. Call ``onImage`` with each captured image, a File. */
export function connectCamera(onImage) {
  find("camera").onclick = start;
  find("capture").onclick = () => capture(onImage);
  find("stop").onclick = () => {
    stopCamera();
    find("camera").focus();
  };
  window.addEventListener("pagehide", stopCamera);
}
