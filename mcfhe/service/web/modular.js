/** Arithmetic modulo numbers below 2^31, in doubles that hold every intermediate exactly. */

/** @param {number} x 0 <= x < b @param {number} y 0 <= y < b @param {number} b 2..2^31 @returns {number} x * y mod b */
export function mulMod(x, y, b) {
  // x * high < 2^46 and x * low + 2^16 * rest < 2^48.
  const high = Math.floor(y / 65536);
  return (((x * high) % b) * 65536 + x * (y & 0xffff)) % b;
}

/** @param {number} x 0 <= x < b @param {number} exponent 0 or more @param {number} b 2..2^31 @returns {number} */
export function powMod(x, exponent, b) {
  let result = 1;
  for (let square = x, left = exponent; left; left = Math.floor(left / 2)) {
    if (left % 2) result = mulMod(result, square, b);
    square = mulMod(square, square, b);
  }
  return result;
}

/** @param {bigint} value of any size and sign @param {number} b @returns {number} in 0 <= r < b */
export function residue(value, b) {
  const rest = Number(value % BigInt(b));
  return rest < 0 ? rest + b : rest;
}
