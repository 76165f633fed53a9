// The page: the loaded bundle and vocabularies, the picture, and the detections in it.

import { colourOf, drawDetections } from "./draw.js";
import { decoded, dropped, save, servedBundle, sorted } from "./files.js";
import { ORIGINAL } from "./vocabulary.js";

const SAMPLE = "sample.jpg";
const TYPE_PER_SIDE = 1 / 560; // unit of type and lines in a saved picture, as a share of the mean of its sides
const NARROW = 480; // CSS pixels: type is smaller in a picture narrower than this
const NOTE_LENGTH = 80;
const DEVICES = { webgpu: "WebGPU", wasm: "WASM" };

const $ = (id) => document.getElementById(id);
const state = {
  bundle: null, // the bytes of the last bundle, to open it again on another device
  ready: false, // whether it is open
  chips: [], // { label, names, guideMode, on, open, file }
  album: [], // the pictures that were chosen
  page: 0, // which of them is shown
  picture: null, // { canvas, name }
  result: null, // { detections, times, passes }
  stream: null, // the camera's
};

// --- the detector, in its worker -------------------------------------------------------------------------------------

const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
const waiting = new Map();
let calls = 0;

worker.addEventListener("message", ({ data: { id, result, error } }) => {
  const { resolve, reject } = waiting.get(id);
  waiting.delete(id);
  if (error === undefined) resolve(result);
  else reject(new Error(error));
});

function call(name, values, transfer = []) {
  return new Promise((resolve, reject) => {
    waiting.set(++calls, { resolve, reject });
    worker.postMessage({ id: calls, name, values }, transfer);
  });
}

// --- bundle and vocabularies -----------------------------------------------------------------------------------------

/** Opens a bundle with its learned vocabulary and the vocabularies that the user added to it. */
async function openBundle(bundle) {
  $("bundle").textContent = "Loading the detector …";
  state.bundle = bundle;
  state.ready = false;
  state.chips = [];
  showChips();
  try {
    const { graph, original } = bundle;
    const opened = await call("open", { graph, original, device: $("device").value });
    state.ready = true;
    state.chips = [{ label: ORIGINAL, names: opened.names, guideMode: "original", on: true }];
    $("bundle").textContent = `${opened.imageSize} px, ${DEVICES[opened.device]}`;
    if (opened.note) $("bundle").textContent += ` · ${opened.note.slice(0, NOTE_LENGTH)}`;
    $("bundle").title = opened.note;
  } catch (error) {
    $("bundle").textContent = "No bundle";
    throw error;
  }
  for (const file of bundle.learned) await addVocabulary(file);
}

async function addVocabulary(file) {
  if (!state.ready) throw new Error("Load a bundle first: the folder with detector.onnx and its vocabularies.");
  state.chips.push({ ...(await call("load", file)), on: true, file });
  showChips();
}

async function removeVocabulary(chip) {
  await call("unload", { label: chip.label });
  state.chips = state.chips.filter((other) => other !== chip);
  state.bundle.learned = state.bundle.learned.filter((file) => file !== chip.file);
}

/** Takes files of any kind, chosen or dropped. */
async function take(files) {
  const { bundle, vocabularies, pictures } = await sorted(files);
  if (!bundle && !vocabularies.length && !pictures.length) {
    throw new Error("Choose a bundle's folder, .vocab.safetensors files, or a photo.");
  }
  if (bundle) await openBundle(bundle);
  for (const file of vocabularies) {
    await addVocabulary(file);
    state.bundle.learned = [...state.bundle.learned, file];
  }
  if (pictures.length) await showPage(pictures, 0);
}

// --- pictures --------------------------------------------------------------------------------------------------------

/** Shows one of several pictures, and the buttons that turn to the others. */
async function showPage(album, page) {
  state.album = album;
  state.page = page;
  $("album").hidden = album.length < 2;
  $("page").textContent = `${page + 1} of ${album.length}`;
  await takePicture(album[page], album[page].name);
}

async function takePicture(blob, name) {
  stopCamera();
  const bitmap = await decoded(blob);
  setPicture(bitmap, bitmap.width, bitmap.height, name);
  bitmap.close();
}

function setPicture(source, width, height, name) {
  const canvas = $("picture");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  state.picture = state.result = null;
  if (!holdsPixels(context)) throw new Error(`${name} has ${width} x ${height} pixels, more than this browser can show.`);
  context.drawImage(source, 0, 0);
  state.picture = { canvas, name };
  state.result = null;
  $("frame").classList.remove("empty");
  layOut();
}

/** Whether a canvas keeps what is drawn: of a size above its limit, a browser gives one that stays empty. */
function holdsPixels(context) {
  try {
    context.fillRect(0, 0, 1, 1);
    const isDrawn = context.getImageData(0, 0, 1, 1).data[3] === 255;
    context.clearRect(0, 0, 1, 1);
    return isDrawn;
  } catch {
    return false;
  }
}

