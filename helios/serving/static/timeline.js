// The tree of takes as lanes of tiles: a thumbnail per chunk under a ribbon of prompts.

import { el, $, button, announce } from "./dom.js";
import { clock, plural, short } from "./format.js";
import { Seams } from "./seams.js";
import { PICTURES } from "./story.js";

/**
 * Events: "seek" (`{take, index}`), "branch", "reroll", "keep" (the same), "move" (`{take, text, chunk}`: a
 * change to come shall land elsewhere).
 */
export class Timeline extends EventTarget {
  #story;
  #player;
  #seams;
  #tiles = new Map();
  #chosen = null;
  #drawn = false;
  #follow = true;

  constructor(story, player) {
    super();
    this.#story = story;
    this.#player = player;
    story.addEventListener("change", () => this.#soon());
    player.addEventListener("chunk", () => this.#mark());
    player.addEventListener("time", () => this.#head());
    $("lanes").addEventListener("keydown", (event) => this.#keys(event));
    this.#seams = new Seams($("lanes"), story, player);
    this.#seams.addEventListener("preview", () => this.#draw());
    this.#seams.addEventListener("move", ({ detail }) => this.dispatchEvent(new CustomEvent("move", { detail })));
    this.#acts();
  }

  /** The chunk that a shortcut is about: the chosen one, or the one that plays. */
  get target() {
    if (this.#chosen && this.#story.takes.get(this.#chosen.take.id) === this.#chosen.take) return this.#chosen;
    const take = this.#story.current;
    if (!take?.length) return null;
    const index = Math.min(this.#player.chunk, take.length - 1);
    return { take, index };
  }

  choose(take, index, focus = false) {
    this.#chosen = take && index < take.length ? { take, index } : null;
    this.#mark();
    if (focus && this.#chosen) this.#tile(take, index)?.focus();
  }

  #tile(take, index) { return this.#tiles.get(`${take.owner(index).id} ${index}`); }

  /** Draw again, soon: something beside the story changed. */
  refresh() { this.#soon(); }

  #soon() {
    if (this.#drawn) return;
    this.#drawn = true;
    requestAnimationFrame(() => { this.#drawn = false; this.#draw(); });
  }

  #draw() {
    const takes = [...this.#story.takes.values()];
    // Its place is taken from the beginning, so that nothing moves when the first chunk comes.
    $("strip").hidden = document.body.dataset.phase === "empty";
    const focused = document.activeElement?.dataset?.tile;
    const lanes = takes.map((take) => this.#lane(take, takes.length > 1));
    const keep = new Set(takes.flatMap((take) => take.chunks.slice(this.#first(take) - take.from).map((chunk) => `${take.id} ${chunk.index}`)));
    for (const name of this.#tiles.keys()) if (!keep.has(name)) this.#tiles.delete(name);
    if (!lanes.length) lanes.push(el("div", { class: "lane" }, el("div", { class: "ribbon" }), el("div", { class: "tiles" }, coming(1))));
    $("lanes").replaceChildren(...lanes, el("span", { id: "head", class: "head", hidden: true, "aria-hidden": "true" }));
    $("lanes").dataset.many = takes.length > 1;
    if (focused) this.#tiles.get(focused)?.focus({ preventScroll: true });
    this.#seams.drawn();
    this.#mark();
  }

  #lane(take, many) {
    const current = take === this.#story.current;
    const first = this.#first(take);
    const lane = el("div", { class: "lane", dataset: { current, from: take.from },
      role: "group", "aria-label": this.#laneName(take) });
    lane.style.setProperty("--from", many ? first : 0);
    if (many && take.parent) lane.append(el("span", { class: "joint", "aria-hidden": "true" }));
    lane.append(this.#ribbon(take, first), el("div", { class: "tiles" },
      take.chunks.slice(first - take.from).map((chunk) => this.#build(take, chunk)),
      this.#coming(take)));
    return lane;
  }

  /** Places of the chunks to come, as far as something is promised for them. */
  #coming(take) {
    if (take !== this.#story.current || take.done !== null) return [];
    const count = Math.max(1, (this.#seams.place(take) ?? 0) + 1 - take.length);
    return coming(Math.min(count, 40));
  }

  #laneName(take) {
    const kind = take.parent ? `Branch from chunk ${take.from + 1}` : "First take";
    return `${kind}, ${plural(take.chunks.length, "chunk")}${take === this.#story.current ? ", current" : ""}`;
  }

  /** The first chunk that has a tile: very long takes show their newest part. */
  #first(take) { return Math.max(take.from, take.length - PICTURES); }

  #ribbon(take, first) {
    const runs = [];
    for (let index = first; index < take.length; index += 1) {
      const text = take.promptAt(index);
      const last = runs.at(-1);
      if (last && last.text === text) last.count += 1;
      else runs.push({ text, start: index, count: 1 });
    }
    const pending = take.pending;
    if (pending) runs.push({ text: pending.text, start: this.#seams.place(take), count: 2, pending: true });
    return el("div", { class: "ribbon" }, runs.flatMap((run) => {
      const piece = el("span", { class: `run hue-${this.#story.hue(run.text)}`, dataset: { pending: Boolean(run.pending) },
        title: run.text }, el("span", {}, run.text));
      piece.style.gridColumn = `${run.start - first + 1} / span ${run.count}`;
      // What a take begins with is no change, unless it is a branch.
      return run.start > first || (take.parent && run.start === take.from) ? [piece, this.#seams.dot(take, run, first)] : piece;
    }));
  }

  /** The tile of a chunk; made once, so that pictures and focus stay. */
  #build(take, chunk) {
    const name = `${take.id} ${chunk.index}`;
    let tile = this.#tiles.get(name);
    if (!tile || tile.chunk !== chunk) {
      tile = el("button", { type: "button", class: "tile", tabIndex: -1, dataset: { tile: name },
        "aria-label": `Chunk ${chunk.index + 1}, ${clock(chunk.start / this.#player.fps)}: ${short(chunk.prompt ?? "", 80)}`,
        onclick: () => this.#pick(take, chunk.index) },
      chunk.thumbnail ? el("img", { src: chunk.thumbnail, alt: "", draggable: false }) : null,
      el("span", { class: "number" }, String(chunk.index + 1)));
      tile.chunk = chunk;
      this.#tiles.set(name, tile);
    }
    return tile;
  }

  #pick(take, index) {
    this.choose(take, index);
    this.#say("seek");
  }

  #mark() {
    const target = this.#chosen;
    const current = this.#story.current;
    const playing = current ? this.#player.chunk : -1;
    const on = current && playing < current.length ? this.#tile(current, playing) : null;
    const chosen = target ? this.#tile(target.take, target.index) : null;
    const path = current ? new Set(Array.from({ length: current.length }, (_, i) => this.#tile(current, i))) : new Set();
    const stop = chosen ?? on ?? this.#tiles.values().next().value;
    for (const tile of this.#tiles.values()) {
      tile.dataset.playing = tile === on;
      tile.dataset.path = path.has(tile);
      tile.setAttribute("aria-pressed", String(tile === chosen));
      tile.tabIndex = tile === stop ? 0 : -1;
      if (tile === on) tile.setAttribute("aria-current", "true");
      else tile.removeAttribute("aria-current");
    }
    if (on && this.#follow && !$("lanes").contains(document.activeElement)) this.#reveal(on);
    this.#acts();
    this.#head();
  }

  #reveal(tile) {
    const box = $("lanes");
    const [x, y] = place(tile);
    const left = x - box.clientWidth * 0.6;
    // Many takes scroll within the strip, ribbons included.
    const seen = y - 28 >= box.scrollTop && y + tile.offsetHeight <= box.scrollTop + box.clientHeight;
    if (Math.abs(box.scrollLeft - left) > tile.offsetWidth || !seen) {
      const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
      box.scrollTo({ left, top: seen ? box.scrollTop : y - 28, behavior: calm ? "auto" : "smooth" });
    }
  }

  /** Move the playhead. */
  #head() {
    const head = $("head");
    const take = this.#story.current;
    if (!head || !take?.length) return;
    const at = this.#player.time / this.#player.chunkSeconds;
    const index = Math.min(Math.floor(at + 1e-3), take.length - 1);
    const tile = this.#tile(take, index);
    if (!tile) return;
    const part = Math.min(Math.max(at - index, 0), 1);
    const [left, top] = place(tile);
    head.style.transform = `translate(${left + part * tile.offsetWidth}px, ${top}px)`;
    head.style.height = `${tile.offsetHeight}px`;
    head.hidden = false;
  }

  #acts() {
    const chosen = this.#chosen;
    const box = $("acts");
    const name = chosen ? `${chosen.take.id} ${chosen.index} ${this.#branchable(chosen)}` : "none";
    if (box.dataset.name === name) return;
    box.dataset.name = name;
    if (!chosen) {
      box.replaceChildren(el("p", { class: "dim" }, "Choose a chunk to branch, re-roll or keep it."));
      return;
    }
    const can = this.#branchable(chosen);
    const why = can ? undefined : "Too far back: the server no longer keeps this point";
    box.replaceChildren(
      el("p", { class: "dim" }, `Chunk ${chosen.index + 1}`),
      button("branch", "Branch", () => this.#say("branch"), { "aria-keyshortcuts": "b", disabled: !can, title: why ?? "Go on differently from here (B)" }),
      button("dice", "Re-roll", () => this.#say("reroll"), { "aria-keyshortcuts": "r", disabled: !can, title: why ?? "Make this and what follows again with another seed (R)" }),
      button("pin", "Keep", () => this.#say("keep"), { disabled: !can, "aria-keyshortcuts": "k", title: why ?? "Keep this point on disk (K)" }),
    );
  }

  #branchable({ take, index }) {
    return !take.kept || (index >= take.kept[0] && index <= take.kept[1]) || take.states.includes(index);
  }

  #say(kind) {
    if (this.#chosen) this.dispatchEvent(new CustomEvent(kind, { detail: this.#chosen }));
  }

  #keys(event) {
    const name = event.target.dataset?.tile;
    if (!name) return;
    const [id, number] = name.split(" ");
    const take = this.#story.takes.get(id);
    const index = Number(number);
    const takes = [...this.#story.takes.values()];
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const jump = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    let next = null;
    if (step) next = this.#neighbour(take, index + step);
    else if (event.key === "Home") next = this.#neighbour(this.#story.current, 0);
    else if (event.key === "End") next = this.#neighbour(this.#story.current, this.#story.current.length - 1);
    else if (jump) {
      for (let i = takes.indexOf(take) + jump; i >= 0 && i < takes.length && !next; i += jump) {
        if (takes[i].chunks.length) {
          next = this.#neighbour(takes[i], Math.min(Math.max(index, takes[i].from), takes[i].length - 1));
        }
      }
    } else return;
    event.preventDefault();
    event.stopPropagation();
    if (!next) return;
    this.choose(next.take, next.index, true);
    announce(`Chunk ${next.index + 1}`);
  }

  /** A chunk as a pair, on the current path where it belongs to it. */
  #neighbour(take, index) {
    if (index < 0 || index >= take.length) return null;
    const current = this.#story.current;
    const along = current && index < current.length && current.owner(index) === take.owner(index) ? current : take;
    return { take: along, index };
  }
}

const coming = (count) => Array.from({ length: count }, () => el("span", { class: "coming", "aria-hidden": "true" }));

/** Where a tile lies in the box that scrolls. */
function place(tile) {
  const box = $("lanes");
  const [inner, outer] = [tile.getBoundingClientRect(), box.getBoundingClientRect()];
  return [inner.left - outer.left + box.scrollLeft, inner.top - outer.top + box.scrollTop];
}
