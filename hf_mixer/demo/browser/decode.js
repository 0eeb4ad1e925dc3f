// SPDX-License-Identifier: Apache-2.0
// Decodes image files to the pixels that Pillow reads: upright, colors as they are in the file, transparency ignored.

const MAX_PIXELS = 64e6;

/** An error whose message is for the visitor. */
export class ImageError extends Error {}

/**
 * Open an image file, of any format that the browser knows.
 *
 * Returns `{ height, width, read(top, rows), close(), isTransparent, isExact }`. `read` returns the RGBA bytes of rows. After
 * that, `isTransparent` says whether any pixel was, and `isExact` whether the colors of such pixels could be read.
 */
export async function openImage(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, {
      imageOrientation: "from-image",
      colorSpaceConversion: "none",
      premultiplyAlpha: "none",
    });
  } catch (error) {
    console.warn(error);
    throw new ImageError("This file is no image that this browser can read. Try a JPEG, PNG or WebP file.");
  }
  const { height, width } = bitmap;
  if (height * width > MAX_PIXELS) {
    bitmap.close();
    const megapixels = Math.round((height * width) / 1e6);
    throw new ImageError(
      `This image has ${megapixels} megapixels (${width} x ${height}). The limit is ${MAX_PIXELS / 1e6}: make it smaller.`,
    );
  }
  const image = { height, width, isTransparent: false, isExact: true, close: () => bitmap.close() };
  image.read = async (top, rows) => {
    const pixels = readCanvas(bitmap, top, rows);
    if (isOpaque(pixels)) return pixels;
    image.isTransparent = true;
    const exact = await readTexture(bitmap, top, rows);
    image.isExact &&= exact !== null;
    return exact ?? pixels;
  };
  return image;
}

function readCanvas(bitmap, top, rows) {
  const context = new OffscreenCanvas(bitmap.width, rows).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, -top);
  return context.getImageData(0, 0, bitmap.width, rows).data;
}

function isOpaque(rgba) {
  for (let i = 3; i < rgba.length; i += 4) if (rgba[i] !== 255) return false;
  return true;
}

/**
 * Read rows with WebGL. A canvas multiplies colors by their alpha, and forgets those of transparent pixels; a texture keeps
 * them. Returns null where WebGL is missing or the image is wider than its textures.
 */
async function readTexture(bitmap, top, rows) {
  const gl = new OffscreenCanvas(1, 1).getContext("webgl2");
  if (!gl || Math.max(bitmap.width, rows) > gl.getParameter(gl.MAX_TEXTURE_SIZE)) return null;
  const strip = await createImageBitmap(bitmap, 0, top, bitmap.width, rows, { premultiplyAlpha: "none" });
  gl.pixelStorei(gl.UNPACK_PREMULTIPLY_ALPHA_WEBGL, false);
  gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, strip);
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, gl.getParameter(gl.TEXTURE_BINDING_2D), 0);
  const pixels = new Uint8Array(4 * bitmap.width * rows);
  gl.readPixels(0, 0, bitmap.width, rows, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
  strip.close();
  gl.getExtension("WEBGL_lose_context")?.loseContext();
  return pixels;
}
