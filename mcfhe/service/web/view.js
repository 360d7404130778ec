/** What the page shows. Text goes in as text: nothing from the server or a file is ever parsed as markup. */

const SHOWN_SCORES = 12;
const WHAT_SHOWS = {
  patent: "Every lane is the image times a factor: equal pixels stay equal, and the outlines show in all of them.",
  hardened: "One lane in each row is true, the others are random.",
};

/** @param {string} id @returns {HTMLElement} */
export function element(id) {
  return document.getElementById(id);
}

/** @param {string} tag @param {string} [text] @param {string} [className] @returns {HTMLElement} */
export function make(tag, text = "", className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = className;
  return made;
}

/** Draw grey values or RGB planes. @param {HTMLCanvasElement} canvas @param {Uint8Array} pixels [C, H, W], C 1 or 3 */
export function paint(canvas, pixels, [channels, height, width]) {
  canvas.width = width;
  canvas.height = height;
  const image = new ImageData(width, height);
  const area = height * width;
  for (let at = 0; at < area; at++) {
    for (let channel = 0; channel < 3; channel++)
      image.data[4 * at + channel] = pixels[(channel % channels) * area + at];
    image.data[4 * at + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** One line on what goes on. @param {string} text */
export function showStatus(text) {
  element("status").textContent = text;
}

/** One line on what went wrong; none hides it. @param {string} [text] */
export function showFailure(text = "") {
  element("failure").textContent = text;
  element("failure").hidden = !text;
  if (!text) return;
  showStatus("");
  element("failure").scrollIntoView({ block: "nearest" });
}

/** The sub-images, a row a limb and a column a lane. */
export function showTiles({ images, moduli, height, width, isSmall }, key) {
  const grid = element("tiles");
  grid.replaceChildren();
  grid.classList.remove("empty");
  grid.style.setProperty("--lanes", String(key.lanes));
  grid.append(make("span"));
  for (let lane = 0; lane < key.lanes; lane++) grid.append(make("span", `lane ${lane}`, "axis"));
  images.forEach((lanes, limb) => {
    grid.append(make("span", `mod ${grouped(moduli[limb])}`, "axis limb"));
    for (const pixels of lanes) {
      const canvas = document.createElement("canvas");
      paint(canvas, pixels, [1, height, width]);
      grid.append(canvas);
    }
  });
  const shown = `${images.length} of ${key.limbs} limbs in all ${key.lanes} lanes`;
  grid.setAttribute("aria-label", `Sub-images as the server sees them: ${shown}.`);
  element("tiles-note").textContent =
    `${shown}, first channel; black is 0, white the modulus. ${WHAT_SHOWS[key.profile]} ${
      key.profile === "hardened" && isSmall ? "Its numbers are small, above or below 0, so it betrays itself." : ""
    }`;
}

/** Empty places where sub-images and scores will be. */
export function clearResults() {
  const grid = element("tiles");
  grid.replaceChildren(...Array.from({ length: 12 }, () => make("span", "", "place-holder")));
  grid.classList.add("empty");
  grid.style.setProperty("--lanes", "4");
  grid.setAttribute("aria-label", "Nothing of this image has been sent yet.");
  element("tiles-note").textContent = "Nothing of this image has been sent yet.";
  element("label").textContent = "\u2013";
  element("scores").replaceChildren();
  element("scores-note").textContent = "Decrypted here, with lanes that are never sent.";
}

/**
 * Scores as bars from a common zero, highest first.
 * @param {string[]} labels @param {number[]} scores
 * @returns {string} the label of the highest
 */
export function showScores(labels, scores) {
  const order = scores.map((_, index) => index).sort((x, y) => scores[y] - scores[x] || x - y);
  element("label").textContent = labels[order[0]];
  const low = Math.min(0, ...order.slice(0, SHOWN_SCORES).map((index) => scores[index]));
  const span = Math.max(0, scores[order[0]]) - low || 1;
  const rows = order.slice(0, SHOWN_SCORES).map((index, rank) => {
    const row = make("li", "", rank === 0 ? "first" : "");
    const track = make("span", "", "track");
    const bar = make("span", "", scores[index] < 0 ? "score negative" : "score");
    bar.style.left = `${(100 * (Math.min(0, scores[index]) - low)) / span}%`;
    bar.style.width = `${(100 * Math.abs(scores[index])) / span}%`;
    track.style.setProperty("--zero", `${(-100 * low) / span}%`);
    track.setAttribute("aria-hidden", "true");
    track.append(bar);
    row.append(make("span", labels[index], "name"), track, make("span", signed(scores[index]), "value"));
    return row;
  });
  element("scores").replaceChildren(...rows);
  const rest = labels.length - rows.length;
  element("scores-note").textContent =
    (rest > 0 ? `The highest ${rows.length} of ${labels.length}. ` : "") +
    "Exact integers before they were divided by their scale; each was checked against the proved bound.";
  return labels[order[0]];
}

/** @param {{step: string, where: string, milliseconds?: number, sent?: number, received?: number}[]} steps */
export function showSteps(steps) {
  const rows = steps.map(({ step, where, milliseconds, sent, received }) => {
    const row = make("tr");
    const head = make("th", step);
    head.scope = "row";
    row.append(head, make("td", where));
    for (const cell of [milliseconds === undefined ? "" : time(milliseconds), bytes(sent), bytes(received)]) {
      row.append(make("td", cell, "number"));
    }
    return row;
  });
  element("steps").replaceChildren(...rows);
}

function time(milliseconds) {
  return milliseconds < 1000
    ? `${milliseconds.toFixed(milliseconds < 10 ? 1 : 0)} ms`
    : `${(milliseconds / 1000).toFixed(2)} s`;
}

function bytes(count) {
  return count === undefined ? "" : `${grouped(count)} B`;
}

/** Digits in groups of three, with thin spaces. @param {number} count */
export function grouped(count) {
  return String(count).replace(/\B(?=(\d{3})+$)/g, "\u202f");
}

function signed(score) {
  const size = Math.abs(score);
  const digits = size >= 1e6 || (size > 0 && size < 1e-3) ? size.toExponential(2) : size.toFixed(3);
  return (score < 0 ? "\u2212" : "") + digits;
}