/** Fits both canvases to the page. The canvas of the boxes has the screen's resolution. */
function layOut() {
  if (!state.picture) return;
  const { width, height } = state.picture.canvas;
  const room = $("frame").clientWidth;
  const shown = Math.min(room, (Math.max(320, innerHeight * 0.72) * width) / height);
  const ratio = devicePixelRatio;
  const boxes = $("boxes");
  boxes.width = Math.round(shown * ratio);
  boxes.height = Math.round((shown * height * ratio) / width);
  for (const canvas of [boxes, $("picture")]) {
    canvas.style.width = `${shown}px`;
    canvas.style.height = `${(shown * height) / width}px`;
  }
  drawBoxes();
}

function drawBoxes(highlighted = null) {
  const boxes = $("boxes");
  const context = boxes.getContext("2d");
  context.clearRect(0, 0, boxes.width, boxes.height);
  if (!state.result) return;
  const scale = boxes.width / state.picture.canvas.width;
  const unit = devicePixelRatio * (boxes.clientWidth < NARROW ? 0.8 : 1);
  drawDetections(context, shownOf(state.result), { scale, unit, highlighted });
}

async function startCamera() {
  if (!navigator.mediaDevices) throw new Error("A camera needs https or localhost.");
  try {
    state.stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    throw new Error(`The camera cannot be used: ${error.message}.`);
  }
  $("camera").setAttribute("aria-pressed", "true");
  $("album").hidden = true;
  const video = document.createElement("video");
  video.playsInline = true;
  video.muted = true;
  video.srcObject = state.stream;
  await video.play();
  follow(video, state.stream);
}

/** Detects in the newest frame whenever the last one is done. */
async function follow(video, stream) {
  while (state.stream === stream) {
    const last = state.result;
    setPicture(video, video.videoWidth, video.videoHeight, "camera");
    state.result = last; // the last boxes stay until the next ones come
    drawBoxes();
    if (state.ready) await detect();
    await new Promise(requestAnimationFrame);
  }
}

function stopCamera() {
  state.stream?.getTracks().forEach((track) => track.stop());
  state.stream = null;
  $("camera").setAttribute("aria-pressed", "false");
}

// --- detection -------------------------------------------------------------------------------------------------------

const confOf = (which) => ($(`${which}-own`).checked ? null : Number($(`${which}-conf`).value));

async function detect() {
  const { canvas } = state.picture;
  const { width, height } = canvas;
  const rgba = canvas.getContext("2d").getImageData(0, 0, width, height, { colorSpace: "srgb" }).data.buffer;
  const wanted = {
    labels: state.chips.filter((chip) => chip.on).map((chip) => chip.label),
    originalConf: confOf("original"),
    learnedConf: confOf("learned"),
    overlap: $("overlap").value,
  };
  state.result = await call("detect", { rgba, width, height, wanted }, [rgba]);
  showResult();
}

function showResult() {
  const { times, passes } = state.result;
  const detections = shownOf(state.result);
  const hidden = state.result.detections.length - detections.length;
  const rounded = (value) => (value < 10 ? value.toFixed(1) : value.toFixed(0));
  const network = passes > 1 ? `network ${rounded(times.network)} in ${passes} passes` : `network ${rounded(times.network)}`;
  $("status").textContent = `${rounded(times.total)} ms (scaling ${rounded(times.prepare)}, ${network})`;
  $("total").textContent = `· ${detections.length}${hidden ? `, ${hidden} hidden` : ""}`;
  $("list").replaceChildren(
    ...[...detections]
      .sort((one, other) => (one.vocabulary === ORIGINAL) - (other.vocabulary === ORIGINAL) || other.score - one.score)
      .map(listed),
  );
  for (const id of ["save-picture", "save-json"]) $(id).disabled = false;
  showChips();
  drawBoxes();
}

/** The detections that no other box hides. */
const shownOf = ({ detections }) => detections.filter((one) => !one.hidden);

function listed(one) {
  const item = document.createElement("li");
  item.append(
    element("span", { className: "swatch", style: `background: ${colourOf(one)}` }),
    element("span", { textContent: one.class }),
    element("span", { className: "from", textContent: one.vocabulary }),
    element("span", { className: "score", textContent: one.score.toFixed(2) }),
  );
  item.addEventListener("pointerenter", () => drawBoxes(one));
  item.addEventListener("pointerleave", () => drawBoxes());
  return item;
}

