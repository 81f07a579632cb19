// One live stage: turns wishes into messages, and messages into takes, pictures and announcements.

import { Connection } from "./protocol.js";
import { announce, memory, until } from "./dom.js";
import { short } from "./format.js";
import { DRAINING, ENDED, LOST } from "./words.js";
import { Recovery } from "./recovery.js";

/** Chunks made beyond the one that plays, when no end is set: near enough to change one's mind. */
const AHEAD = 3;

/** A finished video gives its place on the server back after this long without a wish. */
const REST_MS = 60000;

/**
 * Events: "phase" (`detail`: empty, starting, queued, making, done), "settings" (a session told its settings),
 * "problem" (`{message, code, param, fatal, kind}`; no message: it is over), "health" (the message),
 * "note" (something about prompts changed), "connection" (`{state, seconds, now}`).
 */
export class Director extends EventTarget {
  phase = "empty";
  place = null;
  health = null;
  loras = [];
  #connection = new Connection();
  #story;
  #player;
  #chunkFrames = 33;
  #asked = null;
  #lost = false;
  #ahead = null;
  #limited = false;
  #resuming = null;
  #tries = 0;
  #rest = 0;
  #opening = null;
  #branching = null;
  #recovery = new Recovery();

  constructor(story, player) {
    super();
    this.#story = story;
    this.#player = player;
    this.#connection.addEventListener("message", ({ detail }) => this.#hear(detail.message, detail.bytes));
    this.#connection.addEventListener("state", ({ detail }) => this.#state(detail));
    player.addEventListener("chunk", ({ detail }) => this.#played(detail));
  }

  get take() { return this.#story.current; }
  get busy() { return this.phase === "starting" || this.phase === "queued" || this.phase === "making"; }
  /** The chunk of a branch that was asked for and has not begun. */
  get branching() { return this.#branching; }
  /** The prompt of a session that was asked for and has not begun. */
  get asked() { return this.#asked?.prompt ?? null; }
  /** Whether the model's process was lost and the video is about to go on. */
  get recovering() { return this.#recovery.active; }

  /** Begin a new video. */
  async start(request) {
    this.#story.clear();
    this.#player.reset();
    this.#player.play();
    this.#ahead = request.num_frames || request.seconds ? null : AHEAD;
    this.#asked = { prompt: request.prompt };
    Object.assign(this.#recovery, { request, asked: null });
    this.#resuming = null;
    this.loras = request.loras ?? [];
    this.#to("starting");
    await this.#begin(this.#bounded({ type: "session.start", ...request }));
  }

  /** Ask for a session, again and again while the model is still being loaded. */
  #begin(message) {
    this.#opening = message;
    return this.#say(message);
  }

  /** Open a session of the library, or another take of this story. */
  async resume(id, { have = 0, fresh = false, hold = false, entry = null } = {}) {
    if (fresh) {
      this.#story.clear();
      this.#player.reset();
      this.#ahead = AHEAD;
    }
    this.#player.play();
    this.#resuming = { id, hold };
    const known = this.#story.takes.get(id);
    this.#story.open(known ? { id } : { id, settings: entry?.settings ?? {} });
    this.#to("starting");
    const message = { type: "session.resume", session: id, have };
    // To look at it only: nothing new is made before the wish to stop arrives.
    await this.#begin(hold ? this.#bounded(message, 1) : this.#bounded(message));
  }

  /** A message with the limit on what is made beyond the chunk that plays. */
  #bounded(message, ahead = this.#ahead) {
    this.#limited = ahead !== null;
    return this.#limited ? { ...message, ahead } : message;
  }

  /** Change the scene from the next chunk on, or from `chunk` if that is later. */
  change(prompt, transition, chunk) {
    Object.assign(this.#recovery, { transition, asked: { text: prompt, chunk } });
    return this.#wish({ type: "session.prompt", prompt, transition_chunks: transition, chunk });
  }

  wear(loras) {
    this.loras = loras;
    if (this.busy) this.#say({ type: "session.lora", loras });
  }

  branch(take, chunk, { prompt = null, seed = null, transition = 0 } = {}) {
    const message = { type: "session.branch", chunk, transition_chunks: transition };
    if (prompt !== null) message.prompt = prompt;
    if (seed !== null) message.seed = seed;
    this.#asked = { prompt, seed, transition };
    this.#branching = chunk;
    this.#tell("note");
    return this.#on(take, message);
  }

  extend(seconds) {
    if (seconds === null) this.#ahead = AHEAD;
    this.#player.play();
    return this.#wish(seconds === null ? { type: "session.extend" } : { type: "session.extend", seconds });
  }

  keep(take, chunk, name) { return this.#on(take, { type: "session.save", chunk, name }); }

  stop() { return this.#say({ type: "session.stop" }); }

  /** Watch another take of the same story; chunks that both share are not sent again. */
  show(take) {
    if (take === this.take) return Promise.resolve();
    const have = Math.min(this.#story.shared(take, this.take), take.length);
    let here = 0;
    while (here < have && this.#player.holds(here)) here += 1;
    return this.resume(take.id, { have: here === have ? have : 0, hold: take.done !== null });
  }

  /** The page goes away, perhaps to come back: the place on the server is free for others. */
  sleep() { this.#connection.close(); }

  wake() { if (this.busy) this.#again(); }

  /** Leave what is on the stage; it stays in the library. */
  leave() {
    this.#connection.close();
    this.#story.clear();
    this.#player.reset();
    memory.set("last", null);
    this.#to("empty");
  }

  async #on(take, message) {
    if (take !== this.take) {
      await this.show(take);
      await this.#settled();
    }
    return this.#wish(message);
  }

  /** A wish about the session on the stage, which is taken up again first if it was laid down. */
  async #wish(message) {
    if (!this.#connection.open && this.take) {
      await this.resume(this.take.id, { have: this.take.length, hold: true });
      await this.#settled();
    }
    return this.#say(message);
  }

  /** Wait until the session that was asked for is there. */
  #settled() { return until(this, "phase", () => this.phase !== "starting" && this.phase !== "queued"); }

  async #say(message) {
    try {
      await this.#connection.connect();
    } catch (error) {
      this.#to(this.take?.length ? "done" : "empty");
      this.#tell("problem", { message: `The server cannot be reached: ${error.message}.`, code: "unreachable" });
      return null;
    }
    return this.#connection.send(message);
  }

  #tell(name, detail) { this.dispatchEvent(new CustomEvent(name, { detail })); }
  #to(phase) {
    this.phase = phase;
    clearTimeout(this.#rest);
    if (phase === "done") this.#rest = setTimeout(() => this.#connection.close(), REST_MS);
    if (phase !== "queued") this.place = null;
    this.#player.expect(this.busy);
    this.#tell("phase", phase);
  }

  #played(chunk) {
    if (this.#limited && this.phase === "making" && this.#connection.open) {
      this.#connection.send({ type: "session.played", chunk });
    }
    this.#tell("note");
  }

  // ------------------------------------------------------------------------------ messages

  #hear(message, bytes) {
    const take = message.session ? this.#story.takes.get(message.session) : this.take;
    switch (message.type) {
      case "session.queued": this.#queued(message); break;
      case "session.created": this.#created(message); break;
      case "session.branched": this.#branched(message); break;
      case "session.extended": this.#extended(message); break;
      case "video.start": this.#videoStart(message, bytes); break;
      case "video.chunk": this.#videoChunk(take, message, bytes); break;
      case "prompt.queued": case "prompt.applied": case "prompt.superseded": if (take) this.#prompted(take, message); break;
      case "session.loras": this.loras = message.loras; this.#tell("note"); break;
      case "session.saved": this.#tell("saved", message); announce("Kept in the library"); break;
      case "session.done": this.#done(take, message); break;
      case "health": this.#heard(message); break;
      case "server.draining": this.#tell("problem", { message: DRAINING, code: "draining" }); break;
      case "error": this.#error(message); break;
    }
  }

  #queued(message) {
    memory.set("last", message.session);
    if (this.place !== message.place) announce(`In line, place ${message.place} of ${message.waiting}`);
    this.place = message.place;
    this.#to("queued");
  }

  #created(message) {
    memory.set("last", message.session);
    this.#chunkFrames = message.chunk_frames ?? this.#chunkFrames;
    const take = this.#story.created(message, message.settings?.prompt ?? this.#asked?.prompt);
    this.#asked = null;
    this.#tries = 0;
    this.#to("making");
    this.#tell("settings", { take, warnings: message.warnings ?? [] });
    if (this.#resuming?.hold) this.stop();
    this.#opening = this.#resuming = null;
  }

  #branched(message) {
    const take = this.#story.branch(message, this.#asked?.prompt ?? null);
    take.wish = this.#asked;
    this.#asked = this.#branching = null;
    memory.set("last", message.session);
    this.#player.play();
    this.#to("making");
    this.#tell("settings", { take, warnings: [] });
    announce(`Branched from chunk ${message.chunk + 1}`);
  }

  #extended(message) {
    const take = this.take;
    if (!take) return;
    take.done = null;
    take.settings = { ...take.settings, num_frames: message.num_frames ?? null };
    if (message.num_frames) this.#ahead = null;
    this.#player.pace.restart(performance.now() / 1000);
    this.#to("making");
    announce(`Goes on with chunk ${message.chunk + 1}`);
  }

  #videoStart(message, bytes) {
    const take = this.#story.takes.get(message.session) ?? this.take;
    if (take) this.#story.cut(take, message.first_chunk);
    this.#player.begin({ mime: message.mime, fps: message.fps, firstChunk: message.first_chunk, chunkFrames: this.#chunkFrames }, bytes);
    this.#player.pace.restart(performance.now() / 1000);
    this.#tell("video", message);
    if (!this.#recovery.active || !take) return;
    this.#recovered();
    const missing = this.#recovery.missing(take, message.first_chunk);
    if (missing) this.change(missing.text, this.#recovery.transition, missing.chunk);
  }

  #recovered() {
    this.#recovery.active = false;
    this.#tell("problem", { message: "" });
  }

  #videoChunk(take, message, bytes) {
    if (!take || take !== this.take) return;
    this.#story.add(take, message);
    if (!message.replayed) {
      const measured = message.timings?.made ?? message.timings?.total ?? null;
      const held = this.#ahead !== null && this.#player.ready > (this.#ahead - 1) * this.#player.chunkSeconds;
      this.#player.pace.arrive(performance.now() / 1000, measured, held);
    }
    this.#player.append(bytes);
    if (this.phase !== "making" && this.phase !== "done") this.#to("making");
    if (!message.replayed) this.#recovery.arrived();
    this.#tell("arrived", message);
  }

  /** A prompt was accepted, used, or overtaken by a newer one. */
  #prompted(take, message) {
    const { type, chunk, prompt } = message;
    if (type === "prompt.queued") this.#recovery.asked = null;
    if (type === "prompt.superseded") this.#story.withdraw(take, prompt);
    else if (type === "prompt.queued") this.#story.promise(take, message);
    else this.#story.keepPromise(take, message);
    this.#tell("note");
    if (type === "prompt.queued") announce(`Change accepted: lands in chunk ${chunk + 1}`);
    if (type === "prompt.applied") announce(`Chunk ${chunk + 1} now shows: ${short(prompt, 80)}`);
  }

  #done(take, message) {
    if (!take) return this.#to(this.take?.length ? "done" : "empty");
    // After a crash it goes on from its last state, if it was not the video's own fault.
    const pause = message.reason === "worker" && take === this.take ? this.#recovery.begin() : null;
    if (pause !== null) {
      this.#to("starting");
      setTimeout(() => this.#again(), 1000 * pause);
      return;
    }
    take.done = message.reason;
    this.#resuming = null;
    if (take === this.take) {
      this.#to(take.length ? "done" : "empty");
      announce(ENDED[message.reason] ?? "The video ended.");
      if (["lifetime", "worker"].includes(message.reason)) this.#tell("problem", { message: ENDED[message.reason], code: message.reason });
    }
  }

  /** No state was on disk yet: make the take again as it was asked for. */
  async #startOver(take) {
    this.#resuming = null;
    this.#recovered();
    if (!take.wish) return this.start(this.#recovery.repeated(take));
    this.#story.drop(take);
    await this.resume(take.parent.id, { have: take.parent.length, hold: true });
    await this.#settled();
    return this.branch(take.parent, take.from, take.wish);
  }

  #heard(message) {
    this.health = message;
    if (message.kept && this.take) this.take.kept = message.kept;
    this.#tell("health", message);
  }

