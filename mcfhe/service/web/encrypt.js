/**
 * Pixels to residues, as mcfhe/modular/encrypt.py does it, from the same random bytes to the same residues.
 *
 * hardened: V = a * PT + e, with its own e and its own decoys for every pixel.
 * patent:   V_pk = a * Delta + e once an image, PK = its residues among decoys, and CT = PK * PT in every lane.
 */

import { mulMod, residue } from "./modular.js";

/**
 * @param {Uint8Array} pixels [batch, C, H, W]
 * @param {import("./spec.js").Spec} spec
 * @param {import("./keys.js").Key} key
 * @param {import("./random.js").RandomStream} stream
 * @returns {{ciphertext: Int32Array, publicKey: Int32Array | null}} [N, C, H, W, batch * M]; patent: [N, batch * M]
 */
export function encrypt(pixels, spec, key, stream) {
  const [channels, height, width] = spec.inputShape;
  const area = height * width;
  const batch = pixels.length / (channels * area);
  // [C, H * W, batch]: the order in which residues are laid out and noise is drawn.
  const ordered = new Uint8Array(pixels.length);
  for (let image = 0, at = 0; image < batch; image++) {
    for (let index = 0; index < channels * area; index++) ordered[index * batch + image] = pixels[at++];
  }
  const work = key.profile === "patent" ? patent : hardened;
  return work(ordered, spec.table, channels, batch, key, stream);
}

function hardened(pixels, table, channels, batch, key, stream) {
  const { moduli, positions, lanes } = key;
  const perChannel = pixels.length / channels;
  const noise = stream.below(Math.max(1, key.noise), pixels.length);
  const ciphertext = new Int32Array(moduli.length * pixels.length * lanes);
  let at = 0;
  moduli.forEach((b, limb) => {
    for (let channel = 0; channel < channels; channel++) {
      const plain = tableResidues(table[channel], key.amplification, b);
      const residues = stream.residues([b], perChannel * lanes);
      for (let index = 0; index < perChannel; index++) {
        const pixel = channel * perChannel + index;
        residues[index * lanes + positions[limb]] = (plain[pixels[pixel]] + noise[pixel]) % b;
      }
      ciphertext.set(residues, at);
      at += residues.length;
    }
  });
  return { ciphertext, publicKey: null };
}

function patent(pixels, table, channels, batch, key, stream) {
  const { moduli, positions, lanes } = key;
  const perChannel = pixels.length / channels;
  const noise = stream.below(Math.max(1, key.noise), batch);
  const publicKey = Int32Array.from(stream.residues(moduli, batch * lanes));
  const ciphertext = new Int32Array(moduli.length * pixels.length * lanes);
  const streams = batch * lanes;
  let at = 0;
  moduli.forEach((b, limb) => {
    const factors = publicKey.subarray(limb * streams, (limb + 1) * streams);
    for (let image = 0; image < batch; image++) {
      factors[image * lanes + positions[limb]] = (key.amplification * key.scale + noise[image]) % b;
    }
    for (let channel = 0; channel < channels; channel++) {
      const plain = tableResidues(table[channel], 1, b);
      for (let index = channel * perChannel; index < (channel + 1) * perChannel; index++) {
        const first = (index % batch) * lanes;
        for (let lane = 0; lane < lanes; lane++)
          ciphertext[at++] = mulMod(factors[first + lane], plain[pixels[index]], b);
      }
    }
  });
  return { ciphertext, publicKey };
}

/** factor * PT mod b for the 256 pixel values of a channel. @returns {number[]} */
function tableResidues(row, factor, b) {
  return row.map((value) => residue(BigInt(value) * BigInt(factor), b));
}
