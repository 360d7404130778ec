/** Random primes, drawn as mcfhe/modular/params.py draws them. */

import { mulMod, powMod } from "./modular.js";

const LISTED_BITS = 20; // below this width all primes are listed, from here on they are drawn from its top eighth
const BATCH = 64;
const SMALL = [3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97];

/** Exact below 2^31: Miller-Rabin with the bases 2, 7, 61 (Jaeschke 1993). @param {number} n @returns {boolean} */
export function isPrime(n) {
  if (n < 2) return false;
  for (const p of [2, 7, 61]) if (n % p === 0) return n === p;
  let odd = n - 1;
  let twos = 0;
  for (; odd % 2 === 0; odd /= 2) twos++;
  return [2, 7, 61].every((base) => {
    let x = powMod(base, odd, n);
    if (x === 1) return true;
    for (let step = 1; step < twos && x !== n - 1; step++) x = mulMod(x, x, n);
    return x === n - 1;
  });
}

/**
 * Distinct random primes of exactly `bits` bits that do not divide `coprimeTo`, in drawing order.
 * @param {import("./random.js").RandomStream} stream
 * @param {number} bits 8..31
 * @param {number} coprimeTo a safe integer
 * @returns {Generator<number>}
 */
export function* drawPrimes(stream, bits, coprimeTo) {
  if (bits < LISTED_BITS) {
    const pool = primesOfWidth(bits).filter((p) => coprimeTo % p);
    while (pool.length) yield pool.splice(stream.below(pool.length, 1)[0], 1)[0];
    return;
  }
  const low = 2 ** bits - 2 ** (bits - 3);
  const seen = new Set();
  for (;;) {
    for (const drawn of stream.below(2 ** (bits - 4), BATCH)) {
      const candidate = low + 1 + 2 * drawn;
      if (seen.has(candidate) || SMALL.some((p) => candidate % p === 0) || !isPrime(candidate)) continue;
      seen.add(candidate);
      if (coprimeTo % candidate) yield candidate;
    }
  }
}

/** @param {number} bits @returns {number[]} all primes p with 2^(bits - 1) <= p < 2^bits, ascending */
function primesOfWidth(bits) {
  const composite = new Uint8Array(2 ** bits);
  const primes = [];
  for (let n = 2; n < composite.length; n++) {
    if (composite[n]) continue;
    if (n >= composite.length / 2) primes.push(n);
    for (let multiple = n * n; multiple < composite.length; multiple += n) composite[multiple] = 1;
  }
  return primes;
}
