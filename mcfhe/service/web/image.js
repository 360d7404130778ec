/** From a picture to the pixels a program takes: uint8 [C, H, W]. */

import { Refused } from "./errors.js";

const MAX_FILE_BYTES = 32 * 2 ** 20;
const MAX_SIDE = 4096;

/** @typedef {{width: number, height: number, data: Uint8ClampedArray}} Picture RGBA, row by row; opaque */

/** Decode a PNG or JPEG; transparent parts become white. @param {Blob} file @returns {Promise<Picture>} */
export async function decode(file) {
  if (file.size > MAX_FILE_BYTES)
    throw new Refused(`image: larger than ${MAX_FILE_BYTES / 2 ** 20} MiB; use a smaller one`);
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
    if (Math.max(width, height) > MAX_SIDE)
      throw new Refused(`image: ${width} × ${height} pixels; sides up to ${MAX_SIDE} are read`);
    const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    context.fillStyle = "white";
    context.fillRect(0, 0, width, height);
    context.drawImage(bitmap, 0, 0);
    const { data } = context.getImageData(0, 0, width, height);
    return { width, height, data };
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
 * A picture of the program's size stays as it is. Another one is cropped at its centre to the program's proportions,
 * then every pixel becomes the mean of the area it covers.
 * @param {Picture} picture
 * @param {number[]} shape [C, H, W]
 * @returns {{picture: Picture, note: string}} of H x W pixels, and what was done
 */
export function reduce(picture, [, height, width]) {
  if (picture.width === width && picture.height === height) return { picture, note: "taken pixel by pixel" };
  const scale = Math.min(picture.width / width, picture.height / height);
  const [across, down] = [scale * width, scale * height];
  const columns = spans(width, scale, (picture.width - across) / 2, picture.width);
  const rows = spans(height, scale, (picture.height - down) / 2, picture.height);
  const cropped = across < picture.width || down < picture.height;
  return {
    picture: { width, height, data: means(picture, columns, rows) },
    note: `${picture.width} × ${picture.height} ${cropped ? "cropped at the centre and " : ""}resized by area means`,
  };
}

/**
 * @param {Picture} picture of H x W pixels
 * @param {number[]} shape [C, H, W], C 1 (grey, with Pillow's integer weights) or 3
 * @param {boolean} invert
 * @returns {{pixels: Uint8Array, notes: string[]}} [C, H, W] and what was done
 */
export function toPixels({ data }, [channels, height, width], invert) {
  if (channels !== 1 && channels !== 3) {
    throw new Refused(
      `This program takes ${channels} channels; this page makes images of 1 or 3. Use the mcfhe command line.`,
    );
  }
  const area = height * width;
  const pixels = new Uint8Array(channels * area);
  const notes = [];
  for (let at = 0; at < area; at++) {
    const [red, green, blue] = [data[4 * at], data[4 * at + 1], data[4 * at + 2]];
    if (channels === 3) {
      pixels[at] = red;
      pixels[area + at] = green;
      pixels[2 * area + at] = blue;
    } else {
      // ITU-R 601-2 luma in 16-bit fixed point, as Pillow rounds it; equal channels stay as they are.
      pixels[at] = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16;
      if (!notes.length && (red !== green || red !== blue)) notes.push("turned grey");
    }
  }
  if (invert) {
    pixels.forEach((value, at) => (pixels[at] = 255 - value));
    notes.push("inverted");
  }
  return { pixels, notes };
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

function means({ width, data }, columns, rows) {
  const out = new Uint8ClampedArray(4 * columns.length * rows.length); // rounds to nearest, ties to even
  let at = 0;
  for (const row of rows) {
    for (const column of columns) {
      let [red, green, blue] = [0, 0, 0];
      for (const [y, down] of row) {
        for (const [x, across] of column) {
          const from = 4 * (y * width + x);
          const share = down * across;
          red += share * data[from];
          green += share * data[from + 1];
          blue += share * data[from + 2];
        }
      }
      out.set([red, green, blue, 255], at);
      at += 4;
    }
  }
  return out;
}
