// What a live stage stands on: one connection, the session on it, and the phase it is in.

import { Connection } from "./protocol.js";
import { announce, until } from "./dom.js";

/** Events: "phase" (`detail`: empty, starting, queued, making, done), "problem", "connection" (`{state, seconds, now}`). */
export class Stage extends EventTarget {
  phase = "empty";
  connection = new Connection();
  /** The wish for a session that has no answer yet: `{message, event}`. */
  opening = null;
  #joined = false;
  #lost = false;

  constructor() {
    super();
    this.connection.addEventListener("state", ({ detail }) => this.#state(detail));
  }

  get busy() { return this.phase === "starting" || this.phase === "queued" || this.phase === "making"; }

  /** Whether this connection has a session that hears wishes. */
  get attached() { return this.#joined && this.connection.open; }
  attach() { this.#joined = true; this.opening = null; }
  detach() { this.#joined = false; }

  tell(name, detail) { this.dispatchEvent(new CustomEvent(name, { detail })); }

  to(phase) {
    this.phase = phase;
    this.tell("phase", phase);
  }

  /** Where the stage stands when there is nobody to ask: overridden by what knows whether there is a picture. */
  get resting() { return "empty"; }

  /** Ask for a session. */
  async begin(message) {
    this.detach();
    const opening = { message, event: null };
    this.opening = opening;
    opening.event = await this.say(message);
  }

  /** Wait until the session that was asked for is there, or is not to be had. */
  settled() { return until(this, "phase", () => this.attached || !this.busy); }

  /** Send a message over a connection that is opened if need be; its event_id, or null. */
  async say(message) {
    try {
      await this.connection.connect();
    } catch (error) {
      this.to(this.resting);
      this.tell("problem", { message: `The server cannot be reached: ${error.message}.`, code: "unreachable" });
      return null;
    }
    return this.connection.send(message);
  }

  /** After the connection came back. */
  again() {}

  #state(detail) {
    if (detail.state === "open") {
      this.detach();
      if (this.#lost) announce("Connected again");
      this.#lost = false;
    } else if (detail.state === "lost" && this.phase !== "empty") {
      this.#lost = true;
      // A finished video needs no connection; the next wish opens one.
      if (this.busy) {
        this.connection.reconnect(() => this.again());
      }
    }
    this.tell("connection", detail);
  }
}
