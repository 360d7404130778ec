/** Off the page's thread: what takes long, and the only place that holds keys, until the tab is reloaded or closed. */

import { decryptIntegers, denominator, quotient } from "./decrypt.js";
import { encrypt } from "./encrypt.js";
import { Refused } from "./errors.js";
import { decode, reduce } from "./image.js";
import { generateKey } from "./keys.js";
import { evaluationKey, newRequestId, readResponse, request } from "./messages.js";
import { RandomStream } from "./random.js";
import { parseSpec } from "./spec.js";

const LANES = 4;
const SHOWN_LIMBS = 3;

/** Slot (program and profile) to {spec, key, seconds, last}. */
const held = new Map();

const operations = {
  /** A file's picture in the program's size. */
  async reduce({ file, shape }) {
    return reduce(await decode(file), shape);
  },

  /** The key of a slot, drawn if there is none or a `fresh` one is asked for. Only public values are returned. */
  async open({ slot, specText, programId, profile, fresh }) {
    if (fresh || !held.has(slot)) {
      const spec = parseSpec(specText, programId);
      const start = performance.now();
      const key = await generateKey(spec, profile, LANES, new RandomStream());
      held.set(slot, { spec, key, milliseconds: performance.now() - start, last: null });
    }
    const { spec, key, milliseconds } = held.get(slot);
    return {
      keyId: key.keyId,
      limbs: key.moduli.length,
      lanes: key.lanes,
      bits: spec.modulusBits,
      evaluationKey: await evaluationKey(key),
      milliseconds,
    };
  },

  /** The message for the server, and the first sub-images as it sees them, every lane drawn alike. */
  async encrypt({ slot, pixels }) {
    const entry = held.get(slot);
    const start = performance.now();
    const stream = new RandomStream();
    const encrypted = encrypt(pixels, entry.spec, entry.key, stream);
    const requestId = newRequestId(stream);
    const body = await request(encrypted, entry.spec, entry.key, requestId);
    const milliseconds = performance.now() - start;
    entry.last = { encrypted, requestId };
    return { requestId, body, milliseconds, tiles: tiles(encrypted.ciphertext, entry) };
  },

  /** The last request with its evaluation key, as `mcfhe audit` reads it. */
  async save({ slot }) {
    const { spec, key, last } = held.get(slot);
    return { body: await request(last.encrypted, spec, key, last.requestId, true) };
  },

  /** Scores of the response to a request, exact integers and their quotients. Refused if it is damaged. */
  async decrypt({ slot, requestId, response }) {
    const { spec, key } = held.get(slot);
    const start = performance.now();
    const [integers] = decryptIntegers(await readResponse(response, spec, key, requestId), spec, key);
    const divisor = denominator(spec, key.profile);
    const scores = integers.map((value) => quotient(value, divisor));
    return { integers: integers.map(String), scores, milliseconds: performance.now() - start };
  },
};

/** Residues of channel 0 as grey values r * 256 / b, [limb][lane] of H * W; and whether V is small beside b. */
function tiles(ciphertext, { spec, key }) {
  const [channels, height, width] = spec.inputShape;
  const area = height * width;
  const shown = key.moduli.slice(0, SHOWN_LIMBS);
  const largest = key.amplification * Math.max(...spec.table.flat().map(Math.abs)) + key.noise;
  const images = shown.map((b, limb) =>
    Array.from({ length: key.lanes }, (_, lane) =>
      Uint8Array.from({ length: area }, (_, at) => {
        const r = ciphertext[(limb * channels * area + at) * key.lanes + lane];
        return Math.floor((r * 256) / b);
      }),
    ),
  );
  return { images, moduli: shown, height, width, isSmall: 4 * largest < Math.min(...shown) };
}

self.onmessage = async ({ data: { id, operation, arguments: given } }) => {
  try {
    self.postMessage({ id, value: await operations[operation](given) });
  } catch (error) {
    if (!(error instanceof Refused)) console.error(error);
    self.postMessage({ id, error: error instanceof Refused ? error.message : `internal error in ${operation}` });
  }
};
