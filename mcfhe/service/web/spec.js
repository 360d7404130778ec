/** The client spec of a program: parsed and checked as mcfhe/spec.py checks it (docs/wire.md, section Client spec). */

import { Refused } from "./errors.js";

const PROFILES = ["patent", "hardened"];

/**
 * @typedef {{inputOrder: number[], outputOrder: number[], outputBound: bigint, maxNoise: number}} Profile
 * @typedef {{programId: string, inputShape: number[], scale: number, scaleBits: number, amplification: number,
 *   modulusBits: number, guardBits: number, table: number[][], labels: string[],
 *   profiles: Object<string, Profile>}} Spec
 */

/**
 * @param {string} text JSON
 * @param {string} programId whose spec was asked for
 * @returns {Spec}
 * Refused names what is wrong, or the scheme or version that this page does not know.
 */
export function parseSpec(text, programId) {
  let body;
  try {
    body = JSON.parse(text);
  } catch {
    throw new Refused("client spec: not JSON");
  }
  const scheme = body?.scheme ?? "modular";
  if (scheme !== "modular") {
    throw new Refused(
      `This program uses the scheme ${shown(scheme)}, which this page does not know: ` +
        "it encrypts with the modular scheme only. Use the mcfhe command line for it.",
    );
  }
  if (body?.format !== "mcfhe/client-spec") throw new Refused("client spec: field 'format' is not 'mcfhe/client-spec'");
  if (body.version !== 1) {
    throw new Refused(
      `client spec: version ${shown(body.version)}, this page reads version 1. Use the mcfhe command line.`,
    );
  }
  const shape = integers("input_shape", body.input_shape, 1, 65536);
  if (shape.length !== 3) throw new Refused("client spec: input_shape is not [C, H, W]");
  const table = list("table", body.table).map((row) =>
    integers("table", row, -Number.MAX_SAFE_INTEGER, Number.MAX_SAFE_INTEGER),
  );
  if (table.length !== shape[0] || table.some((row) => row.length !== 256)) {
    throw new Refused("client spec: table must hold 256 integers per input channel");
  }
  const labels = list("labels", body.labels).map(String);
  integer("labels", labels.length, 1, 1 << 20);
  if (body.program_id !== programId) throw new Refused("client spec: it belongs to another program");
  const scaleBits = integer("scale_bits", body.scale_bits, 1, 30);
  const amplification = integer("amplification", body.amplification, 1, 1 << 20);
  return {
    programId,
    inputShape: shape,
    scaleBits,
    scale: 2 ** scaleBits,
    amplification,
    modulusBits: integer("modulus_bits", body.modulus_bits, 8, 31),
    guardBits: integer("guard_bits", body.guard_bits, 0, 256),
    table,
    labels,
    profiles: profiles(body.profiles, scaleBits, amplification),
  };
}

/** The product of the moduli must be greater than this. @param {Spec} spec @param {string} profile @returns {bigint} */
export function requiredProduct(spec, profile) {
  const twice = 2n * spec.profiles[profile].outputBound;
  return (twice > 1n ? twice : 1n) << BigInt(spec.guardBits);
}

function profiles(body, scaleBits, amplification) {
  const found = {};
  for (const name of PROFILES) {
    const entry = body?.[name];
    if (entry === undefined) continue;
    if (!/^(0|[1-9][0-9]*)$/.test(entry?.output_bound))
      throw new Refused("client spec: output_bound is not a decimal number");
    const [t, k] = integers("input_order", entry.input_order, 0, 1 << 20);
    // What encrypt.js produces; a program that expects anything else would compute something else.
    if (t !== 1 || k !== scaleBits * (name === "patent" ? 2 : 1)) {
      throw new Refused(
        `client spec: input order (${t}, ${k}) of the ${name} profile is not what this page encrypts at`,
      );
    }
    const outputOrder = integers("output_order", entry.output_order, 0, 1 << 20);
    if (outputOrder.length !== 2) throw new Refused("client spec: output_order is not [t, k]");
    found[name] = {
      inputOrder: [t, k],
      outputOrder,
      outputBound: BigInt(entry.output_bound),
      maxNoise: integer("max_noise", entry.max_noise, 0, Math.floor(amplification / 2)),
    };
  }
  if (!Object.keys(found).length)
    throw new Refused("client spec: neither the hardened nor the patent profile is in it");
  return found;
}

function list(name, value) {
  if (!Array.isArray(value)) throw new Refused(`client spec: ${name} is not a list`);
  return value;
}

function integers(name, values, low, high) {
  return list(name, values).map((value) => integer(name, value, low, high));
}

function integer(name, value, low, high) {
  if (!Number.isSafeInteger(value) || value < low || value > high) {
    throw new Refused(`client spec: ${name} = ${shown(value)} is outside ${low}..${high}`);
  }
  return value;
}

function shown(value) {
  return String(JSON.stringify(value)).slice(0, 60);
}
