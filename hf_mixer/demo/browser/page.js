// SPDX-License-Identifier: Apache-2.0
// The page: it takes images, hands them to the model in its worker, and shows what comes back.

import { describePurpose, markLabel, rankLabels, showLabels, summarize } from "./answer.js";
import { takePhoto } from "./camera.js";
import { describeMap, drawMap, findFalls } from "./map.js";

// A model of at most so many bytes is loaded in full precision
const SMALL_MODEL = 50e6;
const SERVICE_WORKER_TIMEOUT = 4000;
const CHOICES = [
  { dtype: "fp32", device: "wasm", text: "32 bits, on the processor" },
  { dtype: "q8", device: "wasm", text: "8 bits, on the processor" },
  { dtype: "fp16", device: "webgpu", feature: "shader-f16", text: "16 bits, on the graphics card" },
  { dtype: "fp32", device: "webgpu", text: "32 bits, on the graphics card" },
];
// What the page calls the answer, the two ends of the map's scale, and what can be chosen
const WORDS = {
  single_label_classification: ["Labels", "speaks against", "speaks for", "label"],
  multi_label_classification: ["Labels that it sees", "speaks against", "speaks for", "label"],
  regression: ["Estimate", "lowers the value", "raises the value", "value"],
};

const element = (id) => document.getElementById(id);
const megabytes = (bytes) => `${(bytes / 1e6).toLocaleString("en", { maximumSignificantDigits: 3 })} MB`;

let settings;
let worker;
let choice;
let isReady = false;
// The newest image: its number, its file, the answer of the model and the falls of the map
let image = { id: 0 };
let times = [];
// How many images have been asked for: an example that arrives after a newer one is left out
let asked = 0;

function say(text) {
  element("status").textContent = text;
}

function showError(message) {
  element("error").textContent = message ?? "";
  element("error").hidden = !message;
}

// ---- images -------------------------------------------------------------------------------------------------------

function useImage(file, name = "Your image") {
  asked += 1;
  showError(null);
  image = { id: image.id + 1, file };
  const preview = element("preview");
  if (preview.src) URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(file);
  preview.alt = name;
  preview.hidden = false;
  element("invitation").hidden = true;
  classify();
}

function classify() {
  if (!image.file || !isReady) return;
  say("Looking at the image");
  element("notes").hidden = true;
  worker.postMessage({ type: "image", id: image.id, file: image.file });
}

function forgetImage() {
  image = { id: image.id + 1 };
  element("preview").hidden = true;
  element("preview").removeAttribute("src");
  element("invitation").hidden = false;
  element("answer").replaceChildren();
  element("notes").hidden = true;
  showMapProgress(null);
  element("map-figure").hidden = true;
  element("map-placeholder").hidden = false;
}

function takeImages() {
  const drop = element("drop");
  const inputs = [element("file"), element("capture")];
  for (const trigger of [drop, element("choose")]) trigger.addEventListener("click", () => inputs[0].click());
  for (const input of inputs) {
    input.addEventListener("change", () => {
      if (input.files.length) useImage(input.files[0], input.files[0].name);
      // The same file may be chosen again
      input.value = "";
    });
  }
  element("photograph").addEventListener("click", async () => {
    showError(null);
    try {
      await takePhoto(element("camera"), element("capture"), (photo) => useImage(photo, "Your photo"));
    } catch (error) {
      showError(`There is no camera that this page can use (${error.message}). Choose an image instead.`);
    }
  });
  addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  addEventListener("dragleave", (event) => event.relatedTarget ?? drop.classList.remove("over"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    useFirstFile(event.dataTransfer);
  });
  addEventListener("paste", (event) => useFirstFile(event.clipboardData));
}

function useFirstFile({ files }) {
  if (files.length) useImage(files[0], files[0].name);
  else showError("That was no image file. Save the image first, then drop the file or choose it.");
}

