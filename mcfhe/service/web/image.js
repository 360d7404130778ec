/** From a picture to the pixels a program takes: uint8 [C, H, W]. */

import { Refused } from "./errors.js";

const MAX_FILE_BYTES = 32 * 2 ** 20;
const MAX_SIDE = 4096;

/**
 * @typedef {{width: number, height: number, data: Uint8ClampedArray}} Picture RGBA, row by row
 * @typedef {{pixels: Uint8Array, note: string}} Input and what was done to get there
 */

/** Decode a PNG or JPEG; transparent parts become white. @param {Blob} file @returns {Promise<Picture>} */
export async function decode(file) {
  if (file.size > MAX_FILE_BYTES) throw new Refused(`image: larger than ${MAX_FILE_BYTES / 2 ** 20} MiB; use a smaller one`);
  const start = new Uint8Array(await file.slice(0, 8).arrayBuffer());
  const isPng = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a].every((value, at) => start[at] === value);
  const isJpeg = start[0] === 0xff && start[1] === 0xd8 && start[2] === 0xff;
  if (!isPng && !isJpeg) throw new Refused("image: neither PNG nor JPEG; convert it");
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
  } catch {
    throw new Refused("image: damaged, this browser cannot decode it");
  }
  try {
    const { width, height } = bitmap;
    if (Math.max(width, height) > MAX_SIDE) throw new Refused(`image: ${width} × ${height} pixels; sides up to ${MAX_SIDE} are read`);
    const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    context.fillStyle = "white";
    context.fillRect(0, 0, width, height);
    context.drawImage(bitmap, 0, 0);
    return context.getImageData(0, 0, width, height);
  } finally {
    bitmap.close();
  }
}

/** @param {Uint8Array} grey row by row @returns {Picture} */
export function fromGrey(grey, width, height) {
  const data = new Uint8ClampedArray(4 * grey.length);
  grey.forEach((value, at) => data.set([value, value, value, 255], 4 * at));
  return { width, height, data };
}

/**
 * A picture of the program's size is taken pixel by pixel. Another one is cropped at its centre to the program's
 * proportions, then every pixel becomes the mean of the area it covers.
 * @param {Picture} picture
 * @param {number[]} shape [C, H, W], C 1 (grey, with Pillow's integer weights) or 3
 * @param {boolean} invert
 * @returns {Input}
 */
export function toInput(picture, [channels, height, width], invert) {
  if (channels !== 1 && channels !== 3) {
    throw new Refused(`This program takes ${channels} channels; this page makes images of 1 or 3. Use the mcfhe command line.`);
  }
  const planes = toPlanes(picture, channels);
  const pixels = new Uint8Array(channels * height * width);
  const notes = [];
  if (picture.width === width && picture.height === height) {
    planes.forEach((plane, channel) => pixels.set(plane, channel * plane.length));
    notes.push("taken pixel by pixel");
  } else {
    const scale = Math.min(picture.width / width, picture.height / height);
    const crop = { width: scale * width, height: scale * height };
    const columns = spans(width, scale, (picture.width - crop.width) / 2, picture.width);
    const rows = spans(height, scale, (picture.height - crop.height) / 2, picture.height);
    planes.forEach((plane, channel) => {
      pixels.set(means(plane, picture.width, columns, rows), channel * height * width);
    });
    const cropped = crop.width < picture.width || crop.height < picture.height;
    notes.push(`${picture.width} × ${picture.height} ${cropped ? "cropped at the centre and " : ""}resized by area means`);
  }
  if (channels === 1 && isColoured(picture)) notes.push("turned grey");
  if (invert) {
    pixels.forEach((value, at) => (pixels[at] = 255 - value));
    notes.push("inverted");
  }
  return { pixels, note: notes.join(", ") };
}

function isColoured({ data }) {
  for (let at = 0; at < data.length; at += 4) if (data[at] !== data[at + 1] || data[at] !== data[at + 2]) return true;
  return false;
}

function toPlanes({ data }, channels) {
  const area = data.length / 4;
  if (channels === 3) return [0, 1, 2].map((channel) => Uint8Array.from({ length: area }, (_, at) => data[4 * at + channel]));
  // ITU-R 601-2 luma in 16-bit fixed point, as Pillow rounds it; equal channels stay as they are.
  const luma = (at) => (19595 * data[at] + 38470 * data[at + 1] + 7471 * data[at + 2] + 0x8000) >> 16;
  return [Uint8Array.from({ length: area }, (_, at) => luma(4 * at))];
}

/** For each of `count` cells of `size` source pixels from `start`: the source pixels it covers, each with its share. */
function spans(count, size, start, limit) {
  return Array.from({ length: count }, (_, cell) => {
    const [from, to] = [start + cell * size, start + (cell + 1) * size];
    const covered = [];
    for (let at = Math.floor(from); at < Math.min(limit, Math.ceil(to)); at++) {
      covered.push([at, (Math.min(to, at + 1) - Math.max(from, at)) / size]);
    }
    return covered;
  });
}

function means(plane, stride, columns, rows) {
  const out = new Uint8Array(columns.length * rows.length);
  let at = 0;
  for (const row of rows) {
    for (const column of columns) {
      let sum = 0;
      for (const [y, down] of row) for (const [x, across] of column) sum += plane[y * stride + x] * down * across;
      out[at++] = Math.min(255, Math.round(sum));
    }
  }
  return out;
}
