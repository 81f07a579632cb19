// Plays fragments of MP4 as they come, through MediaSource, at a rate that can be kept up.

import { Pace } from "./pace.js";

/** Seconds of what was watched that stay in the browser's memory. */
const BEHIND = 300;
const TICK_MS = 200;

const Source = globalThis.ManagedMediaSource ?? globalThis.MediaSource;

/**
 * Events: "chunk" (`detail`: the chunk that plays now), "pace" (`detail`: `{rate, starved, playing}`),
 * "time", "failed" (`detail`: a sentence).
 */
export class Player extends EventTarget {
  #video;
  #source = null;
  #buffer = null;
  #work = [];
  #mime = null;
  #chunkSeconds = 33 / 24;
  #fps = 24;
  #wanted = true;
  #more = false;
  #ended = false;
  #chunk = -1;
  #jump = null;
  #said = "";

  constructor(video) {
    super();
    this.#video = video;
    this.pace = new Pace();
    video.addEventListener("error", () => this.#fail(video.error?.message));
    video.addEventListener("timeupdate", () => this.#tick());
    video.addEventListener("seeked", () => this.#tick());
    setInterval(() => this.#tick(), TICK_MS);
  }

  static get supported() { return Boolean(Source) && Source.isTypeSupported('video/mp4; codecs="avc1.64001E"'); }

  get time() { return this.#video.currentTime; }
  /** The chunk at the playhead. */
  get chunk() { return Math.floor(this.#video.currentTime / this.#chunkSeconds + 1e-3); }
  get fps() { return this.#fps; }
  get paused() { return !this.#wanted; }
  get chunkSeconds() { return this.#chunkSeconds; }
  /** The end of what can be watched, in seconds. */
  get end() {
    const ranges = this.#buffer?.buffered;
    return ranges?.length ? ranges.end(ranges.length - 1) : 0;
  }
  /** Seconds ahead of the playhead without a gap. */
  get ready() {
    const ranges = this.#buffer?.buffered;
    const now = this.#jump ?? this.#video.currentTime;
    for (let i = 0; i < (ranges?.length ?? 0); i += 1) {
      if (ranges.start(i) <= now + 0.1 && now <= ranges.end(i)) return ranges.end(i) - now;
    }
    return 0;
  }

  /** Whether the beginning of `chunk` is in memory. */
  holds(chunk) {
    const ranges = this.#buffer?.buffered;
    const at = chunk * this.#chunkSeconds + 0.5 / this.#fps;
    for (let i = 0; i < (ranges?.length ?? 0); i += 1) {
      if (ranges.start(i) <= at && at < ranges.end(i)) return true;
    }
    return false;
  }

  /** Forget everything; the next `begin` opens an empty stage. */
  reset() {
    this.#work = [];
    this.#buffer = null;
    this.#mime = null;
    this.#chunk = -1;
    this.#jump = null;
    this.#ended = false;
    if (this.#source) {
      URL.revokeObjectURL(this.#video.src);
      this.#video.removeAttribute("src");
      this.#video.load();
      this.#source = null;
    }
    this.pace.reset();
  }

  /** What comes now replaces everything from `firstChunk` on. */
  begin({ mime, fps, firstChunk, chunkFrames }, init) {
    this.#fps = fps;
    this.#chunkSeconds = chunkFrames / fps;
    const from = firstChunk * this.#chunkSeconds;
    if (this.#source === null) this.#openSource(mime);
    this.#ended = false;
    this.#work.push({ kind: "remove", from });
    if (mime !== this.#mime) {
      this.#mime = mime;
      this.#work.push({ kind: "type", mime });
    }
    this.#work.push({ kind: "append", bytes: init });
    if (this.#video.currentTime > from) {
      // The last frame before the change stays on the screen until the new ones are there.
      this.seek(Math.max(0, from - 1 / this.#fps));
    } else if (firstChunk > 0 && this.#video.currentTime === 0 && this.end === 0) {
      this.#jump = from;
    }
    this.#next();
  }

  append(bytes) {
    this.#ended = false;
    this.#work.push({ kind: "append", bytes });
    this.#next();
  }

  /** Whether more is being made: decides the pace, and whether the end is the end. */
  expect(more) {
    this.#more = more;
    this.#next();
    this.#tick();
  }

  seek(seconds) {
    this.#jump = null;
    this.#video.currentTime = Math.max(0, seconds);
    this.#chunk = -1;
    this.#tick();
  }

  play() {
    this.#wanted = true;
    this.#tick();
  }

  pause() {
    this.#wanted = false;
    this.#tick();
  }

  /** Play or pause; at the end of a finished video: from the beginning. */
  toggle() {
    const over = !this.#more && this.end > 0 && (this.#video.ended || this.ready < 0.05);
    if (this.#wanted && !over) { this.pause(); return; }
    if (over) this.seek(0);
    this.play();
  }

  #openSource(mime) {
    this.#mime = mime;
    this.#source = new Source();
    const source = this.#source;
    source.addEventListener("sourceopen", () => {
      if (source !== this.#source || this.#buffer) return;
      try {
        this.#buffer = source.addSourceBuffer(mime);
      } catch {
        this.#fail(`this browser cannot play ${mime}`);
        return;
      }
      this.#buffer.addEventListener("updateend", () => this.#next());
      this.#buffer.addEventListener("error", () => this.#fail("a fragment could not be read"));
      this.#next();
    });
    this.#video.src = URL.createObjectURL(source);
  }

  /** Do the next piece of work of the buffer, one at a time, as MediaSource wants it. */
  #next() {
    const buffer = this.#buffer;
    if (!buffer || buffer.updating || this.#source.readyState === "closed") return;
    const job = this.#work[0];
    if (!job) {
      if (!this.#more && !this.#ended && this.end > 0 && this.#source.readyState === "open") {
        this.#ended = true;
        this.#source.endOfStream();
      }
      this.#tick();
      return;
    }
    try {
      if (job.kind === "append") buffer.appendBuffer(job.bytes);
      else if (job.kind === "type") { buffer.changeType(job.mime); this.#done(); return; }
      else if (job.kind === "remove" && this.end > job.from) buffer.remove(job.from, Infinity);
      else if (job.kind === "trim" && job.to > 0) buffer.remove(0, job.to);
      else { this.#done(); return; }
    } catch (error) {
      if (error.name === "QuotaExceededError" && this.#video.currentTime > 4) {
        this.#work.unshift({ kind: "trim", to: this.#video.currentTime - 2 });
        this.#next();
      } else {
        this.#fail(error.message);
      }
      return;
    }
    this.#work.shift();
  }

  #done() {
    this.#work.shift();
    this.#next();
  }

  #tick() {
    const video = this.#video;
    if (!this.#buffer) return;
    if (this.#jump !== null && this.holds(Math.round(this.#jump / this.#chunkSeconds))) this.seek(this.#jump);
    const ready = this.ready;
    const starved = this.#more && ready < 0.08;
    const rate = this.pace.rate(performance.now() / 1000, ready, this.#more);
    if (Math.abs(video.playbackRate - rate) > 0.02 || (rate === 1 && video.playbackRate !== 1)) video.playbackRate = rate;
    if (this.#wanted && video.paused && ready > 0.05) {
      // Of itself a browser would begin again at the beginning.
      if (video.ended) video.currentTime -= 0.5 / this.#fps;
      video.play().catch((error) => { if (error.name === "NotAllowedError") this.pause(); });
    } else if (!this.#wanted && !video.paused) {
      video.pause();
    }
    this.#trim();
    this.dispatchEvent(new Event("time"));
    const { chunk } = this;
    if (chunk !== this.#chunk && ready > 0) {
      this.#chunk = chunk;
      this.dispatchEvent(new CustomEvent("chunk", { detail: chunk }));
    }
    const playing = this.#wanted && !starved && !video.ended;
    const said = `${rate.toFixed(1)} ${starved} ${playing}`;
    if (said !== this.#said) {
      this.#said = said;
      this.dispatchEvent(new CustomEvent("pace", { detail: { rate, starved, playing } }));
    }
  }

  /** An endless stream must not fill the memory of the browser. */
  #trim() {
    const ranges = this.#buffer.buffered;
    if (!ranges.length || this.#work.length || this.#buffer.updating) return;
    const to = this.#video.currentTime - BEHIND;
    if (to - ranges.start(0) > 30) {
      this.#work.push({ kind: "trim", to });
      this.#next();
    }
  }

  #fail(why) {
    if (this.#source === null) return;
    this.dispatchEvent(new CustomEvent("failed", { detail: why ?? "the video could not be played" }));
  }
}
