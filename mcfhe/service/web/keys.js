/** Keys of the modular scheme. The secret is `positions`; it stays in the object that {@link generateKey} returns. */

import { sha256, concat, u64, utf8 } from "./bytes.js";
import { Refused } from "./errors.js";
import { drawPrimes } from "./primes.js";
import { requiredProduct } from "./spec.js";

const MAX_LIMBS = 4096;

/**
 * @typedef {{moduli: number[], positions: number[], lanes: number, profile: string, noise: number,
 *   amplification: number, scale: number, keyId: string}} Key
 */

/**
 * Draw a key: primes of the spec's width until their product exceeds what the program needs, and a lane for each.
 * @param {import("./spec.js").Spec} spec
 * @param {string} profile a name in spec.profiles
 * @param {number} lanes M, 1..1024
 * @param {import("./random.js").RandomStream} moduliStream
 * @param {import("./random.js").RandomStream} [positionsStream] the same unless a test says otherwise
 * @param {number} [redundancy] limbs beyond those needed
 * @returns {Promise<Key>}
 */
export async function generateKey(spec, profile, lanes, moduliStream, positionsStream = moduliStream, redundancy = 0) {
  const { amplification, scale, profiles } = spec;
  const moduli = drawBasis(
    moduliStream,
    spec.modulusBits,
    amplification * scale,
    requiredProduct(spec, profile),
    redundancy,
  );
  const positions = Array.from(positionsStream.below(lanes, moduli.length));
  const noise = profile === "patent" ? 0 : Math.min(Math.floor(amplification / 2), profiles[profile].maxNoise);
  const keyId = await keyIdOf(moduli, amplification, scale);
  return { moduli, positions, lanes, profile, noise, amplification, scale, keyId };
}

/** SHA-256 of the public values alone. @returns {Promise<string>} */
export function keyIdOf(moduli, amplification, scale) {
  return sha256(concat([utf8("mcfhe/evaluation-key/1\0"), u64([amplification, scale, ...moduli])]));
}

/** Primes in drawing order until all but the `redundancy` largest multiply to more than `required`. */
function drawBasis(stream, bits, coprimeTo, required, redundancy) {
  const basis = [];
  for (const prime of drawPrimes(stream, bits, coprimeTo)) {
    basis.push(prime);
    const kept = basis.toSorted((x, y) => x - y).slice(0, Math.max(0, basis.length - redundancy));
    if (kept.length && kept.reduce((product, b) => product * BigInt(b), 1n) > required) return basis;
    if (basis.length === MAX_LIMBS) break;
  }
  throw new Refused(
    `key: ${basis.length} primes of ${bits} bits are too few for this program; compile it with wider moduli`,
  );
}
