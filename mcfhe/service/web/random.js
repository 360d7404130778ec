/**
 * Uniform random integers from a stream of bytes: words are masked to the bit length of the bound and drawn again while
 * they are not below it, so there is no modulo bias. Bytes become integers as in mcfhe/modular/csprng.py.
 */

const POOL = 65536; // getRandomValues gives no more at a time
const GROUP_WORDS = 1 << 18;

/** Fill with bytes of the browser's CSPRNG. @param {Uint8Array} bytes */
function fromBrowser(bytes) {
  for (let at = 0; at < bytes.length; at += POOL) crypto.getRandomValues(bytes.subarray(at, at + POOL));
}

export class RandomStream {
  /** @param {(bytes: Uint8Array) => void} [fill] where bytes come from; the browser's CSPRNG unless a test asks */
  constructor(fill = fromBrowser) {
    this.fill = fill;
  }

  /** @param {number} size @returns {Uint8Array} */
  bytes(size) {
    const out = new Uint8Array(size);
    this.fill(out);
    return out;
  }

  /** @param {number} bound 1..2^32 @param {number} count @returns {Uint32Array} each uniform in 0 <= x < bound */
  below(bound, count) {
    return bound === 1 ? new Uint32Array(count) : this.#rows([bound], count);
  }

  /**
   * @param {number[]} moduli each 2..2^32
   * @param {number} width
   * @returns {Uint32Array} [L, width], row p uniform below moduli[p]
   */
  residues(moduli, width) {
    const out = new Uint32Array(moduli.length * width);
    const group = Math.max(1, Math.floor(GROUP_WORDS / Math.max(1, width)));
    for (let start = 0; start < moduli.length; start += group) {
      out.set(this.#rows(moduli.slice(start, start + group), width), start * width);
    }
    return out;
  }

  #rows(bounds, width) {
    const masks = bounds.map((bound) => 0xffffffff >>> Math.clz32(bound - 1));
    const words = this.#words(bounds.length * width);
    let rejected = [];
    for (let row = 0, at = 0; row < bounds.length; row++) {
      for (const end = at + width; at < end; at++) {
        words[at] &= masks[row];
        if (words[at] >= bounds[row]) rejected.push(at);
      }
    }
    while (rejected.length) {
      const again = this.#words(rejected.length);
      rejected = rejected.filter((at, index) => {
        const row = Math.floor(at / width);
        words[at] = again[index] & masks[row];
        return words[at] >= bounds[row];
      });
    }
    return words;
  }

  #words(count) {
    const view = new DataView(this.bytes(4 * count).buffer);
    return Uint32Array.from({ length: count }, (_, index) => view.getUint32(4 * index, true));
  }
}
