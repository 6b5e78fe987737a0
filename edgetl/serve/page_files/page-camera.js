// The camera: on only while its picture is shown.

import { find } from "./page-dom.js";

const REASONS = {
  NotAllowedError: "The browser did not allow the camera. Its settings for this page can change that.",
  NotFoundError: "This device has no camera that the browser can use.",
  NotReadableError: "The camera does not answer; perhaps another program is using it.",
};
let stream = null;

const note = (text) => { find("camera-note").textContent = text; };

function why() {
  if (!window.isSecureContext) {
    return `Browsers give the camera only to pages on https or on localhost, and this one is at ${location.origin}. Choosing a picture works here; on a phone that offers its camera, too.`;
  }
  return navigator.mediaDevices?.getUserMedia ? "" : "This browser offers no camera to pages. Choose a picture instead.";
}

function show(open) {
  find("stage").toggleAttribute("data-camera", open);
  for (const id of ["viewfinder", "shoot", "stop"]) find(id).hidden = !open;
  for (const id of ["camera", "choose"]) find(id).hidden = open;
}

export function stopCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  find("viewfinder").srcObject = null;
  show(false);
}

async function start() {
  note(why());
  if (why()) return;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1280 } }, audio: false });
  } catch (error) {
    note(REASONS[error.name] ?? `The camera could not be opened (${error.name}).`);
    return;
  }
  find("viewfinder").srcObject = stream;
  show(true);
  find("shoot").focus();
  await find("viewfinder").play();
}

function shoot(take) {
  const video = find("viewfinder");
  if (!video.videoWidth) {
    note("The camera has not sent a picture yet; please wait a moment.");
    return;
  }
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob((blob) => {
    stopCamera();
    find("camera").focus();
    take(new File([blob], "camera.jpg", { type: "image/jpeg" }));
  }, "image/jpeg", 0.95);
}

/** Wire the buttons; ``take`` gets each picture. */
export function useCamera(take) {
  find("camera").onclick = start;
  find("shoot").onclick = () => shoot(take);
  find("stop").onclick = () => {
    stopCamera();
    find("camera").focus();
  };
  window.addEventListener("pagehide", stopCamera);
}
