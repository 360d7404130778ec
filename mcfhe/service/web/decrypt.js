/** Residues to exact scores: true lanes, Chinese remainder theorem in BigInt, bound check. */

import { Refused } from "./errors.js";

/**
 * The exact integers V of every image. Refused, and no score, if a residue is out of range in any lane or an integer
 * lies outside the bound that is proved for every image: the response is damaged then, or of another key.
 * @param {Int32Array} residues [N, K, batch * M], of all limbs of the key
 * @param {import("./spec.js").Spec} spec @param {import("./keys.js").Key} key
 * @returns {bigint[][]} batch lists of K integers
 */
export function decryptIntegers(residues, spec, key) {
  const { moduli, positions, lanes } = key;
  const count = spec.labels.length;
  const streams = residues.length / (moduli.length * count);
  // Decoys too: otherwise whether a bad value is noticed would tell which lane is true.
  moduli.forEach((b, limb) => {
    const row = residues.subarray(limb * count * streams, (limb + 1) * count * streams);
    if (row.some((value) => value < 0 || value >= b)) {
      throw new Refused(
        `response: limb ${limb} holds a value outside its range; the response is damaged, no label is shown`,
      );
    }
  });
  const basis = new CrtBasis(moduli);
  const bound = spec.profiles[key.profile].outputBound;
  const images = [];
  for (let image = 0; image < streams / lanes; image++) {
    const scores = [];
    for (let label = 0; label < count; label++) {
      const lane = (limb) => residues[(limb * count + label) * streams + image * lanes + positions[limb]];
      const value = basis.reconstruct(moduli.map((_, limb) => lane(limb)));
      if (value > bound || -value > bound) {
        throw new Refused(
          "response: a decrypted integer lies outside the proved bound; " +
            "the response is damaged or of another key, no label is shown",
        );
      }
      scores.push(value);
    }
    images.push(scores);
  }
  return images;
}

/** Constants of one modular basis of pairwise coprime moduli. */
export class CrtBasis {
  /** @param {number[]} moduli */
  constructor(moduli) {
    this.product = moduli.reduce((product, b) => product * BigInt(b), 1n);
    this.weights = moduli.map((b) => {
      const cofactor = this.product / BigInt(b);
      return cofactor * inverse(cofactor % BigInt(b), BigInt(b));
    });
  }

  /** @param {number[]} residues one a limb @returns {bigint} X with -B/2 < X <= B/2 */
  reconstruct(residues) {
    const sum = residues.reduce((total, value, limb) => total + BigInt(value) * this.weights[limb], 0n);
    const value = sum % this.product;
    return 2n * value > this.product ? value - this.product : value;
  }
}

/** @returns {bigint} 1 / value mod b, by the extended Euclidean algorithm */
function inverse(value, b) {
  let [high, low, before, now] = [b, value, 0n, 1n];
  while (low) {
    const quotient = high / low;
    [high, low, before, now] = [low, high - quotient * low, now, before - quotient * now];
  }
  return ((before % b) + b) % b;
}

/** The scale of a profile's scores: a^t * 2^k. @returns {bigint} */
export function denominator(spec, profile) {
  const [t, k] = spec.profiles[profile].outputOrder;
  return (BigInt(spec.amplification) ** BigInt(t)) << BigInt(k);
}

/** @param {bigint} numerator @param {bigint} divisor > 0 @returns {number} the quotient, rounded once, ties to even */
export function quotient(numerator, divisor) {
  const size = numerator < 0n ? -numerator : numerator;
  // At least 59 bits, and one more that is set if anything is cut off: Number() then rounds as the exact quotient.
  const shift = Math.max(0, 64 + bitLength(divisor) - bitLength(size));
  const scaled = (size << BigInt(shift)) / divisor;
  const sticky = scaled * divisor === size << BigInt(shift) ? 0n : 1n;
  let value = Number((scaled << 1n) | sticky);
  for (let left = shift + 1; left > 0; left -= 1000) value *= 2 ** -Math.min(1000, left);
  return numerator < 0n ? -value : value;
}

function bitLength(value) {
  return value.toString(16).length * 4;
}
