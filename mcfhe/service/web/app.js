/** The page: what is chosen, and the way of an image from the tab to the server and back. */

import { Api } from "./api.js";
import { fromBase64 } from "./bytes.js";
import { Pad } from "./draw.js";
import { Refused } from "./errors.js";
import { fromGrey, reduce, toPixels } from "./image.js";
import { parseSpec } from "./spec.js";
import { Vault } from "./vault.js";
import {
  clearResults,
  element,
  make,
  paint,
  showFailure,
  showScores,
  showStatus,
  showSteps,
  showTiles,
} from "./view.js";

const PROFILE_NOTES = {
  hardened: "Every pixel has its own noise and its own decoys.",
  patent: "One public key an image, times every pixel.",
};

const api = new Api(new URL(".", document.baseURI), showStatus);
const vault = new Vault();
const registered = new Set(); // key ids
const originals = { sample: null, file: null }; // a Picture, a File
const reduced = { sample: null, file: null, pad: null }; // {picture, note} in the program's size

let chosen = null; // {programId, spec, specText}
let input = null; // Uint8Array [C, H, W]
let isBusy = false;

/** Run a task of the user's, one at a time; a failure is one line, controls and focus come back as they were. */
async function attempt(task) {
  if (isBusy) return;
  const focused = document.activeElement;
  showFailure();
  lock(true);
  try {
    await task();
  } catch (error) {
    if (!(error instanceof Refused)) console.error(error);
    showFailure(error instanceof Refused ? error.message : "Something in this page failed; reload it.");
    if (error.status === 401) askForToken();
  } finally {
    lock(false);
    if (document.activeElement === document.body) focused.focus();
  }
}

function lock(busy) {
  isBusy = pad.isLocked = busy;
  element("controls").disabled = busy || !element("program").options.length;
  element("source").disabled = busy || !chosen;
  element("run").disabled = !input;
}

function askForToken() {
  element("access").hidden = false;
  element("token").focus();
}

async function connect() {
  showStatus("Asking the server for its programs …");
  const programs = await api.programs();
  element("access").hidden = true;
  element("program").replaceChildren(
    ...programs.map(({ program_id: id, input_shape: shape, labels }) => {
      const option = make("option", `${shape.join(" × ")}, ${summary(labels)}, ${id.slice(0, 8)}`);
      option.value = id;
      return option;
    }),
  );
  await choose(programs[0].program_id);
}

function summary(labels) {
  const names = labels.slice(0, 2).join(", ");
  const short = names.length > 28 ? `${names.slice(0, 27)}…` : names;
  return `${labels.length} classes (${short}${labels.length > 2 ? ", …" : ""})`;
}

async function choose(programId) {
  chosen = null;
  setInput(null);
  showStatus("Fetching the client spec …");
  const specText = await api.spec(programId);
  const spec = parseSpec(specText, programId);
  chosen = { programId, spec, specText };
  for (const name of ["hardened", "patent"]) element(name).disabled = !spec.profiles[name];
  if (!spec.profiles[profile()]) element(Object.keys(spec.profiles)[0]).checked = true;
  element("profile-note").textContent = PROFILE_NOTES[profile()];
  pad.resize(spec.inputShape[2], spec.inputShape[1]);
  reduced.pad = null;
  for (const name of Object.keys(originals)) await take(name, originals[name]);
  showStatus("");
  refresh();
}

/** A picture of one source, kept and brought to the program's size. */
async function take(name, original) {
  originals[name] = reduced[name] = null;
  if (!original || !chosen) return;
  const shape = chosen.spec.inputShape;
  reduced[name] =
    original instanceof Blob ? await vault.call("reduce", { file: original, shape }) : reduce(original, shape);
  originals[name] = original;
}

function profile() {
  return document.querySelector("input[name=profile]:checked").value;
}

function source() {
  return document.querySelector("input[name=source]:checked").value;
}

/** The program's input from the source that is chosen; results of another image disappear. */
function refresh() {
  for (const name of Object.keys(reduced)) element(`${name}-panel`).hidden = name !== source();
  setInput(chosen && reduced[source()]);
}

/** @param {{picture: import("./image.js").Picture, note: string} | null} from in the program's size */
function setInput(from) {
  clearResults();
  showSteps([]);
  const shape = chosen?.spec.inputShape;
  const made = from && toPixels(from.picture, shape, element("invert").checked);
  input = made && made.pixels;
  element("run").disabled = !input;
  element("save").disabled = true;
  element("input").hidden = !input;
  element("input-note").textContent = made
    ? [shape.join(" × "), from.note, ...made.notes].join(", ")
    : "Choose an image first.";
  if (input) paint(element("input"), input, shape);
}

function slot() {
  return `${chosen.programId}/${profile()}`;
}

/** The key of the program and profile, drawn if there is none. */
async function openKey(fresh = false) {
  const { programId, specText } = chosen;
  const opened = await vault.call("open", { slot: slot(), specText, programId, profile: profile(), fresh });
  const key = { ...opened, profile: profile() };
  element("key-note").textContent =
    `Key ${key.keyId.slice(0, 12)}…: ${key.limbs} primes of ${key.bits} bits and a lane of ${key.lanes} for each, ` +
    "drawn in this tab. It is gone at reload. The primes are registered with the server once a session; " +
    "the lanes stay here.";
  element("renew").disabled = false;
  return key;
}

