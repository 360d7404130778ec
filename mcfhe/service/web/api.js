/** The service's HTTP interface (docs/wire.md, section HTTP). The token lives in this object and nowhere else. */

import { Refused } from "./errors.js";

const RETRIED = new Set([408, 429, 502, 503, 504]);
const RETRIES = 6;
const LONGEST_WAIT_S = 30;
const TIMEOUT_MS = 90_000;
const MAX_ANSWER_BYTES = 2 ** 28;

export class Api {
  #token = "";

  /** @param {URL} base where /v1 is @param {(text: string) => void} onWait told why and how long a retry waits */
  constructor(base, onWait) {
    this.base = base;
    this.onWait = onWait;
  }

  /** @param {string} token sent as a bearer token from now on */
  useToken(token) {
    if (!/^[!-~]*$/.test(token)) throw new Refused("token: printable ASCII characters without spaces expected");
    this.#token = token;
  }

  /** @returns {Promise<{program_id: string, input_shape: number[], labels: string[]}[]>} */
  async programs() {
    const programs = parsed(await this.#send("v1/programs"))?.programs;
    if (!Array.isArray(programs) || !programs.every((entry) => /^[0-9a-f]{64}$/.test(entry?.program_id))) {
      throw new Refused("The server's answer is not a list of programs.");
    }
    return programs;
  }

  /** @param {string} programId @returns {Promise<string>} JSON */
  async spec(programId) {
    return text(await this.#send(`v1/programs/${programId}/spec`));
  }

  /** @param {Uint8Array} key a container of kind evaluation-key */
  async register(key) {
    await this.#send("v1/keys", key);
  }

  /**
   * A retry repeats the very bytes, so the server evaluates them once. Status 410: the key has to be registered again.
   * @param {string} programId @param {Uint8Array} request @returns {Promise<Uint8Array>} a container of kind response
   */
  evaluate(programId, request) {
    return this.#send(`v1/programs/${programId}/evaluate`, request);
  }

  async #send(path, body) {
    for (let attempt = 0; ; attempt++) {
      let wait = 0.2 * 2 ** attempt * (0.5 + Math.random() / 2); // spread, not secret
      let failure;
      try {
        const answer = await fetch(new URL(path, this.base), this.#options(body));
        if (answer.ok) return await bounded(answer);
        failure = new Refused(await reason(answer, this.#token), answer.status);
        const after = answer.headers.get("retry-after") ?? "";
        if (/^[0-9]+$/.test(after)) wait = Math.max(wait, Number(after));
      } catch (error) {
        if (error instanceof Refused) throw error;
        failure = new Refused(
          error.name === "TimeoutError" ? "The server did not answer in time." : "The server cannot be reached.",
        );
      }
      if (attempt === RETRIES || (failure.status && !RETRIED.has(failure.status))) throw failure;
      wait = Math.min(wait, LONGEST_WAIT_S);
      this.onWait(`${failure.message} Trying again in ${Math.max(1, Math.round(wait))} s.`);
      await new Promise((resolve) => setTimeout(resolve, 1000 * wait));
    }
  }

  #options(body) {
    const headers = this.#token ? { authorization: `Bearer ${this.#token}` } : {};
    const common = {
      signal: AbortSignal.timeout(TIMEOUT_MS),
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
    };
    if (!body) return { ...common, headers };
    return { ...common, method: "POST", body, headers: { ...headers, "content-type": "application/octet-stream" } };
  }
}

/** The body, as long as it is not larger than any answer may be. */
async function bounded(answer) {
  const parts = [];
  let size = 0;
  for (const reader = answer.body.getReader(); ;) {
    const { done, value } = await reader.read();
    if (done) break;
    size += value.length;
    if (size > MAX_ANSWER_BYTES) {
      await reader.cancel();
      throw new Refused(`The server's answer is larger than ${MAX_ANSWER_BYTES} bytes.`);
    }
    parts.push(value);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

function text(bytes) {
  return new TextDecoder().decode(bytes);
}

/** @returns {any} undefined for what is no JSON */
function parsed(bytes) {
  try {
    return JSON.parse(text(bytes));
  } catch {
    return undefined;
  }
}

/** The server's own line, bounded. */
async function reason(answer, token) {
  if (answer.status === 401) return token ? "The server does not know this token." : "The server asks for a token.";
  const line = parsed(await bounded(answer))?.error;
  const told = typeof line === "string" ? line.slice(0, 300) : "refused without a reason";
  return `Server: ${told} (status ${answer.status})`;
}
