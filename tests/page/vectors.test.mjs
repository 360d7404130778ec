// The page's modules against tests/vectors: from the same random bytes, the same keys, messages and scores.
// node --test tests/page

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { pack, unpack } from "../../mcfhe/service/web/container.js";
import { CrtBasis, decryptIntegers, denominator, quotient } from "../../mcfhe/service/web/decrypt.js";
import { encrypt } from "../../mcfhe/service/web/encrypt.js";
import { Refused } from "../../mcfhe/service/web/errors.js";
import { generateKey } from "../../mcfhe/service/web/keys.js";
import { evaluationKey, newRequestId, readResponse, request } from "../../mcfhe/service/web/messages.js";
import { mulMod, powMod, residue } from "../../mcfhe/service/web/modular.js";
import { drawPrimes, isPrime } from "../../mcfhe/service/web/primes.js";
import { RandomStream } from "../../mcfhe/service/web/random.js";
import { parseSpec } from "../../mcfhe/service/web/spec.js";

const folder = new URL("../vectors/", import.meta.url);
const file = (name) => new Uint8Array(readFileSync(new URL(name, folder)));
const vectors = JSON.parse(readFileSync(new URL("vectors.json", folder), "utf8"));
const specText = readFileSync(new URL("spec.json", folder), "utf8");
const spec = parseSpec(specText, vectors.program_id);
const pixels = Uint8Array.from(vectors.images.flat(3));

/** A stream that gives out recorded bytes; `left()` says how many it still has. */
function recorded(hex) {
  const bytes = Uint8Array.from(Buffer.from(hex, "hex"));
  let at = 0;
  const stream = new RandomStream((out) => {
    assert.ok(at + out.length <= bytes.length, "more random bytes were asked for than were recorded");
    out.set(bytes.subarray(at, (at += out.length)));
  });
  return Object.assign(stream, { left: () => bytes.length - at });
}

async function keyOf(profile) {
  const { random_hex: random, lanes, redundancy } = vectors.profiles[profile];
  const streams = [recorded(random.moduli), recorded(random.positions)];
  const key = await generateKey(spec, profile, lanes, ...streams, redundancy);
  assert.deepEqual(
    streams.map((stream) => stream.left()),
    [0, 0],
  );
  return key;
}

for (const profile of ["patent", "hardened"]) {
  const expected = vectors.profiles[profile];

  test(`${profile}: the key follows from its random bytes`, async () => {
    const key = await keyOf(profile);
    assert.deepEqual(key.moduli, expected.moduli);
    assert.deepEqual(key.positions, expected.positions);
    assert.equal(key.noise, expected.noise);
    assert.equal(key.keyId, expected.key_id);
    assert.deepEqual(await evaluationKey(key), file(`${profile}.evaluation-key`));
  });

  test(`${profile}: pixels and random bytes give the very messages`, async () => {
    const key = await keyOf(profile);
    const stream = recorded(expected.random_hex.encrypt);
    const encrypted = encrypt(pixels, spec, key, stream);
    assert.equal(stream.left(), 0);
    assert.deepEqual(await request(encrypted, spec, key, expected.request_id), file(`${profile}.keyed-request`));
    assert.deepEqual(await request(encrypted, spec, key, expected.request_id, true), file(`${profile}.request`));
  });

  test(`${profile}: the response gives the very integers and scores`, async () => {
    const key = await keyOf(profile);
    const residues = await readResponse(file(`${profile}.response`), spec, key, expected.request_id);
    const integers = decryptIntegers(residues, spec, key);
    assert.deepEqual(
      integers.map((row) => row.map(String)),
      expected.score_integers,
    );
    const divisor = denominator(spec, profile);
    assert.deepEqual(
      integers.map((row) => row.map((value) => quotient(value, divisor))),
      expected.scores,
    );
  });
}

test("a response with any bit changed is refused", async () => {
  const key = await keyOf("hardened");
  const id = vectors.profiles.hardened.request_id;
  const whole = file("hardened.response");
  for (let bit = 0; bit < 8 * whole.length; bit++) {
    const changed = whole.slice();
    changed[bit >> 3] ^= 1 << (bit & 7);
    await assert.rejects(readResponse(changed, spec, key, id), Refused, `bit ${bit}`);
  }
  for (const size of [0, 7, 8, 100, whole.length - 1]) {
    await assert.rejects(readResponse(whole.subarray(0, size), spec, key, id), Refused);
  }
});

