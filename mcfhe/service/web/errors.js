/** What went wrong, in one line for the user: a refusal, not a bug. */
export class Refused extends Error {
  /** @param {string} message @param {number} [status] HTTP status, where there is one */
  constructor(message, status = 0) {
    super(message);
    this.name = "Refused";
    this.status = status;
  }
}