  #error(message) {
    const { code, message: text, param } = message.error;
    if (code === "rate_limited") return;
    this.#recovery.failure = code;
    this.#branching = null;
    if (code === "not_ready" && this.#opening && this.phase === "starting") {
      setTimeout(() => { if (this.#opening) this.#say(this.#opening); }, 1000);
      return;
    }
    if (this.#resuming && ["session_active", "queue_full"].includes(code) && this.#tries < 10) {
      // The server has not noticed yet that the other end of the old connection is gone.
      this.#tries += 1;
      setTimeout(() => this.#again(), 1000);
      return;
    }
    if (this.take && this.#recovery.possible) {
      this.#tell("problem", { message: LOST, code, kind: "hint", fatal: true });
      announce(LOST, true);
      return;
    }
    if (code === "chunk_not_kept" && this.#recovery.repeatable(this.take)) { this.#startOver(this.take); return; }
    Object.assign(this.#recovery, { active: false, asked: null });
    this.#tell("problem", { message: text, code, param, fatal: message.fatal });
    announce(text, true);
    if ((this.phase === "starting" || this.#resuming) && !message.fatal) {
      this.#resuming = null;
      if (code === "session_not_found") this.leave();
      else this.#to(this.take?.length ? "done" : "empty");
    }
  }

  // ---------------------------------------------------------------------------- connection

  #state(detail) {
    if (detail.state === "open") {
      if (this.#lost) { this.#lost = false; announce("Connected again"); }
    } else if (detail.state === "lost" && this.phase !== "empty") {
      this.#lost = true;
      // A finished video needs no connection; the next wish opens one.
      if (this.busy) {
        announce("Connection lost. It comes back by itself; what was made is kept.", true);
        this.#connection.reconnect(() => this.#again());
      }
    }
    this.#tell("connection", detail);
  }

  /** After the connection came back: go on where it broke off. */
  #again() {
    const take = this.take;
    if (!take) return;
    this.#resuming ??= { id: take.id, hold: false };
    this.#begin(this.#bounded({ type: "session.resume", session: take.id, have: take.length }));
  }
}