test("a response to another request, or of another key or profile, is refused", async () => {
  const key = await keyOf("hardened");
  const id = vectors.profiles.hardened.request_id;
  const blob = file("hardened.response");
  await assert.rejects(readResponse(blob, spec, key, "0".repeat(32)), /request_id/);
  await assert.rejects(readResponse(blob, spec, { ...key, keyId: "0".repeat(64) }, id), /key_id/);
  await assert.rejects(readResponse(blob, spec, { ...key, lanes: 6 }, id), /lanes/);
  await assert.rejects(readResponse(blob, spec, await keyOf("patent"), id), /profile/);
});

test("damage that a digest does not show ends outside the bound", async () => {
  const key = await keyOf("hardened");
  const { request_id: id } = vectors.profiles.hardened;
  const names = ["program_id", "key_id", "request_id", "lanes", "profile"];
  const fields = { residues: { axes: 3 } };
  const { tensors, metadata } = await unpack(file("hardened.response"), "response", fields, names);
  const own = Object.fromEntries(names.map((name) => [name, metadata[name]]));
  const [, labels, streams] = tensors.residues.shape;
  for (let limb = 0; limb < key.moduli.length; limb++) {
    const at = limb * labels * streams + key.positions[limb];
    const data = tensors.residues.data.slice();
    data[at] = (data[at] + 1) % key.moduli[limb];
    const blob = await pack("response", { residues: { ...tensors.residues, data } }, own);
    const residues = await readResponse(blob, spec, key, id);
    assert.throws(() => decryptIntegers(residues, spec, key), /outside the proved bound/);
    data[at - key.positions[limb] + ((key.positions[limb] + 1) % key.lanes)] = key.moduli[limb]; // a decoy
    assert.throws(() => decryptIntegers(data, spec, key), /outside its range/);
  }
});

test("limbs may be named, but none may be missing", async () => {
  const key = await keyOf("hardened");
  const { request_id: id } = vectors.profiles.hardened;
  const names = ["program_id", "key_id", "request_id", "lanes", "profile"];
  const { tensors, metadata } = await unpack(file("hardened.response"), "response", { residues: { axes: 3 } }, names);
  const own = Object.fromEntries(names.map((name) => [name, metadata[name]]));
  const [, labels, streams] = tensors.residues.shape;
  const blob = (...limbs) => {
    const residues = {
      shape: [limbs.length, labels, streams],
      data: tensors.residues.data.slice(0, limbs.length * labels * streams),
    };
    return pack("response", { residues, limbs: { shape: [limbs.length], data: Int32Array.from(limbs) } }, own);
  };
  assert.deepEqual(await readResponse(await blob(0, 1, 2, 3), spec, key, id), tensors.residues.data);
  for (const limbs of [[0, 1, 3], [0, 1, 2], [0, 1, 2, 4], [1, 0, 2, 3], []]) {
    await assert.rejects(readResponse(await blob(...limbs), spec, key, id), /limbs are missing/);
  }
});

test("containers that readers must refuse", async () => {
  const numbers = { shape: [2], data: Int32Array.of(1, -2) };
  const fields = { numbers: { axes: 1 } };
  const whole = await pack("sample", { numbers }, { note: "n" });
  assert.deepEqual((await unpack(whole, "sample", fields, ["note"])).tensors.numbers, numbers);
  await assert.rejects(unpack(whole, "other", fields, ["note"]), /kind/);
  await assert.rejects(unpack(whole, "sample", fields, []), /metadata fields/);
  await assert.rejects(unpack(whole, "sample", { numbers: { axes: 2 } }, ["note"]), /type or shape/);
  await assert.rejects(unpack(whole, "sample", {}, ["note"]), /does not belong/);
  await assert.rejects(unpack(whole, "sample", { ...fields, more: { axes: 1 } }, ["note"]), /missing/);
  const text = new TextDecoder().decode(whole);
  for (const [from, to, word] of [
    ['"note":"n"', '"kind":"n"', /JSON/], // the same name twice
    ['"version":"1"', '"version":"2"', /version/],
    ['"shape":[2]', '"shape":[3]', /digest/],
  ]) {
    assert.ok(text.includes(from));
    const at = text.indexOf(from);
    const changed = whole.slice();
    changed.set(new TextEncoder().encode(to), at);
    await assert.rejects(unpack(changed, "sample", fields, ["note"]), word);
  }
});

