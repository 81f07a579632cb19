// The live protocol (docs/protocol.md) over one WebSocket that comes back by itself.

import { subprotocols } from "./api.js";

const DELAYS = [0.5, 1, 2, 4, 8, 10];
const PING_MS = 15000;

/**
 * Messages come as events of type "message" whose `detail` is `{message, bytes}`; `bytes` is the
 * binary part that belongs to it, if any. "state" events tell "open", "waiting" (with `detail.seconds`) and "lost".
 */
export class Connection extends EventTarget {
  #socket = null;
  #opening = null;
  #pending = null;
  #attempt = 0;
  #timer = 0;
  #ping = 0;
  #event = 0;
  #wanted = false;
  #run = Math.random().toString(36).slice(2, 8);

  get open() { return this.#socket?.readyState === WebSocket.OPEN; }

  /** Connect if needed; settles when messages can be sent. */
  connect() {
    this.#wanted = true;
    if (this.open) return Promise.resolve();
    this.#opening ??= this.#connect().finally(() => { this.#opening = null; });
    return this.#opening;
  }

  async #connect() {
    clearTimeout(this.#timer);
    const protocols = await subprotocols();
    const url = new URL("v1/realtime/video", document.baseURI);
    url.protocol = url.protocol.replace("http", "ws");
    await new Promise((opened, failed) => {
      const socket = new WebSocket(url, protocols);
      socket.binaryType = "arraybuffer";
      socket.onopen = () => {
        this.#socket = socket;
        this.#pending = null;
        this.#attempt = 0;
        clearInterval(this.#ping);
        this.#ping = setInterval(() => this.send({ type: "session.ping" }), PING_MS);
        this.#say("open");
        opened();
      };
      socket.onmessage = (event) => { if (this.#socket === socket) this.#receive(event.data); };
      socket.onclose = (event) => {
        failed(new Error("no connection to the server"));
        if (this.#socket === socket) {
          this.#socket = null;
          clearInterval(this.#ping);
          this.#say("lost", { code: event.code, reason: event.reason });
        }
      };
    });
  }

  /** Try again after a pause that grows; `again` runs once the connection is back. */
  reconnect(again) {
    if (!this.#wanted) return;
    const seconds = DELAYS[Math.min(this.#attempt, DELAYS.length - 1)];
    this.#attempt += 1;
    this.#say("waiting", { seconds, now: () => this.#retry(again) });
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#retry(again), seconds * 1000);
  }

  #retry(again) {
    clearTimeout(this.#timer);
    this.connect().then(again, () => this.reconnect(again));
  }

  /** Send a message; returns its event_id, or null when there is no connection. */
  send(message) {
    if (!this.open) return null;
    this.#event += 1;
    const id = `${this.#run}-${this.#event}`;
    this.#socket.send(JSON.stringify({ ...message, event_id: id }));
    return id;
  }

  /** Leave; no attempt to come back. */
  close() {
    this.#wanted = false;
    clearTimeout(this.#timer);
    clearInterval(this.#ping);
    this.#socket?.close(1000);
    this.#socket = null;
  }

  #receive(data) {
    if (typeof data !== "string") {
      const message = this.#pending;
      this.#pending = null;
      if (message) this.#tell(message, data);
      return;
    }
    const message = JSON.parse(data);
    if (message.bytes) this.#pending = message;
    else this.#tell(message, null);
  }

  #tell(message, bytes) {
    this.dispatchEvent(new CustomEvent("message", { detail: { message, bytes } }));
  }

  #say(state, detail = {}) {
    this.dispatchEvent(new CustomEvent("state", { detail: { state, ...detail } }));
  }
}
