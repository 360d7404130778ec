/** Container of wire format 1 (docs/wire.md): safetensors with string metadata and a digest; all tensors are I32. */

import { concat, fromI32, i32, sha256, u64, utf8 } from "./bytes.js";
import { Refused } from "./errors.js";

const MAX_HEADER = 1 << 18;
const NO_DIGEST = "0".repeat(64);
const COMMON = ["format", "kind", "version", "digest"];

/** @typedef {{shape: number[], data: Int32Array}} Tensor */

/**
 * Equal content gives the same bytes as mcfhe/container.py.
 * @param {string} kind @param {Object<string, Tensor>} tensors @param {Object<string, string>} metadata
 * @returns {Promise<Uint8Array>}
 */
export async function pack(kind, tensors, metadata) {
  const all = { ...metadata, format: "mcfhe", kind, version: "1", digest: NO_DIGEST };
  const header = {
    __metadata__: Object.fromEntries(
      Object.keys(all)
        .sort()
        .map((name) => [name, all[name]]),
    ),
  };
  const parts = [];
  let end = 0;
  for (const name of Object.keys(tensors).sort()) {
    const begin = end;
    end += 4 * tensors[name].data.length;
    header[name] = { dtype: "I32", shape: tensors[name].shape, data_offsets: [begin, end] };
    parts.push(i32(tensors[name].data));
  }
  const text = JSON.stringify(header);
  const padded = utf8(text + " ".repeat(-text.length & 7)); // all names and values are ASCII
  const blob = concat([u64([padded.length]), padded, ...parts]);
  const at = 8 + text.indexOf(`"digest":"${NO_DIGEST}"`) + '"digest":"'.length;
  blob.set(utf8(await sha256(blob)), at);
  return blob;
}

/**
 * @param {Uint8Array} blob
 * @param {string} kind the only kind that is accepted
 * @param {Object<string, {axes: number, optional?: boolean}>} fields the tensors there may be
 * @param {string[]} names the metadata there must be, beside the common fields
 * @returns {Promise<{tensors: Object<string, Tensor>, metadata: Object<string, string>}>}
 * Refused for anything that docs/wire.md says a reader refuses.
 */
export async function unpack(blob, kind, fields, names) {
  const refuse = (what) => {
    throw new Refused(`${kind}: ${what}`);
  };
  const size = blob.length < 8 ? 0 : Number(new DataView(blob.buffer, blob.byteOffset).getBigUint64(0, true));
  if (size < 2 || size > MAX_HEADER || size > blob.length - 8) refuse("too short or not a container");
  const text = new TextDecoder("latin1").decode(blob.subarray(8, 8 + size));
  const header = parse(text) ?? refuse("its header is not valid JSON");
  const { __metadata__: metadata = {}, ...entries } = header;
  if (!isObject(metadata) || Object.values(metadata).some((value) => typeof value !== "string"))
    refuse("metadata is not text");
  for (const [name, wanted] of [
    ["format", "mcfhe"],
    ["kind", kind],
    ["version", "1"],
  ]) {
    if (metadata[name] !== wanted) refuse(`metadata field '${name}' is not '${wanted}'`);
  }
  const digests = [...text.matchAll(/"digest":"([0-9a-f]{64})"/g)];
  if (digests.length !== 1 || digests[0][1] !== metadata.digest) refuse("the digest is missing or malformed");
  const zeroed = blob.slice();
  zeroed.fill(0x30, 8 + digests[0].index + 10, 8 + digests[0].index + 74);
  if ((await sha256(zeroed)) !== metadata.digest)
    refuse("the digest does not match: the data was truncated or altered");
  if (Object.keys(metadata).sort().join() !== [...COMMON, ...names].sort().join())
    refuse("metadata fields are missing or unknown");
  return { metadata, tensors: read(blob, 8 + size, entries, fields, refuse) };
}

function read(blob, start, entries, fields, refuse) {
  const tensors = {};
  let end = 0;
  const ordered = Object.entries(entries).sort(([, x], [, y]) => x?.data_offsets?.[0] - y?.data_offsets?.[0]);
  for (const [name, entry] of ordered) {
    const field = Object.hasOwn(fields, name) ? fields[name] : refuse("it holds a tensor that does not belong there");
    if (!isObject(entry) || Object.keys(entry).sort().join() !== "data_offsets,dtype,shape")
      refuse(`tensor ${name} is malformed`);
    const { dtype, shape, data_offsets: offsets } = entry;
    if (dtype !== "I32" || !isSizes(shape, field.axes) || !isSizes(offsets, 2))
      refuse(`tensor ${name} has another type or shape`);
    if (offsets[0] !== end || shape.reduce((count, axis) => count * axis, 4) !== offsets[1] - end) {
      refuse(`tensor ${name}: shape and offsets disagree`);
    }
    end = offsets[1];
    if (start + end > blob.length) refuse("truncated");
    tensors[name] = { shape, data: fromI32(blob.subarray(start + offsets[0], start + end)) };
  }
  if (start + end !== blob.length) refuse("truncated or padded");
  for (const [name, field] of Object.entries(fields))
    if (!field.optional && !tensors[name]) refuse(`tensor ${name} is missing`);
  return tensors;
}

/** The JSON object, or null if it is none or a name occurs twice in an object of it. */
function parse(text) {
  let body;
  try {
    body = JSON.parse(text);
  } catch {
    return null;
  }
  // JSON.parse keeps the last of equal names, so names are counted: strings with a colon after them.
  const written = [...text.matchAll(/"(?:[^"\\]|\\.)*"(\s*:)?/g)].filter((match) => match[1]).length;
  return isObject(body) && written === countNames(body) ? body : null;
}

function countNames(value) {
  if (value === null || typeof value !== "object") return 0;
  const below = Object.values(value).reduce((count, entry) => count + countNames(entry), 0);
  return below + (Array.isArray(value) ? 0 : Object.keys(value).length);
}

function isObject(value) {
  return value !== null && typeof value === "object" && !Array.isArray(value);
}

function isSizes(value, length) {
  return (
    Array.isArray(value) && value.length === length && value.every((size) => Number.isSafeInteger(size) && size >= 0)
  );
}
