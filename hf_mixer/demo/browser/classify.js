// SPDX-License-Identifier: Apache-2.0
// Makes logarithms of probabilities of the outputs of a model, and covers an image part by part to see what mattered.

// Parts of the image along its longer side
const MAX_PARTS = 8;
// Milliseconds that a batch may take, so that a new image does not wait long
const BATCH_TIME = 200;
const MAX_BATCH_SIZE = 16;

/** Return the logarithms of the probabilities of the labels of one image, or the values of a regression. */
export function readOutputs(logits, problemType) {
  if (problemType === "regression") return Float32Array.from(logits);
  if (problemType === "multi_label_classification") {
    return Float32Array.from(logits, (logit) => Math.min(0, logit) - Math.log1p(Math.exp(-Math.abs(logit))));
  }
  const largest = logits.reduce((first, second) => Math.max(first, second));
  const sum = logits.reduce((total, logit) => total + Math.exp(logit - largest), 0);
  return Float32Array.from(logits, (logit) => logit - largest - Math.log(sum));
}

/** Return the parts of an image that are covered one after the other, in pixels. They overlap by half, as in `saliency.py`. */
export function findWindows(height, width) {
  const stride = Math.ceil(Math.max(height, width) / MAX_PARTS);
  const windows = [];
  for (let top = -stride; top < height; top += stride) {
    for (let left = -stride; left < width; left += stride) {
      const [bottom, right] = [Math.min(top + 2 * stride, height), Math.min(left + 2 * stride, width)];
      windows.push({ top: Math.max(top, 0), left: Math.max(left, 0), bottom, right });
    }
  }
  return windows;
}

/** Return the input `values` of shape `(channels, height, width)` with a part in the mean color of the image. */
export function cover(values, height, width, { top, left, bottom, right }) {
  const covered = values.slice();
  const size = height * width;
  for (let start = 0; start < values.length; start += size) {
    const mean = values.subarray(start, start + size).reduce((total, value) => total + value, 0) / size;
    for (let row = top; row < bottom; row++) covered.fill(mean, start + row * width + left, start + row * width + right);
  }
  return covered;
}

/** Return how many covered images to run at a time, of a model that takes `milliseconds` for one. */
export function findBatchSize(milliseconds) {
  return Math.max(1, Math.min(MAX_BATCH_SIZE, Math.floor(BATCH_TIME / milliseconds)));
}
