// SPDX-License-Identifier: Apache-2.0
// Resizes 8-bit images to the same pixels as Pillow: https://github.com/python-pillow/Pillow/blob/main/src/libImaging/Resample.c

const PRECISION_BITS = 22;
const FILTERS = {
  bilinear: { support: 1, weigh: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: { support: 2, weigh: (x) => weighCubic(Math.abs(x), -0.5) },
};

function weighCubic(x, a) {
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

/**
 * Weigh the input pixels that each output pixel is made of, along one axis.
 *
 * Returns `{ size, starts, counts, weights }`: output pixel `i` of `size` is the sum of the `counts[i]` input pixels from
 * `starts[i]` on, times `weights[i]`, in fixed point.
 */
export function weighPixels(inputSize, outputSize, filterName) {
  const filter = FILTERS[filterName];
  if (!filter) throw new Error(`Unknown filter ${filterName}: expected one of ${Object.keys(FILTERS).join(", ")}`);
  const scale = inputSize / outputSize;
  // A wider filter where the image becomes smaller, against aliasing
  const stretch = Math.max(scale, 1);
  const support = filter.support * stretch;
  const starts = new Int32Array(outputSize);
  const counts = new Int32Array(outputSize);
  const weights = [];
  for (let i = 0; i < outputSize; i++) {
    const center = (i + 0.5) * scale;
    const start = Math.max(0, Math.trunc(center - support + 0.5));
    const end = Math.min(inputSize, Math.trunc(center + support + 0.5));
    const exact = Float64Array.from({ length: end - start }, (_, k) =>
      filter.weigh((k + start - center + 0.5) * (1 / stretch)),
    );
    const sum = exact.reduce((total, weight) => total + weight, 0);
    starts[i] = start;
    counts[i] = end - start;
    weights.push(Int32Array.from(exact, (weight) => toFixedPoint(sum === 0 ? weight : weight / sum)));
  }
  return { size: outputSize, starts, counts, weights };
}

function toFixedPoint(weight) {
  return Math.trunc(weight * 2 ** PRECISION_BITS + (weight < 0 ? -0.5 : 0.5));
}

function toByte(sum) {
  return Math.min(255, Math.max(0, sum >> PRECISION_BITS));
}

/** Resize rows of `width` pixels of `channels` bytes to `weighed.size` pixels each. */
export function resizeRows(pixels, width, channels, weighed) {
  if (weighed.size === width) return pixels;
  const height = pixels.length / (width * channels);
  const resized = new Uint8Array(height * weighed.size * channels);
  let target = 0;
  for (let row = 0; row < height; row++) {
    for (let i = 0; i < weighed.size; i++) {
      const weights = weighed.weights[i];
      const first = (row * width + weighed.starts[i]) * channels;
      for (let channel = 0; channel < channels; channel++) {
        let sum = 1 << (PRECISION_BITS - 1);
        for (let k = 0, source = first + channel; k < weights.length; k++, source += channels) {
          sum += pixels[source] * weights[k];
        }
        resized[target++] = toByte(sum);
      }
    }
  }
  return resized;
}

/** Resize an image of rows of `rowLength` bytes to `weighed.size` rows. */
export function resizeColumns(pixels, rowLength, weighed) {
  if (weighed.size === pixels.length / rowLength) return pixels;
  const resized = new Uint8Array(weighed.size * rowLength);
  let target = 0;
  for (let i = 0; i < weighed.size; i++) {
    const weights = weighed.weights[i];
    const first = weighed.starts[i] * rowLength;
    for (let column = 0; column < rowLength; column++) {
      let sum = 1 << (PRECISION_BITS - 1);
      for (let k = 0, source = first + column; k < weights.length; k++, source += rowLength) {
        sum += pixels[source] * weights[k];
      }
      resized[target++] = toByte(sum);
    }
  }
  return resized;
}
