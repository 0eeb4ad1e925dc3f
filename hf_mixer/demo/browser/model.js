// SPDX-License-Identifier: Apache-2.0
// The worker that runs the model: it loads it, and answers for every image with its outputs, then with the map, part by part.

import { AutoModelForImageClassification, Tensor, env } from "./library/transformers.min.js";
import { cover, findBatchSize, findWindows, readOutputs } from "./classify.js";
import { ImageError, openImage } from "./decode.js";
import { normalize, resizeImage } from "./prepare.js";

// The build that knows WebGPU is twice as large, and slower without it
const RUNTIMES = { wasm: "ort-wasm-simd-threaded", webgpu: "ort-wasm-simd-threaded.asyncify" };

let settings;
let model;
let newest = 0;

const report = (message) => postMessage(message);
const giveWay = () => new Promise((resolve) => setTimeout(resolve));

/** Run images whose values stand one after the other; return the outputs of each, and how long it took. */
async function run(values, count, height, width) {
  const dimensions = [count, settings.processing.num_channels, height, width];
  const start = performance.now();
  const { logits } = await model({ pixel_values: new Tensor("float32", values, dimensions) });
  const milliseconds = performance.now() - start;
  const number = logits.data.length / count;
  const outputs = Array.from({ length: count }, (_, index) =>
    readOutputs(logits.data.slice(index * number, (index + 1) * number), settings.problem_type),
  );
  return { outputs, milliseconds };
}

async function load({ dtype, device }) {
  const here = new URL("./", import.meta.url).href;
  env.allowRemoteModels = false;
  env.allowLocalModels = true;
  env.localModelPath = here;
  // The service worker keeps the files
  env.useBrowserCache = false;
  env.useWasmCache = false;
  const runtime = `${here}library/${RUNTIMES[device]}`;
  env.backends.onnx.wasm.wasmPaths = { mjs: `${runtime}.mjs`, wasm: `${runtime}.wasm` };
  const progress_callback = ({ status, file, loaded, total }) => {
    if (status === "progress" && file.endsWith(".onnx")) report({ type: "loading", loaded, total });
  };
  try {
    model = await AutoModelForImageClassification.from_pretrained("model", { dtype, device, progress_callback });
  } catch (error) {
    // transformers.js 4.3.1 tells of its settings where a file is missing
    if (!error.message.includes("was not found locally")) throw error;
    throw new Error("its file cannot be loaded. Without a network, choose a precision that was used before.", { cause: error });
  }
  const [height, width] = settings.image_size;
  // The first run is slower than all others
  await run(new Float32Array(settings.processing.num_channels * height * width), 1, height, width);
  report({ type: "ready" });
}

async function answer(id, file) {
  const image = await openImage(file);
  let picture;
  try {
    picture = await resizeImage(image, settings.processing);
  } finally {
    image.close();
  }
  const { height, width } = picture;
  const values = normalize(picture, settings.processing);
  const { outputs, milliseconds } = await run(values, 1, height, width);
  const { isTransparent, isExact } = image;
  report({ type: "answer", id, outputs: outputs[0], milliseconds, picture, isTransparent, isExact });

  const windows = findWindows(height, width);
  const batchSize = findBatchSize(milliseconds);
  const falls = [];
  for (let start = 0; start < windows.length; start += batchSize) {
    await giveWay();
    // Another image has come meanwhile
    if (id !== newest) return;
    const batch = windows.slice(start, start + batchSize);
    const covered = new Float32Array(batch.length * values.length);
    batch.forEach((window, index) => covered.set(cover(values, height, width, window), index * values.length));
    const result = await run(covered, batch.length, height, width);
    for (const row of result.outputs) falls.push(row.map((output, index) => outputs[0][index] - output));
    report({ type: "mapping", id, done: falls.length, total: windows.length });
  }
  report({ type: "map", id, windows, falls });
}

async function receive({ type, id, ...content }) {
  if (type === "load") {
    settings = content.settings;
    return load(content.choice);
  }
  newest = id;
  return answer(id, content.file);
}

addEventListener("message", ({ data }) => {
  receive(data).catch((error) => {
    if (!(error instanceof ImageError)) console.error(error);
    report({ type: "error", id: data.id, isOfImage: error instanceof ImageError, message: error.message });
  });
});
