// The dots of the ribbon where the scene changes; the one of a change to come can be moved.

import { el } from "./dom.js";
import { short } from "./format.js";

/** Chunks beyond those that are made, in which a change may land. */
const FARTHEST = 40;

/**
 * Dots on the borders of the ribbon. The dot of a change that is not made yet is a slider: drag it, or use
 * the arrow keys, Home and End. Events: "preview" (draw again), "move" (`{take, text, chunk}`).
 */
export class Seams extends EventTarget {
  #lanes;
  #story;
  #player;
  #drag = null;
  #held = false;

  constructor(lanes, story, player) {
    super();
    this.#lanes = lanes;
    this.#story = story;
    this.#player = player;
    lanes.addEventListener("pointermove", (event) => this.#follow(event));
    lanes.addEventListener("pointerup", () => this.#drop(true));
    lanes.addEventListener("pointercancel", () => this.#drop(false));
    lanes.addEventListener("keydown", (event) => this.#key(event));
    for (const name of ["focusin", "pointerdown"]) {
      document.addEventListener(name, (event) => { this.#held = event.target.matches(".seam"); });
    }
  }

  /** The chunk in which a take's change to come is shown: where it lands, or where it is being dragged. */
  place(take) {
    const pending = take.pending;
    if (!pending) return null;
    return this.#drag && take === this.#story.current ? this.#drag.chunk : Math.max(pending.chunk, take.length);
  }

  /** The dot at the beginning of a run; `first` is the chunk of the ribbon's first column. */
  dot(take, run, first) {
    const moves = run.pending && take === this.#story.current;
    const seam = moves ? this.#slider(take, run, first) : el("span", { class: "seam", "aria-hidden": "true" });
    seam.classList.add(`hue-${this.#story.hue(run.text)}`);
    seam.style.gridColumn = String(run.start - first + 1);
    return seam;
  }

  /** All was drawn anew: the focus goes back to the dot that had it. */
  drawn() {
    const seam = this.#lanes.querySelector(".seam[role=slider]");
    if (this.#held && document.activeElement === document.body) seam?.focus({ preventScroll: true });
  }

  #slider(take, run, first) {
    const [low, high] = this.#range(take);
    return el("span", { class: "seam", role: "slider", tabIndex: 0, title: "Drag it to where the change shall land (or ← →)",
      "aria-label": `Where “${short(run.text, 60)}” lands`, "aria-valuemin": String(low + 1), "aria-valuemax": String(high + 1),
      "aria-valuenow": String(run.start + 1), "aria-valuetext": `Chunk ${run.start + 1}`,
      onpointerdown: (event) => this.#grasp(event, take, first) });
  }

  #grasp(event, take, first) {
    if (event.button !== 0) return;
    event.preventDefault();
    event.currentTarget.focus({ preventScroll: true });
    // Not by the dot itself: that is drawn anew whenever a chunk arrives.
    this.#lanes.setPointerCapture(event.pointerId);
    this.#drag = { first, chunk: this.place(take) };
  }

  #follow(event) {
    const take = this.#story.current;
    if (!this.#drag) return;
    if (!take?.pending) { this.#drag = null; return; }
    const ribbon = this.#lanes.querySelector(".lane[data-current=true] .ribbon");
    const { gridAutoColumns, columnGap } = getComputedStyle(ribbon);
    const along = (event.clientX - ribbon.getBoundingClientRect().left) / (parseFloat(gridAutoColumns) + parseFloat(columnGap));
    const chunk = this.#within(take, this.#drag.first + Math.round(along));
    if (chunk === this.#drag.chunk) return;
    this.#drag.chunk = chunk;
    this.dispatchEvent(new Event("preview"));
  }

  #drop(wanted) {
    const [take, drag] = [this.#story.current, this.#drag];
    this.#drag = null;
    if (!drag) return;
    if (wanted && take?.pending) this.#move(take, drag.chunk);
    else this.dispatchEvent(new Event("preview"));
  }

  #key(event) {
    const take = this.#story.current;
    if (!event.target.matches(".seam") || !take?.pending) return;
    const now = this.place(take);
    const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, Home: -Infinity, End: Infinity }[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    this.#move(take, this.#within(take, now + step));
  }

  #move(take, chunk) {
    const { text, chunk: before } = take.pending;
    if (chunk === before) this.dispatchEvent(new Event("preview"));
    else this.dispatchEvent(new CustomEvent("move", { detail: { take, text, chunk } }));
  }

  #within(take, chunk) {
    const [low, high] = this.#range(take);
    return Math.min(Math.max(chunk, low), high);
  }

  /** The first and the last chunk in which a change to come may land. */
  #range(take) {
    const frames = take.settings.num_frames;
    const length = Math.round(this.#player.chunkSeconds * this.#player.fps);
    const last = frames ? Math.ceil(frames / length) - 1 : Infinity;
    // The chunk after those that are there is being made already, unless the change lands in it.
    const soon = take.pending ? Math.max(take.pending.chunk, take.length) : Infinity;
    const low = Math.min(take.length + 1, soon, last);
    return [low, Math.max(low, Math.min(last, take.length + FARTHEST))];
  }
}