function showExamples() {
  element("examples-part").hidden = settings.examples.length === 0;
  for (const { file, name } of settings.examples) {
    const picture = document.createElement("img");
    picture.src = file;
    picture.alt = name;
    const button = document.createElement("button");
    button.type = "button";
    button.append(picture);
    button.addEventListener("click", async () => {
      asked += 1;
      const mine = asked;
      try {
        const response = await fetch(file);
        if (!response.ok) throw new Error(`status ${response.status}`);
        const example = await response.blob();
        if (mine === asked) useImage(example, name);
      } catch (error) {
        showError(`The example ${name} cannot be loaded (${error.message}).`);
      }
    });
    const item = document.createElement("li");
    item.append(button);
    element("examples").append(item);
  }
}

// ---- answers ------------------------------------------------------------------------------------------------------

function showAnswer({ outputs, milliseconds, picture, isTransparent, isExact }) {
  Object.assign(image, { outputs, picture });
  const entries = rankLabels(outputs, settings);
  showLabels(element("answer"), entries, explain);
  say(summarize(entries, settings.problem_type));
  showNotes(isTransparent, isExact);
  explain(settings.problem_type === "regression" ? 0 : entries[0].index);

  times = [...times, milliseconds].slice(-9);
  const median = [...times].sort((first, second) => first - second)[Math.floor(times.length / 2)];
  const text = median.toLocaleString("en", { maximumSignificantDigits: 2 });
  element("model-speed").textContent = `${text} ms per image`;
}

function showNotes(isTransparent, isExact) {
  const { flatten_transparency: color } = settings.conversion;
  const notes = [];
  if (isTransparent && color) {
    notes.push(`The model learned from images without transparency, put on ${color}. Do the same to this one.`);
  }
  if (!isExact) notes.push("This browser cannot read the colors of transparent parts, so the scores are not exact.");
  const items = notes.map((note) => Object.assign(document.createElement("li"), { textContent: note }));
  element("notes").replaceChildren(...items);
  element("notes").hidden = notes.length === 0;
}

/** Explain one output: with the map, as soon as it is there. */
function explain(index) {
  image.index = index;
  markLabel(element("answer"), index);
  const { picture, windows, falls, outputs } = image;
  const values = falls ? findFalls(falls, index, outputs[index], settings.problem_type) : [];
  const caption = falls ? describeMap(settings.labels[index], windows, values, picture, settings.problem_type) : "";
  drawMap(element("map"), picture, falls ? windows : [], values);
  element("map").setAttribute("aria-label", `Your image as the model sees it. ${caption}`);
  element("map-caption").textContent = caption;
  element("map-figure").hidden = false;
  element("map-placeholder").hidden = true;
}

function showMapProgress(share) {
  element("mapping").hidden = share === null;
  if (share !== null) element("mapping").value = share;
}

const RECEIVERS = {
  loading({ loaded, total }) {
    if (total) element("loading").value = loaded / total;
    const share = total ? ` (${Math.round((100 * loaded) / total)}%)` : "";
    // Every tenth is enough for who listens
    if (share.endsWith("0%)")) say(`Loading the model${share}`);
  },
  ready() {
    isReady = true;
    element("loading").hidden = true;
    say("Ready: give it an image");
    element("model-offline").textContent = navigator.serviceWorker?.controller ? "works as well" : "not in this browser";
    classify();
  },
  answer(message) {
    showAnswer(message);
    showMapProgress(0);
  },
  mapping({ done, total }) {
    showMapProgress(done / total);
  },
  map({ windows, falls }) {
    showMapProgress(null);
    Object.assign(image, { windows, falls });
    explain(image.index);
  },
  error({ isOfImage, message }) {
    if (isOfImage) forgetImage();
    element("loading").hidden = true;
    say(isReady ? "Give it another image" : "The model is not loaded");
    showError(isOfImage ? message : `The model cannot run here: ${message}`);
  },
};

