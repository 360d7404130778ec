/** The page's end of the worker that holds the keys. */

import { Refused } from "./errors.js";

export class Vault {
  #worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
  #waiting = new Map();
  #next = 0;

  constructor() {
    this.#worker.onmessage = ({ data: { id, value, error } }) => {
      const { resolve, reject } = this.#waiting.get(id);
      this.#waiting.delete(id);
      if (error === undefined) resolve(value);
      else reject(new Refused(error));
    };
    this.#worker.onerror = () => {
      for (const { reject } of this.#waiting.values())
        reject(new Refused("The encryption worker could not be started."));
      this.#waiting.clear();
    };
  }

  /**
   * @param {"reduce" | "open" | "encrypt" | "save" | "decrypt"} operation
   * @param {object} given and what comes back: see worker.js
   * @returns {Promise<any>}
   */
  call(operation, given) {
    const id = this.#next++;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.#worker.postMessage({ id, operation, arguments: given });
    });
  }
}
