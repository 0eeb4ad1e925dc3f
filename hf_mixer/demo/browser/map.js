// SPDX-License-Identifier: Apache-2.0
// Draws the map of what mattered: orange where covering a part weakens the answer, purple where it strengthens it.

const SUPPORTING = [230, 97, 1];
const OPPOSING = [94, 60, 153];
// Of the strongest color
const MAX_OPACITY = 0.8;
// The shorter side of the picture, in pixels
const PICTURE_SIZE = 448;
// A change of the logarithm of a probability, or of a value in proportion, that may be rounding
const WEAKEST = 1e-4;

/** Draw an image as the model sees it, in pale gray, and `values`, one for each of the `windows`, over it. */
export function drawMap(canvas, { pixels, height, width, channels }, windows, values) {
  const small = new OffscreenCanvas(width, height);
  const image = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    const color = pixels.subarray(i * channels, (i + 1) * channels);
    const gray = channels === 3 ? 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] : color[0];
    // Colors would drown in a dark picture
    const pale = 90 + 0.6 * gray;
    image.data.set([pale, pale, pale, 255], 4 * i);
  }
  small.getContext("2d").putImageData(image, 0, 0);

  const scale = PICTURE_SIZE / Math.min(height, width);
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const context = canvas.getContext("2d");
  // Small images keep their pixels visible
  context.imageSmoothingEnabled = scale <= 4;
  context.drawImage(small, 0, 0, canvas.width, canvas.height);

  if (!windows.length) return;
  const map = spreadFalls(windows, values, height, width);
  const strongest = map.reduce((largest, value) => Math.max(largest, Math.abs(value)), 0);
  const overlay = new ImageData(width, height);
  map.forEach((value, i) => {
    const strength = Math.abs(value) / strongest || 0;
    overlay.data.set([...(value > 0 ? SUPPORTING : OPPOSING), 255 * MAX_OPACITY * strength], 4 * i);
  });
  small.getContext("2d").putImageData(overlay, 0, 0);
  context.imageSmoothingEnabled = true;
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
}

/** Return for every pixel the mean of `falls` over the windows that it lies in, those that it is in the middle of first. */
export function spreadFalls(windows, falls, height, width) {
  const total = new Float32Array(height * width);
  const weights = new Float32Array(height * width);
  const distanceToBorder = (position, start, end) => Math.min(position - start, end - 1 - position) + 0.5;
  windows.forEach(({ top, left, bottom, right }, index) => {
    for (let row = top; row < bottom; row++) {
      for (let column = left; column < right; column++) {
        const weight = distanceToBorder(row, top, bottom) * distanceToBorder(column, left, right);
        total[row * width + column] += falls[index] * weight;
        weights[row * width + column] += weight;
      }
    }
  });
  return total.map((sum, i) => sum / weights[i]);
}

/** Return the values to draw of one output, without what may be rounding; `falls` are those of all outputs, by window. */
export function findFalls(falls, index, output, problemType) {
  const weakest = problemType === "regression" ? WEAKEST * Math.abs(output) : WEAKEST;
  return falls.map((row) => (Math.abs(row[index]) < weakest ? 0 : row[index]));
}

/** Say in words where the part is that matters most, and how much. */
export function describeMap(name, windows, values, { height, width }, problemType) {
  const strongest = values.reduce((best, value, i) => (Math.abs(value) > Math.abs(values[best]) ? i : best), 0);
  const fall = values[strongest];
  if (!fall) return `No single part matters for “${name}”.`;
  const { top, left, bottom, right } = windows[strongest];
  const place = describePlace((top + bottom) / 2 / height, (left + right) / 2 / width);
  if (problemType === "regression") {
    const change = Math.abs(fall).toLocaleString("en", { maximumSignificantDigits: 3 });
    return `“${name}”: the part ${place} matters most. Covering it makes the value ${fall > 0 ? "smaller" : "larger"} by ${change}.`;
  }
  const direction = fall > 0 ? "less" : "more";
  return `“${name}”: the part ${place} matters most. Covering it makes the label ${describeFactor(Math.abs(fall))} ${direction} likely.`;
}

function describeFactor(logarithm) {
  const factor = Math.exp(logarithm);
  if (factor >= 1000) return "over 1,000 times";
  if (factor >= 2) return `${factor.toLocaleString("en", { maximumSignificantDigits: 2 })} times`;
  return `${(100 * (1 - 1 / factor)).toLocaleString("en", { maximumSignificantDigits: 2 })}%`;
}

function describePlace(down, across) {
  const vertical = ["at the top", "in the middle", "at the bottom"][Math.min(2, Math.floor(3 * down))];
  const horizontal = ["left", "center", "right"][Math.min(2, Math.floor(3 * across))];
  if (vertical === "in the middle" && horizontal === "center") return "in the middle";
  return horizontal === "center" ? vertical : `${vertical} ${horizontal}`;
}
