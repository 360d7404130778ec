/** A pad to draw on, white on black, by pointer or keyboard. */

const STEP = 0.5; // of a program's pixel, for the arrow keys
const BRUSH = 2.2; // pixels of the program
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class Pad {
  #context;
  #last = null;
  #size = [1, 1];
  #zoom = 1;
  #pen = [0, 0];
  #keyDown = false;
  isLocked = false;

  /**
   * @param {HTMLCanvasElement} canvas
   * @param {HTMLElement} cursor shows the pen while the keyboard moves it
   * @param {() => void} onChange called after every stroke
   */
  constructor(canvas, cursor, onChange) {
    this.canvas = canvas;
    this.cursor = cursor;
    this.onChange = onChange;
    this.#context = canvas.getContext("2d", { willReadFrequently: true });
    canvas.addEventListener("pointerdown", (event) => {
      if (this.isLocked) return;
      canvas.setPointerCapture(event.pointerId);
      this.cursor.hidden = true;
      this.#last = null;
      this.#stroke(this.#at(event));
    });
    canvas.addEventListener("pointermove", (event) => {
      if (event.buttons && !this.isLocked) this.#stroke(this.#at(event));
    });
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("blur", () => (this.cursor.hidden = true));
  }

  /** @param {number} width @param {number} height of the program's images */
  resize(width, height) {
    this.#size = [width, height];
    this.#zoom = Math.max(1, Math.floor(448 / Math.max(width, height)));
    this.canvas.width = width * this.#zoom;
    this.canvas.height = height * this.#zoom;
    this.clear();
  }

  /** Black, the pen lifted and in the middle. */
  clear() {
    this.#last = null;
    this.#keyDown = false;
    this.#pen = this.#size.map((side) => side / 2);
    this.cursor.hidden = true;
    this.#context.fillStyle = "black";
    this.#context.fillRect(0, 0, this.canvas.width, this.canvas.height);
  }

  /** @returns {import("./image.js").Picture} */
  picture() {
    return this.#context.getImageData(0, 0, this.canvas.width, this.canvas.height);
  }

  #at(event) {
    const box = this.canvas.getBoundingClientRect();
    const [width, height] = this.#size;
    return [((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height];
  }

  #stroke(point) {
    const context = this.#context;
    const zoom = this.#zoom;
    const [x, y] = this.#last ?? point;
    context.strokeStyle = "white";
    context.lineCap = "round";
    context.lineWidth = BRUSH * zoom;
    context.beginPath();
    context.moveTo(x * zoom, y * zoom);
    context.lineTo(point[0] * zoom + 0.01, point[1] * zoom);
    context.stroke();
    this.#last = point;
    this.#pen = point;
    this.onChange();
  }

  #key(event) {
    const move = MOVES[event.key];
    if (!move && event.key !== " ") return;
    event.preventDefault();
    if (this.isLocked) return;
    if (move) {
      this.#pen = this.#pen.map((value, axis) => Math.min(this.#size[axis], Math.max(0, value + STEP * move[axis])));
      if (this.#keyDown) this.#stroke(this.#pen);
    } else {
      this.#keyDown = !this.#keyDown;
      this.#last = null;
      if (this.#keyDown) this.#stroke(this.#pen);
    }
    this.cursor.hidden = false;
    this.cursor.classList.toggle("down", this.#keyDown);
    this.cursor.style.left = `${(100 * this.#pen[0]) / this.#size[0]}%`;
    this.cursor.style.top = `${(100 * this.#pen[1]) / this.#size[1]}%`;
  }
}