test("a spec of another scheme, version or shape is refused with a word that tells", () => {
  const change = (edit) => {
    const body = JSON.parse(specText);
    edit(body);
    return () => parseSpec(JSON.stringify(body), vectors.program_id);
  };
  assert.throws(
    change((body) => (body.scheme = "lattice")),
    /scheme "lattice".*does not know/,
  );
  assert.throws(
    change((body) => (body.version = 2)),
    /version 2/,
  );
  assert.throws(
    change((body) => (body.format = "x")),
    /format/,
  );
  assert.throws(
    change((body) => (body.table[0][3] = 0.5)),
    /table/,
  );
  assert.throws(
    change((body) => body.table[0].pop()),
    /256/,
  );
  assert.throws(
    change((body) => (body.input_shape = [1, 4])),
    /input_shape/,
  );
  assert.throws(
    change((body) => (body.modulus_bits = 32)),
    /modulus_bits/,
  );
  assert.throws(
    change((body) => (body.profiles = {})),
    /profile/,
  );
  assert.throws(
    change((body) => (body.profiles.hardened.output_bound = "1e9")),
    /output_bound/,
  );
  assert.throws(
    change((body) => (body.profiles.hardened.input_order = [2, 4])),
    /input order/,
  );
  assert.throws(
    change((body) => (body.profiles.hardened.max_noise = 9)),
    /max_noise/,
  );
  assert.throws(() => parseSpec("{", "x"), /JSON/);
  assert.throws(() => parseSpec(specText, "0".repeat(64)), /another program/);
});

test("arithmetic modulo 31-bit numbers equals that of BigInt", () => {
  const stream = new RandomStream();
  for (const b of [2, 3, 65537, 2 ** 30 - 35, 2 ** 31 - 1, 2 ** 31]) {
    const edges = [0, 1, b - 1, Math.floor(b / 2)];
    const [xs, ys] = [0, 1].map(() => [...edges, ...stream.below(b, 200)]);
    xs.forEach((x, index) => {
      for (const y of [ys[index], b - 1]) assert.equal(mulMod(x, y, b), Number((BigInt(x) * BigInt(y)) % BigInt(b)));
    });
  }
  assert.equal(powMod(3, 100, 2 ** 31 - 1), Number(3n ** 100n % (2n ** 31n - 1n)));
  assert.equal(residue(-(10n ** 30n), 97), Number(((-(10n ** 30n) % 97n) + 97n) % 97n));
});

test("primes are prime, distinct, of the width and coprime to what they must be", () => {
  const slow = (n) =>
    n > 1 && !Array.from({ length: Math.floor(Math.sqrt(n)) - 1 }, (_, i) => i + 2).some((d) => n % d === 0);
  for (let n = 0; n < 3000; n++) assert.equal(isPrime(n), slow(n), String(n));
  for (const n of [2047, 3215031751 % 2 ** 31, 1373653, 25326001, 2 ** 31 - 1])
    assert.equal(isPrime(n), slow(n), String(n));
  for (const bits of [8, 12, 20, 31]) {
    const drawn = [];
    for (const p of drawPrimes(new RandomStream(), bits, 251 * 16)) if (drawn.push(p) === 20) break;
    assert.equal(new Set(drawn).size, 20);
    assert.ok(drawn.every((p) => slow(p) && p >= 2 ** (bits - 1) && p < 2 ** bits && p !== 251));
  }
  assert.equal([...drawPrimes(new RandomStream(), 8, 251)].length, 22); // 23 primes of 8 bits, less one
});

test("samples are in range and reach every value", () => {
  const stream = new RandomStream();
  assert.deepEqual([...new Set(stream.below(5, 1000))].sort(), [0, 1, 2, 3, 4]);
  assert.deepEqual(stream.below(1, 3), new Uint32Array(3));
  assert.ok(stream.below(2 ** 32, 100000).some((value) => value >= 2 ** 31)); // more than one call of getRandomValues
  const rows = stream.residues([2, 1000003], 1000);
  assert.ok(
    rows.subarray(0, 1000).every((value) => value < 2) && rows.subarray(1000).every((value) => value < 1000003),
  );
  assert.match(newRequestId(stream), /^[0-9a-f]{32}$/);
});

test("the Chinese remainder theorem is centred and exact", () => {
  const moduli = [3, 5, 7];
  const basis = new CrtBasis(moduli);
  for (let x = -52n; x <= 52n; x++) assert.equal(basis.reconstruct(moduli.map((b) => residue(x, b))), x);
});

test("quotients are rounded once, to nearest, ties to even", () => {
  const two53 = 2n ** 53n;
  assert.equal(quotient(two53 + 1n, 1n), 2 ** 53);
  assert.equal(quotient(two53 + 3n, 1n), 2 ** 53 + 4);
  assert.equal(quotient((two53 + 1n) * 10n ** 40n + 1n, 10n ** 40n), 2 ** 53 + 2);
  assert.equal(quotient(-1n, 3n), -1 / 3);
  assert.equal(quotient(0n, 3n), 0);
  assert.equal(quotient(2n ** 1100n, 2n ** 1100n * 10n), 0.1);
  assert.equal(quotient(2n ** 2000n, 1n), Infinity);
});