async function classify() {
  const { programId, spec } = chosen;
  const begun = performance.now();
  const steps = [];
  const add = (step, where, milliseconds, sent, received) => {
    steps.push({ step, where, milliseconds, sent, received });
    showSteps(steps);
  };
  clearResults();
  showStatus("Drawing the key …");
  const key = await openKey();
  add("Draw the key, once", "this tab", key.milliseconds);
  if (!registered.has(key.keyId))
    add("Register its primes, once a session", "server", await register(key), key.evaluationKey.length);
  showStatus("Encrypting …");
  const { body, requestId, tiles, milliseconds } = await vault.call("encrypt", { slot: slot(), pixels: input });
  add("Encrypt", "this tab", milliseconds);
  showTiles(tiles, key);
  element("save").disabled = false;
  showStatus("The server evaluates the network on the residues …");
  const start = performance.now();
  let response;
  try {
    response = await api.evaluate(programId, body);
  } catch (error) {
    if (error.status !== 410) throw error;
    // The session has expired or the server began anew.
    add("Register its primes again", "server", await register(key), key.evaluationKey.length);
    response = await api.evaluate(programId, body);
  }
  add("Send, evaluate, receive", "server", performance.now() - start, body.length, response.length);
  showStatus("Decrypting …");
  const decrypted = await vault.call("decrypt", { slot: slot(), requestId, response });
  add("Decrypt", "this tab", decrypted.milliseconds);
  const label = showScores(spec.labels, decrypted.scores);
  showStatus(`${label}, after ${((performance.now() - begun) / 1000).toFixed(1)} s.`);
}

/** @returns {Promise<number>} milliseconds */
async function register(key) {
  const start = performance.now();
  await api.register(key.evaluationKey);
  registered.add(key.keyId);
  return performance.now() - start;
}

async function save() {
  const { body } = await vault.call("save", { slot: slot() });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([body], { type: "application/octet-stream" }));
  link.download = "page.request";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

async function loadSamples() {
  const answer = await fetch(new URL("samples.json", import.meta.url));
  if (!answer.ok) throw new Refused(`The sample images could not be loaded (status ${answer.status}).`);
  const { source: from, width, height, images } = await answer.json();
  const buttons = images.map(({ name, pixels }) => {
    const grey = fromBase64(pixels);
    const button = make("button");
    const canvas = document.createElement("canvas");
    paint(canvas, grey, [1, height, width]);
    button.type = "button";
    button.title = name;
    button.setAttribute("aria-label", name);
    button.append(canvas);
    const select = () => {
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      element("samples-note").textContent = `${from}: ${name}`;
      originals.sample = fromGrey(grey, width, height);
    };
    button.addEventListener("click", () =>
      attempt(async () => {
        select();
        await take("sample", originals.sample);
        refresh();
      }),
    );
    return Object.assign(button, { select });
  });
  element("samples").replaceChildren(...buttons);
  buttons.at(-1).select();
}

async function takeFile(file) {
  if (!file) return;
  try {
    await take("file", file);
  } finally {
    refresh();
  }
}

const pad = new Pad(element("pad"), element("pen"), () => {
  reduced.pad = reduce(pad.picture(), chosen.spec.inputShape);
  refresh();
});

element("access").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(async () => {
    api.useToken(element("token").value.trim());
    await connect();
  });
});
element("program").addEventListener("change", () => attempt(() => choose(element("program").value)));
for (const radio of document.querySelectorAll("input[name=profile]")) {
  radio.addEventListener("change", () =>
    attempt(() => {
      element("profile-note").textContent = PROFILE_NOTES[profile()];
      refresh();
    }),
  );
}
for (const radio of document.querySelectorAll("input[name=source]"))
  radio.addEventListener("change", () => attempt(refresh));
element("invert").addEventListener("change", () => attempt(refresh));
element("file").addEventListener("change", () => attempt(() => takeFile(element("file").files[0])));
element("drop").addEventListener("dragover", (event) => event.preventDefault());
element("drop").addEventListener("drop", (event) => {
  event.preventDefault();
  attempt(() => takeFile(event.dataTransfer.files[0]));
});
element("clear").addEventListener("click", () => {
  pad.clear();
  reduced.pad = null;
  refresh();
});
element("run").addEventListener("click", () => attempt(classify));
element("renew").addEventListener("click", () =>
  attempt(async () => {
    await openKey(true);
    refresh();
    showStatus("A new key; the old one is gone.");
  }),
);
element("save").addEventListener("click", () => attempt(save));

clearResults();
if (window.isSecureContext && crypto.subtle) {
  await attempt(async () => {
    await loadSamples();
    await connect();
  });
} else {
  showFailure(
    `This page came over http from ${location.hostname}. Browsers give the SHA-256 that messages need ` +
      "(crypto.subtle) to pages over https or from localhost only. Start the server with --tls-cert and --tls-key, " +
      "or forward its port: " +
      `ssh -L ${location.port || 80}:127.0.0.1:${location.port || 80} ${location.hostname}`,
  );
}
