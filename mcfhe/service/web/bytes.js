/** Bytes: hex, base64, little-endian integers, SHA-256. */

const HEX = Array.from({ length: 256 }, (_, value) => value.toString(16).padStart(2, "0"));

/** @param {Uint8Array} bytes @returns {string} lower-case hex digits */
export function toHex(bytes) {
  return Array.from(bytes, (value) => HEX[value]).join("");
}

/** @param {string} text @returns {Uint8Array} */
export function fromBase64(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

/** @param {string} text @returns {Uint8Array} UTF-8 */
export function utf8(text) {
  return new TextEncoder().encode(text);
}

/** @param {Uint8Array[]} parts @returns {Uint8Array} */
export function concat(parts) {
  const joined = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
  let at = 0;
  for (const part of parts) {
    joined.set(part, at);
    at += part.length;
  }
  return joined;
}

/** @param {number[]} values safe integers, 0 or more @returns {Uint8Array} each as 64 bits, little-endian */
export function u64(values) {
  const view = new DataView(new ArrayBuffer(8 * values.length));
  values.forEach((value, index) => view.setBigUint64(8 * index, BigInt(value), true));
  return new Uint8Array(view.buffer);
}

/** @param {Int32Array} values @returns {Uint8Array} each as 32 bits, little-endian */
export function i32(values) {
  if (LITTLE_ENDIAN) return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  const view = new DataView(new ArrayBuffer(values.byteLength));
  values.forEach((value, index) => view.setInt32(4 * index, value, true));
  return new Uint8Array(view.buffer);
}

/** The inverse of {@link i32}; copies. @param {Uint8Array} bytes @returns {Int32Array} */
export function fromI32(bytes) {
  const copy = bytes.slice();
  if (LITTLE_ENDIAN) return new Int32Array(copy.buffer);
  const view = new DataView(copy.buffer);
  return Int32Array.from({ length: copy.length / 4 }, (_, index) => view.getInt32(4 * index, true));
}

const LITTLE_ENDIAN = new Uint8Array(new Uint16Array([1]).buffer)[0] === 1;

/** @param {Uint8Array} bytes @returns {Promise<string>} 64 lower-case hex digits */
export async function sha256(bytes) {
  return toHex(new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)));
}