// ---- the model ----------------------------------------------------------------------------------------------------

async function findChoices() {
  const adapter = await navigator.gpu?.requestAdapter();
  return CHOICES.filter(({ dtype, device, feature }) => {
    const isSupported = device === "wasm" || (adapter && (!feature || adapter.features.has(feature)));
    return isSupported && dtype in settings.files;
  });
}

/** Small models in full precision, large ones on a graphics card if there is one, else in the smallest file. */
function findDefault(choices) {
  const onGraphicsCard = choices.findIndex(({ device }) => device === "webgpu");
  if (settings.files.fp32 <= SMALL_MODEL) return 0;
  if (onGraphicsCard >= 0) return onGraphicsCard;
  return Math.max(0, choices.findIndex(({ dtype }) => dtype === "q8"));
}

function startModel() {
  worker?.terminate();
  isReady = false;
  times = [];
  showError(null);
  say("Loading the model");
  showMapProgress(null);
  element("loading").value = 0;
  element("loading").hidden = false;
  element("model-size").textContent = megabytes(settings.files[choice.dtype]);
  element("model-speed").textContent = "not measured yet";
  worker = new Worker("model.js", { type: "module" });
  worker.addEventListener("message", ({ data: { type, id, ...content } }) => {
    if (id === undefined || id === image.id) RECEIVERS[type](content);
  });
  worker.addEventListener("error", ({ message }) => RECEIVERS.error({ message: message || "it cannot be loaded" }));
  worker.postMessage({ type: "load", settings, choice: { dtype: choice.dtype, device: choice.device } });
}

async function offerModels() {
  const choices = await findChoices();
  const select = element("choice");
  select.append(...choices.map(({ text, dtype }, index) => new Option(`${text} (${megabytes(settings.files[dtype])})`, index)));
  select.value = findDefault(choices);
  select.addEventListener("change", () => {
    choice = choices[select.value];
    startModel();
  });
  choice = choices[select.value];
}

function describeModel() {
  document.title = `${settings.title}: an MLP-Mixer in your browser`;
  element("title").textContent = settings.title;
  element("purpose").textContent = describePurpose(settings);
  const [heading, opposing, supporting, choosable] = WORDS[settings.problem_type];
  element("answer-heading").textContent = heading;
  element("opposing").textContent = opposing;
  element("supporting").textContent = supporting;
  element("choosable").textContent = choosable;
  element("map-hint").hidden = settings.labels.length === 1;
  element("model-parameters").textContent = settings.parameters.toLocaleString("en");
  const [height, width] = settings.image_size;
  element("model-input").textContent = `${width} × ${height} pixels`;
  element("model-name").append(settings.model ? createLink(settings.model) : settings.name);
}

function createLink(model) {
  const link = document.createElement("a");
  link.href = `https://huggingface.co/${model}`;
  link.rel = "noopener";
  link.target = "_blank";
  link.textContent = model;
  return link;
}

/** Let the service worker take over, so that it keeps all files. Without one the page works as well, but not offline. */
async function keepFiles() {
  if (!navigator.serviceWorker || navigator.serviceWorker.controller) return;
  const inControl = new Promise((resolve) => navigator.serviceWorker.addEventListener("controllerchange", resolve));
  const timeout = new Promise((resolve) => setTimeout(resolve, SERVICE_WORKER_TIMEOUT));
  try {
    await navigator.serviceWorker.register("service-worker.js");
    await Promise.race([inControl, timeout]);
  } catch (error) {
    console.warn("The files cannot be kept for use without a network:", error);
  }
}

async function start() {
  await keepFiles();
  settings = await (await fetch("page.json")).json();
  describeModel();
  showExamples();
  takeImages();
  await offerModels();
  startModel();
}

start().catch((error) => {
  say("The page cannot be loaded");
  element("loading").hidden = true;
  showError(`The page cannot be loaded: ${error.message}`);
});
