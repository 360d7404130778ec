/** The messages of wire format 1 that a client writes and reads (docs/wire.md). */

import { toHex } from "./bytes.js";
import { pack, unpack } from "./container.js";
import { Refused } from "./errors.js";

/** @param {import("./random.js").RandomStream} stream @returns {string} 128 random bits in hex */
export function newRequestId(stream) {
  return toHex(stream.bytes(16));
}

/** @param {import("./keys.js").Key} key @returns {Promise<Uint8Array>} kind evaluation-key: nothing of `positions` */
export function evaluationKey(key) {
  return pack("evaluation-key", { moduli: moduliOf(key) }, keyMetadata(key));
}

/**
 * Kind keyed-request, or with `embedKey` kind request, which carries its evaluation key.
 * @param {{ciphertext: Int32Array, publicKey: Int32Array | null}} encrypted
 * @param {import("./spec.js").Spec} spec @param {import("./keys.js").Key} key @param {string} requestId
 * @param {boolean} [embedKey]
 * @returns {Promise<Uint8Array>}
 */
export function request(encrypted, spec, key, requestId, embedKey = false) {
  const limbs = key.moduli.length;
  const streams = encrypted.ciphertext.length / (limbs * spec.inputShape.reduce((count, axis) => count * axis, 1));
  const tensors = { ciphertext: { shape: [limbs, ...spec.inputShape, streams], data: encrypted.ciphertext } };
  if (encrypted.publicKey) tensors.public_key = { shape: [limbs, streams], data: encrypted.publicKey };
  const common = {
    program_id: spec.programId,
    request_id: requestId,
    lanes: String(key.lanes),
    profile: key.profile,
  };
  if (!embedKey) return pack("keyed-request", tensors, { ...common, key_id: key.keyId });
  return pack("request", { ...tensors, moduli: moduliOf(key) }, { ...common, ...keyMetadata(key) });
}

/**
 * The residues of a response to `requestId`; Refused if it is damaged or belongs to anything else.
 * @param {Uint8Array} blob
 * @param {import("./spec.js").Spec} spec @param {import("./keys.js").Key} key @param {string} requestId
 * @returns {Promise<Int32Array>} [N, K, batch * M]
 */
export async function readResponse(blob, spec, key, requestId) {
  const fields = { residues: { axes: 3 }, limbs: { axes: 1, optional: true } };
  const names = ["program_id", "key_id", "request_id", "lanes", "profile"];
  const { tensors, metadata } = await unpack(blob, "response", fields, names);
  const expected = {
    program_id: spec.programId,
    key_id: key.keyId,
    request_id: requestId,
    lanes: String(key.lanes),
    profile: key.profile,
  };
  for (const name of names) {
    if (metadata[name] !== expected[name]) throw new Refused(`response: its ${name} is not that of the request`);
  }
  const { shape, data } = tensors.residues;
  const complete = !tensors.limbs || tensors.limbs.data.every((limb, row) => limb === row);
  if (!complete || shape[0] !== key.moduli.length || (tensors.limbs && tensors.limbs.data.length !== shape[0])) {
    throw new Refused("response: limbs are missing, and this key has none to spare");
  }
  if (shape[1] !== spec.labels.length || shape[2] < key.lanes || shape[2] % key.lanes) {
    throw new Refused("response: its shape is not that of the scores");
  }
  return data;
}

function moduliOf(key) {
  return { shape: [key.moduli.length], data: Int32Array.from(key.moduli) };
}

function keyMetadata(key) {
  return { amplification: String(key.amplification), scale: String(key.scale), key_id: key.keyId };
}
