// What this page knows of the takes: a tree of sessions, each with its chunks and prompts.

const HUES = 6;
/** Newest chunks of a take whose thumbnails are kept. */
export const PICTURES = 300;

/** One session: chunks from `from` on are its own, earlier ones are those of its parent. */
export class Take {
  constructor({ id, parent = null, from = 0, settings = {}, prompts = [] }) {
    this.id = id;
    this.parent = parent;
    this.from = from;
    this.settings = settings;
    this.chunks = [];
    this.prompts = prompts;
    this.done = null;
    /** Chunks to branch from: the first and the last in the server's memory, and those on its disk. */
    this.kept = null;
    this.states = [];
    this.seed = settings.seed ?? null;
    /** How a branch was asked for. */
    this.wish = null;
  }

  /** The chunk with this index: its own or inherited. */
  chunk(index) { return index < this.from ? this.parent?.chunk(index) : this.chunks[index - this.from]; }

  /** Number of chunks, inherited ones included. */
  get length() { return this.from + this.chunks.length; }

  /** Seconds of video. */
  seconds(fps) {
    const last = this.chunk(this.length - 1);
    return last ? (last.start + last.frames) / fps : 0;
  }

  /** The take whose lane shows the chunk. */
  owner(index) { return index < this.from && this.parent ? this.parent.owner(index) : this; }

  /** The prompt that holds at a chunk, by what was sent and applied. */
  promptAt(index) {
    const made = this.chunk(index)?.prompt;
    if (made) return made;
    let text = "";
    for (const change of this.prompts) if (change.chunk <= index) text = change.text;
    return text;
  }

  /** A prompt that is accepted and not yet used. */
  get pending() { return this.prompts.find((change) => !change.applied) ?? null; }
}

/** All takes that belong together; "change" events tell the timeline to draw. */
export class Story extends EventTarget {
  takes = new Map();
  current = null;
  #hues = new Map();

  /** A colour class for a prompt, the same wherever it appears. */
  hue(text) {
    if (!this.#hues.has(text)) this.#hues.set(text, this.#hues.size % HUES);
    return this.#hues.get(text);
  }

  clear() {
    this.takes.clear();
    this.#hues.clear();
    this.current = null;
    this.changed();
  }

  /** A take, new or known, that becomes the current one. */
  open(values) {
    let take = this.takes.get(values.id);
    if (!take) {
      take = new Take(values);
      this.takes.set(take.id, take);
    } else if (values.settings) {
      take.settings = values.settings;
    }
    this.current = take;
    this.changed();
    return take;
  }

  /** What comes replaces the own chunks of `take` from `index` on. */
  cut(take, index) {
    take.chunks.length = Math.min(take.chunks.length, Math.max(0, index - take.from));
    this.changed();
  }

  /** A session told its settings: a new take, or a known one taken up again. */
  created(message, prompt) {
    const settings = message.settings ?? {};
    const prompts = prompt ? track(prompt) : [];
    const take = this.open({ id: message.session, settings, prompts });
    if (!take.prompts.length) take.prompts = prompts;
    take.seed = settings.seed ?? take.seed;
    take.done = null;
    take.states = message.kept ?? [];
    return take;
  }

  /** A take that goes on differently; `prompt` is what it shows from there on, if that is new. */
  branch(message, prompt) {
    const parent = this.takes.get(message.parent) ?? null;
    const settings = { ...(parent?.settings ?? {}) };
    if (message.seed !== undefined && message.seed !== null) settings.seed = message.seed;
    // Without a prompt of its own it repeats what was asked for, also what is still to come.
    const prompts = (parent?.prompts ?? []).filter((change) => !prompt || (change.applied && change.chunk < message.chunk))
      .map((change) => ({ ...change }));
    if (prompt) prompts.push({ chunk: message.chunk, text: prompt, applied: true });
    return this.open({ id: message.session, parent, from: message.chunk, settings, prompts });
  }

  /** Forget a branch; its parent becomes the current take. */
  drop(take) {
    this.takes.delete(take.id);
    this.current = take.parent;
    this.changed();
  }

  /** A prompt was accepted for a chunk to come. */
  promise(take, { chunk, prompt }) {
    take.prompts = take.prompts.filter((change) => change.applied);
    take.prompts.push({ chunk, text: prompt, applied: false });
    this.changed();
  }

  /** The chunk that shows it is made. */
  keepPromise(take, { chunk, prompt }) {
    take.prompts = take.prompts.filter((change) => change.applied && change.chunk < chunk);
    take.prompts.push({ chunk, text: prompt, applied: true });
    this.changed();
  }

  /** A newer prompt came first. */
  withdraw(take, prompt) {
    take.prompts = take.prompts.filter((change) => change.applied || change.text !== prompt);
    this.changed();
  }

  /** A chunk arrived. */
  add(take, message) {
    const { thumbnail } = message;
    const chunk = { index: message.chunk, start: message.start_frame, frames: message.frames,
      prompt: typeof message.prompt === "string" ? message.prompt : take.promptAt(message.chunk),
      thumbnail: typeof thumbnail === "string" && thumbnail.startsWith("data:image/") ? thumbnail : null };
    if (chunk.index >= take.from) take.chunks[chunk.index - take.from] = chunk;
    // An endless stream must not keep a picture of every chunk.
    const old = take.chunks[take.chunks.length - 1 - PICTURES];
    if (old?.thumbnail) old.thumbnail = null;
    this.changed();
  }

  /** How many leading chunks two takes share. */
  shared(one, other) {
    if (!one || !other) return 0;
    let count = 0;
    const most = Math.min(one.length, other.length);
    while (count < most && one.chunk(count) === other.chunk(count)) count += 1;
    return count;
  }

  changed() { this.dispatchEvent(new Event("change")); }
}

/** A prompt, or a list of `[chunk, text]`, as changes. */
function track(prompt) {
  if (typeof prompt === "string") return [{ chunk: 0, text: prompt, applied: true }];
  return prompt.map(([chunk, text]) => ({ chunk, text, applied: true }));
}