function showChips() {
  $("chips").replaceChildren(
    ...state.chips.map((chip) => {
      const found = state.result && shownOf(state.result).filter((one) => one.vocabulary === chip.label).length;
      const own = chip.guideMode === "own" ? ", own pass" : "";
      const toggle = element("button", { type: "button", textContent: `${chip.label} ` });
      const classes = `${chip.names.length} ${chip.names.length === 1 ? "class" : "classes"}`;
      toggle.append(element("small", { textContent: `${classes}${own}${found ? ` · ${found} found` : ""}` }));
      toggle.setAttribute("aria-pressed", String(chip.on));
      toggle.addEventListener("click", () => {
        chip.on = !chip.on;
        act(async () => showChips());
      });
      const parts = [toggle];
      if (chip.label !== ORIGINAL) {
        const remove = element("button", { type: "button", className: "remove", textContent: "×" });
        remove.setAttribute("aria-label", `Remove ${chip.label}`);
        remove.addEventListener("click", () => act(() => removeVocabulary(chip)));
        parts.push(remove);
      }
      const holder = element("span", { className: "chip" });
      holder.append(...parts);
      const entry = element("div", { className: "entry" });
      entry.append(holder, namesOf(chip));
      return entry;
    }),
  );
}

/** The class names of a vocabulary, folded until the user opens them. */
function namesOf(chip) {
  const details = element("details", { className: "names", open: Boolean(chip.open) });
  details.append(
    element("summary", { textContent: "Class names" }),
    element("p", { textContent: chip.names.join(", ") }),
  );
  details.addEventListener("toggle", () => (chip.open = details.open));
  return details;
}

function element(name, { style = "", ...properties }) {
  const made = Object.assign(document.createElement(name), properties);
  made.style = style;
  return made;
}

// --- what the user does ----------------------------------------------------------------------------------------------

let queue = Promise.resolve();
let pending = 0;

/** Queues an action, with a new detection after the last one. An error is shown and changes nothing else. */
function act(action) {
  pending++;
  $("main").setAttribute("aria-busy", "true");
  queue = queue.then(async () => {
    try {
      $("message").hidden = true;
      await action();
      if (pending === 1 && state.picture && state.ready && !state.stream) await detect();
    } catch (error) {
      $("message").textContent = error.message;
      $("message").hidden = false;
    }
    showChips();
    if (--pending === 0) $("main").setAttribute("aria-busy", "false");
  });
}

async function saveJson() {
  const { canvas, name } = state.picture;
  const result = { image: name, width: canvas.width, height: canvas.height, detections: state.result.detections };
  save(`${stem(name)}.json`, new Blob([JSON.stringify([result], null, 1)], { type: "application/json" }));
}

async function savePicture() {
  const { canvas, name } = state.picture;
  const copy = Object.assign(document.createElement("canvas"), { width: canvas.width, height: canvas.height });
  const context = copy.getContext("2d");
  context.drawImage(canvas, 0, 0);
  const unit = ((copy.width + copy.height) / 2) * TYPE_PER_SIDE;
  drawDetections(context, shownOf(state.result), { scale: 1, unit });
  save(`${stem(name)}-detections.png`, await new Promise((done) => copy.toBlob(done)));
}

const stem = (name) => name.replace(/\.[^.]*$/, "");

for (const id of ["photo", "vocabulary", "folder", "files"]) {
  $(id).addEventListener("change", ({ target }) => {
    const files = [...target.files];
    target.value = ""; // so that the same file can be chosen again
    if (files.length) act(() => take(files));
  });
}
$("sample").addEventListener("click", () =>
  act(async () => {
    const blob = await (await fetch(new URL(SAMPLE, import.meta.url))).blob();
    await showPage([new File([blob], SAMPLE, { type: blob.type })], 0);
  }),
);
for (const [id, step] of [["previous", -1], ["next", 1]]) {
  $(id).addEventListener("click", () =>
    act(() => showPage(state.album, (state.page + step + state.album.length) % state.album.length)),
  );
}
$("camera").addEventListener("click", () => act(async () => (state.stream ? stopCamera() : startCamera())));
$("device").addEventListener("change", () => act(async () => state.bundle && openBundle(state.bundle)));
$("overlap").addEventListener("change", () => act(async () => {}));
$("save-json").addEventListener("click", saveJson);
$("save-picture").addEventListener("click", savePicture);
for (const which of ["original", "learned"]) {
  const show = () => {
    const conf = confOf(which);
    $(`${which}-value`).textContent = conf === null ? "own" : conf.toFixed(2);
  };
  $(`${which}-conf`).addEventListener("input", () => {
    $(`${which}-own`).checked = false;
    act(async () => show());
  });
  $(`${which}-own`).addEventListener("change", () => act(async () => show()));
}
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  $("frame").classList.add("over");
});
document.addEventListener("dragleave", (event) => event.relatedTarget ?? $("frame").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("frame").classList.remove("over");
  const files = dropped(event.dataTransfer); // at once: the browser forgets what was dropped when the event is over
  act(async () => take(await files));
});
new ResizeObserver(layOut).observe($("frame"));

act(async () => {
  // a bundle may have no sample: its photos may not be handed on, or were gone when it was made
  $("sample").hidden = !(await fetch(new URL(SAMPLE, import.meta.url), { method: "HEAD" }).catch(() => null))?.ok;
  const bundle = await servedBundle();
  if (bundle) await openBundle(bundle);
  else $("bundle").textContent = "Choose a bundle: its folder or its files.";
});
