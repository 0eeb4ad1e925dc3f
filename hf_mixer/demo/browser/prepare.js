// SPDX-License-Identifier: Apache-2.0
// Makes the input of the model from an image of any size, as the image processor in Python does.

import { resizeColumns, resizeRows, weighPixels } from "./resize.js";

// Pixels that are in memory at a time: a photograph of a phone would take 200 MB at once
const STRIP_PIXELS = 2 ** 20;

/**
 * Return the height and width that an image is resized to: `size` is both, or the length of the shorter side, which keeps the
 * proportions.
 */
export function findTargetSize(height, width, size) {
  if (Array.isArray(size)) return size;
  const longest = Math.trunc((size * Math.max(height, width)) / Math.min(height, width));
  return height < width ? [size, longest] : [longest, size];
}

/** Round to the nearest integer, halves to the even one, as Python does. */
export function roundHalfToEven(value) {
  const floor = Math.floor(value);
  if (value - floor !== 0.5) return Math.round(value);
  return floor % 2 === 0 ? floor : floor + 1;
}

/** Return the RGB (3 channels) or Pillow's luminance (1 channel) of RGBA pixels. The alpha channel is dropped. */
export function convertPixels(rgba, channels) {
  const count = rgba.length / 4;
  const pixels = new Uint8Array(count * channels);
  for (let i = 0; i < count; i++) {
    const [red, green, blue] = [rgba[4 * i], rgba[4 * i + 1], rgba[4 * i + 2]];
    if (channels === 1) {
      pixels[i] = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16;
    } else {
      pixels[3 * i] = red;
      pixels[3 * i + 1] = green;
      pixels[3 * i + 2] = blue;
    }
  }
  return pixels;
}

function cropCenter(pixels, height, width, channels, cropSize) {
  if (!cropSize) return { pixels, height, width };
  const [cropHeight, cropWidth] = cropSize;
  const top = roundHalfToEven((height - cropHeight) / 2);
  const left = roundHalfToEven((width - cropWidth) / 2);
  const cropped = new Uint8Array(cropHeight * cropWidth * channels);
  for (let row = 0; row < cropHeight; row++) {
    const start = ((top + row) * width + left) * channels;
    cropped.set(pixels.subarray(start, start + cropWidth * channels), row * cropWidth * channels);
  }
  return { pixels: cropped, height: cropHeight, width: cropWidth };
}

/**
 * Resize and crop an image to what the model sees.
 *
 * `image` has `height`, `width` and `read(top, rows)`, which returns the RGBA bytes of rows. `processing` is that of `page.json`.
 * Returns `{ pixels, height, width, channels }`: bytes, row by row, the channels of a pixel side by side.
 */
export async function resizeImage(image, processing) {
  const channels = processing.num_channels;
  const [height, width] = findTargetSize(image.height, image.width, processing.size);
  const columns = weighPixels(image.width, width, processing.resample);
  const rows = weighPixels(image.height, height, processing.resample);
  const verticalFirst =
    processing.vertical_first && image.height - height > Math.max(0, 2 * (image.width - width));
  const narrow = (pixels) => resizeRows(pixels, image.width, channels, columns);

  const keptWidth = verticalFirst ? image.width : width;
  const kept = new Uint8Array(image.height * keptWidth * channels);
  const stripHeight = Math.max(1, Math.floor(STRIP_PIXELS / image.width));
  for (let top = 0; top < image.height; top += stripHeight) {
    const rgba = await image.read(top, Math.min(stripHeight, image.height - top));
    const pixels = convertPixels(rgba, channels);
    kept.set(verticalFirst ? pixels : narrow(pixels), top * keptWidth * channels);
  }
  const short = resizeColumns(kept, keptWidth * channels, rows);
  const resized = verticalFirst ? narrow(short) : short;
  return { ...cropCenter(resized, height, width, channels, processing.crop_size), channels };
}

/** Return the input of the model, of shape `(channels, height, width)`, of an image that `resizeImage` returned. */
export function normalize({ pixels, height, width, channels }, { scale, shift }) {
  const values = new Float32Array(pixels.length);
  for (let channel = 0; channel < channels; channel++) {
    const table = Float32Array.from({ length: 256 }, (_, byte) => byte * scale[channel] + shift[channel]);
    for (let i = 0; i < height * width; i++) {
      values[channel * height * width + i] = table[pixels[i * channels + channel]];
    }
  }
  return values;
}
