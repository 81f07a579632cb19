// When the process that makes the video is lost: whether to go on, and what to ask for again.

const LOSSES = ["worker_crashed", "timeout"];
/** Losses without a chunk between them; after these the video itself may be the reason. */
const MOST = 3;

/**
 * Whether a session that was refused may be had a little later: the weights are being read, the process is being
 * replaced, or the server has not noticed yet that the other end of the old connection is gone.
 */
export function retryable(code, resuming) {
  return code === "not_ready" || (resuming && [...LOSSES, "session_active", "queue_full"].includes(code));
}

/** One stage's memory of what was asked for, and how often it failed. */
export class Recovery {
  /** Whether the model is being waited for. */
  active = false;
  /** Code of the last error. */
  failure = null;
  /** What the newest video was started with. */
  request = null;
  /** Chunks that the newest change blends over. */
  transition = 0;
  /** The newest change while it has no answer, `{text, chunk}`: the process may be lost before it gives one. */
  asked = null;
  #losses = 0;

  /** Whether the last error is one to recover from. */
  get possible() { return LOSSES.includes(this.failure) && this.#losses < MOST; }

  /** Seconds until the first attempt; null if there is to be none. */
  begin() {
    if (!this.possible) return null;
    this.active = true;
    this.#losses += 1;
    return this.#losses;
  }

  /** A new chunk: it works again. */
  arrived() { this.#losses = 0; }

  /** The change that came after the state which the session goes on from, or null. */
  missing(take, first) {
    if (this.asked || !this.active) return this.asked;
    const last = take.prompts.at(-1);
    return last && (!last.applied || last.chunk > first) ? last : null;
  }

  /** Whether a take without a state on disk can be made again: the same seed gives the same video. */
  repeatable(take) {
    return this.active && take !== null && Boolean(take.parent ? take.wish : this.request?.seed === take.seed);
  }

  /** The request of a take, with the prompts that were sent meanwhile. */
  repeated(take) {
    const prompts = take.prompts.map(({ chunk, text }) => [chunk, text]);
    return { ...this.request, prompt: prompts.length > 1 ? prompts : this.request.prompt };
  }
}
