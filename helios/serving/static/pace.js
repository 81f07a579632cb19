// How fast to play so that the picture never runs dry while more is being made.

/** Slowest playback: below it the picture waits between chunks instead. */
export const SLOWEST = 0.125;
/** Share of a chunk's making time kept in hand, for chunks that come late. */
const SLACK = 0.15;
const WEIGHT = 0.4;

/** Learns from arrivals how long a chunk takes, and says the rate to play at. */
export class Pace {
  #seconds = null;
  #arrived = null;

  /** Seconds from one chunk to the next, as far as known. */
  get chunkSeconds() { return this.#seconds; }

  /** Forget the rhythm: another model, another stream. */
  reset() {
    this.#seconds = null;
    this.#arrived = null;
  }

  /** Generation begins, or went on after a rest: the time until now tells nothing. */
  restart(now) { this.#arrived = now; }

  /**
   * A chunk came. `held`: it could have come earlier but was not asked for (enough lay ready),
   * so only what the server measured counts.
   */
  arrive(now, measured = null, held = false) {
    const waited = this.#arrived === null ? null : now - this.#arrived;
    this.#arrived = now;
    let seconds = waited ?? measured;
    if (held) seconds = measured ?? this.#seconds;
    if (!seconds || seconds <= 0) return;
    this.#seconds = this.#seconds === null ? seconds : this.#seconds + WEIGHT * (seconds - this.#seconds);
  }

  /** Seconds until the next chunk is expected. */
  until(now) {
    if (this.#seconds === null) return 0;
    const since = this.#arrived === null ? 0 : now - this.#arrived;
    return Math.max(this.#seconds - since, 0.1 * this.#seconds);
  }

  /**
   * The playback rate that uses up `ready` seconds of media just as the next chunk comes; 1 if
   * that is sooner than it can be watched, or if nothing more is coming.
   */
  rate(now, ready, more) {
    if (!more || this.#seconds === null) return 1;
    const rate = ready / (this.until(now) + SLACK * this.#seconds);
    return Math.min(1, Math.max(SLOWEST, rate));
  }
}
