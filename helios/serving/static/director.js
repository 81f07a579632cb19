// One live stage: turns wishes into messages, and messages into takes, pictures and announcements.

import { Stage } from "./stage.js";
import { announce, memory } from "./dom.js";
import { short } from "./format.js";
import { DRAINING, ENDED, LOST } from "./words.js";
import { Recovery, retryable } from "./recovery.js";

/** Chunks made beyond the one that plays, when no end is set: near enough to change one's mind. */
const AHEAD = 3;

/** A finished video gives its place on the server back after this long without a wish. */
const REST_MS = 60000;

/**
 * Events: those of a stage, "settings" (a session told its settings), "problem" (`{message, code, param, fatal, kind}`;
 * no message: it is over), "health" (the message), "note" (something about prompts changed).
 */
export class Director extends Stage {
  place = null;
  health = null;
  loras = [];
  #story;
  #player;
  #chunkFrames = 33;
  #asked = null;
  #ahead = null;
  #limited = false;
  #resuming = null;
  #tries = 0;
  #rest = 0;
  #returning = false;
  #branching = null;
  #recovery = new Recovery();

  constructor(story, player) {
    super();
    this.#story = story;
    this.#player = player;
    this.connection.addEventListener("message", ({ detail }) => this.#hear(detail.message, detail.bytes));
    this.addEventListener("phase", () => this.#entered());
    player.addEventListener("chunk", ({ detail }) => this.#played(detail));
  }

  get take() { return this.#story.current; }
  get resting() { return this.take?.length ? "done" : "empty"; }
  /** The chunk of a branch that was asked for and has not begun. */
  get branching() { return this.#branching; }
  /** The prompt of a session that was asked for and has not begun. */
  get asked() { return this.#asked?.prompt ?? null; }
  /** A change that was sent and has no answer yet. */
  get wished() { return this.busy ? this.#recovery.asked?.text ?? null : null; }
  /** Whether the model's process was lost and the video is about to go on. */
  get recovering() { return this.#recovery.active; }

  /** Begin a new video; `asked` is a change that waits for it. */
  async start(request, asked = null) {
    this.#story.clear();
    this.#player.reset();
    this.#player.play();
    this.#ahead = request.num_frames || request.seconds ? null : AHEAD;
    this.#asked = { prompt: request.prompt };
    Object.assign(this.#recovery, { request, asked, active: false });
    this.#resuming = null;
    this.#returning = asked !== null;
    this.loras = request.loras ?? [];
    this.to("starting");
    await this.begin(this.#bounded({ type: "session.start", ...request }));
  }

  /** Open a session of the library, or another take of this story. */
  async resume(id, { have = 0, fresh = false, hold = false, entry = null } = {}) {
    if (fresh) {
      this.#recovery.active = false;
      this.#story.clear();
      this.#player.reset();
      this.#ahead = AHEAD;
    }
    this.#player.play();
    this.#resuming = { id, hold };
    const known = this.#story.takes.get(id);
    this.#story.open(known ? { id } : { id, settings: entry?.settings ?? {} });
    this.to("starting");
    const message = { type: "session.resume", session: id, have };
    // To look at it only: nothing new is made before the wish to stop arrives.
    await this.begin(hold ? this.#bounded(message, 1) : this.#bounded(message));
  }

  /** A message with the limit on what is made beyond the chunk that plays. */
  #bounded(message, ahead = this.#ahead) {
    this.#limited = ahead !== null;
    return this.#limited ? { ...message, ahead } : message;
  }

  /** Change the scene from the next chunk on, or from `chunk` if that is later. */
  async change(prompt, transition, chunk) {
    const asked = { text: prompt, chunk, event: null };
    Object.assign(this.#recovery, { transition, asked });
    this.tell("note");
    // Between two connections, or two processes: it is asked when the session is there again.
    if (this.busy && !this.attached) { this.#returning = true; return; }
    asked.event = await this.#wish({ type: "session.prompt", prompt, transition_chunks: transition, chunk });
  }

  wear(loras) {
    this.loras = loras;
    if (this.busy) this.#wish({ type: "session.lora", loras });
  }

  branch(take, chunk, { prompt = null, seed = null, transition = 0 } = {}) {
    const message = { type: "session.branch", chunk, transition_chunks: transition };
    if (prompt !== null) message.prompt = prompt;
    if (seed !== null) message.seed = seed;
    this.#asked = { prompt, seed, transition };
    this.#branching = chunk;
    this.tell("note");
    return this.#on(take, message);
  }

  extend(seconds) {
    if (seconds === null) this.#ahead = AHEAD;
    this.#player.play();
    return this.#wish(seconds === null ? { type: "session.extend" } : { type: "session.extend", seconds });
  }

  keep(take, chunk, name) { return this.#on(take, { type: "session.save", chunk, name }); }

  stop() {
    // A session that is being taken up again stops when it is there; one in line leaves the line.
    if (this.take && !this.attached && this.phase !== "queued") {
      this.#resuming = { id: this.take.id, hold: true };
      return null;
    }
    return this.say({ type: "session.stop" });
  }

  /** Watch another take of the same story; chunks that both share are not sent again. */
  show(take) {
    if (take === this.take) return Promise.resolve();
    const have = Math.min(this.#story.shared(take, this.take), take.length);
    let here = 0;
    while (here < have && this.#player.holds(here)) here += 1;
    return this.resume(take.id, { have: here === have ? have : 0, hold: take.done !== null });
  }

  /** The page goes away, perhaps to come back: the place on the server is free for others. */
  sleep() { this.connection.close(); }

  wake() { if (this.busy) this.again(); }

  /** Leave what is on the stage; it stays in the library. */
  leave() {
    this.connection.close();
    this.opening = this.#resuming = this.#branching = null;
    this.#recovery.active = false;
    this.#story.clear();
    this.#player.reset();
    memory.set("last", null);
    this.to("empty");
  }

  async #on(take, message) {
    if (take !== this.take) {
      await this.show(take);
      await this.settled();
    }
    return this.#wish(message);
  }

  /** A wish about the session on the stage, which is taken up again first if it was laid down. */
  async #wish(message) {
    await this.settled();
    if (!this.attached && this.take) {
      // Of two wishes at a time the first one takes it up.
      if (!this.busy) await this.resume(this.take.id, { have: this.take.length, hold: true });
      await this.settled();
    }
    return this.attached ? this.say(message) : null;
  }

  #entered() {
    clearTimeout(this.#rest);
    if (this.phase === "done") this.#rest = setTimeout(() => this.connection.close(), REST_MS);
    if (this.phase !== "queued") this.place = null;
    this.#player.expect(this.busy);
  }

  #played(chunk) {
    if (this.#limited && this.phase === "making" && this.attached) {
      this.connection.send({ type: "session.played", chunk });
    }
    this.tell("note");
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
      case "session.loras": this.loras = message.loras; this.tell("note"); break;
      case "session.saved": this.tell("saved", message); announce("Kept in the library"); break;
      case "session.done": this.#done(take, message); break;
      case "health": this.#heard(message); break;
      case "server.draining": this.tell("problem", { message: DRAINING, code: "draining" }); break;
      case "error": this.#error(message); break;
    }
  }

  #queued(message) {
    memory.set("last", message.session);
    if (this.place !== message.place) announce(`In line, place ${message.place} of ${message.waiting}`);
    this.place = message.place;
    this.to("queued");
  }

  #created(message) {
    memory.set("last", message.session);
    this.#chunkFrames = message.chunk_frames ?? this.#chunkFrames;
    const take = this.#story.created(message, message.settings?.prompt ?? this.#asked?.prompt);
    const hold = this.#resuming?.hold;
    this.#asked = this.#resuming = null;
    this.#tries = 0;
    this.attach();
    this.to("making");
    this.tell("settings", { take, warnings: message.warnings ?? [] });
    if (hold) this.stop();
  }

  #branched(message) {
    const take = this.#story.branch(message, this.#asked?.prompt ?? null);
    take.wish = this.#asked;
    this.#asked = this.#branching = null;
    memory.set("last", message.session);
    this.#player.play();
    this.to("making");
    this.tell("settings", { take, warnings: [] });
    announce(`Branched from chunk ${message.chunk + 1}`);
  }

  #extended(message) {
    const take = this.take;
    if (!take) return;
    take.done = null;
    take.settings = { ...take.settings, num_frames: message.num_frames ?? null };
    if (message.num_frames) this.#ahead = null;
    this.#player.pace.restart(performance.now() / 1000);
    this.to("making");
    // Who stands at the end is told of no new chunk; the server shall know that all was seen.
    this.#played(this.#player.chunk);
    announce(`Goes on with chunk ${message.chunk + 1}`);
  }

  #videoStart(message, bytes) {
    const take = this.#story.takes.get(message.session) ?? this.take;
    if (take) this.#story.cut(take, message.first_chunk);
    this.#player.begin({ mime: message.mime, fps: message.fps, firstChunk: message.first_chunk, chunkFrames: this.#chunkFrames }, bytes);
    this.#player.pace.restart(performance.now() / 1000);
    this.tell("video", message);
    if (!take || !(this.#returning || this.#recovery.active)) return;
    const missing = this.#recovery.missing(take, message.first_chunk);
    this.#returning = false;
    this.#recovered();
    if (missing) this.change(missing.text, this.#recovery.transition, missing.chunk);
  }

  #recovered() {
    if (this.#recovery.active) this.tell("problem", { message: "" });
    this.#recovery.active = false;
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
    if (this.phase !== "making" && this.phase !== "done") this.to("making");
    if (!message.replayed) this.#recovery.arrived();
    this.tell("arrived", message);
  }

  /** A prompt was accepted, used, or overtaken by a newer one. */
  #prompted(take, message) {
    const { type, chunk, prompt } = message;
    const { asked } = this.#recovery;
    // The same words on their way to another chunk: the page shows already where they go.
    if (type === "prompt.superseded" && asked?.text === prompt) return;
    if (type === "prompt.queued" && asked && message.event_id && asked.event !== message.event_id) return;
    if (type === "prompt.queued") this.#recovery.asked = null;
    if (type === "prompt.superseded") this.#story.withdraw(take, prompt);
    else if (type === "prompt.queued") this.#story.promise(take, message);
    else this.#story.keepPromise(take, message);
    this.tell("note");
    if (type === "prompt.queued") announce(`Change accepted: lands in chunk ${chunk + 1}`);
    if (type === "prompt.applied") announce(`Chunk ${chunk + 1} now shows: ${short(prompt, 80)}`);
  }

  #done(take, message) {
    if (!take) return this.to(this.resting);
    // After a crash it goes on from its last state, if it was not the video's own fault.
    const lost = message.reason === "worker" && take === this.take;
    if (lost) this.detach();
    const pause = lost ? this.#recovery.begin() : null;
    if (pause !== null) {
      this.#branching = null;
      this.to("starting");
      setTimeout(() => { if (this.#recovery.active && take === this.take) this.again(); }, 1000 * pause);
      return;
    }
    take.done = message.reason;
    this.#resuming = null;
    if (take === this.take) {
      this.to(take.length ? "done" : "empty");
      announce(ENDED[message.reason] ?? "The video ended.");
      if (["lifetime", "worker"].includes(message.reason)) this.tell("problem", { message: ENDED[message.reason], code: message.reason });
    }
  }

  /** No state was on disk yet: make the take again as it was asked for. */
  async #startOver(take) {
    const { asked, transition } = this.#recovery;
    this.#resuming = null;
    this.#returning = false;
    this.#recovered();
    if (!take.wish) return this.start(this.#recovery.repeated(take), asked);
    this.#story.drop(take);
    await this.resume(take.parent.id, { have: take.parent.length, hold: true });
    await this.settled();
    await this.branch(take.parent, take.from, take.wish);
    return asked && this.change(asked.text, transition, asked.chunk);
  }

  #heard(message) {
    this.health = message;
    if (message.kept && this.take) this.take.kept = message.kept;
    this.tell("health", message);
  }

  #error(message) {
    const { code, message: text, param, event_id: event } = message.error;
    if (code === "rate_limited") return;
    this.#branching = null;
    // A change between two sessions is asked again when the next one is there.
    if (code === "no_session" && this.busy) return;
    const refused = event && event === this.opening?.event ? this.opening : null;
    if (refused && retryable(code, this.#resuming !== null) && (code === "not_ready" || this.#tries < 10)) {
      this.#tries += 1;
      setTimeout(() => { if (this.opening === refused) this.begin(refused.message); }, 1000);
      return;
    }
    this.#recovery.failure = code;
    if (!refused && this.take && this.#recovery.possible) {
      this.tell("problem", { message: LOST, code, kind: "hint", fatal: true });
      return;
    }
    if (code === "chunk_not_kept" && this.#recovery.repeatable(this.take)) { this.#startOver(this.take); return; }
    Object.assign(this.#recovery, { active: false, asked: null });
    this.tell("problem", { message: text, code, param, fatal: message.fatal });
    this.tell("note");
    if (refused && !message.fatal) {
      this.opening = this.#resuming = null;
      if (code === "session_not_found") this.leave();
      else this.to(this.resting);
    }
  }

  /** After the connection came back: go on where it broke off. */
  again() {
    const take = this.take;
    if (!take) { if (this.opening) this.begin(this.opening.message); return; }
    this.#resuming ??= { id: take.id, hold: false };
    this.#returning = true;
    this.begin(this.#bounded({ type: "session.resume", session: take.id, have: take.length }));
  }
}
