// The prompt bar: what Enter does now, and what was promised for which chunk.

import { $, el, button } from "./dom.js";
import { later, short } from "./format.js";
import { changes } from "./examples.js";

/** Events: "generate", "change", "branch" (`{take, index}` beside), each with `detail.prompt`; "stop"; "extend". */
export class Composer extends EventTarget {
  #director;
  #player;
  #story;
  #settings;
  #branch = null;
  #history = [];
  #back = -1;

  constructor(director, player, story, settings) {
    super();
    this.#director = director;
    this.#player = player;
    this.#story = story;
    this.#settings = settings;
    const prompt = $("prompt");
    $("bar").addEventListener("submit", (event) => { event.preventDefault(); this.send(); });
    prompt.addEventListener("keydown", (event) => this.#key(event));
    prompt.addEventListener("input", () => { this.#grow(); this.update(); });
    $("stop").addEventListener("click", () => this.#tell("stop"));
    $("extend").addEventListener("click", () => this.extend());
    for (const name of ["phase", "note", "arrived", "settings"]) director.addEventListener(name, () => this.update());
    story.addEventListener("change", () => this.update());
    settings.addEventListener("change", () => this.update());
    player.addEventListener("pace", () => this.#notes());
    setInterval(() => this.#notes(), 500);
    this.update();
  }

  get text() { return $("prompt").value.trim(); }

  set text(value) {
    $("prompt").value = value;
    this.#grow();
    this.update();
  }

  /** Ask what should happen instead, from the beginning of a chunk on. */
  branchFrom(take, index) {
    this.#branch = { take, index };
    this.update();
    $("prompt").focus();
    $("prompt").select();
  }

  cancelBranch() {
    const had = this.#branch !== null;
    this.#branch = null;
    this.update();
    return had;
  }

  /** What Enter does now. */
  get intent() {
    if (this.#branch) return "branch";
    return this.#director.busy ? "change" : "generate";
  }

  send() {
    const prompt = this.text;
    if (!prompt) { $("prompt").focus(); return; }
    const intent = this.intent;
    if (intent === "change" && !this.#changeable) return;
    this.#history.push(prompt);
    this.#back = -1;
    const detail = { prompt, ...this.#branch };
    this.#branch = null;
    this.dispatchEvent(new CustomEvent(intent, { detail }));
    this.update();
  }

  extend() {
    const prompt = this.text;
    this.dispatchEvent(new CustomEvent("extend", { detail: { prompt: prompt && prompt !== this.#latest() ? prompt : null } }));
  }

  /** The newest prompt that was sent. */
  #latest() {
    const take = this.#story.current;
    return this.#director.wished ?? take?.prompts.at(-1)?.text ?? this.#director.asked ?? "";
  }

  /** Whether there is a scene to change, and another one written. */
  get #changeable() {
    return this.#director.phase === "making" && this.#director.branching === null && this.text !== this.#latest();
  }

  #key(event) {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      if ((event.ctrlKey || event.metaKey) && this.text) {
        this.#branch = null;
        this.dispatchEvent(new CustomEvent("generate", { detail: { prompt: this.text } }));
      } else {
        this.send();
      }
    } else if ((event.key === "ArrowUp" || event.key === "ArrowDown") && event.altKey && this.#history.length) {
      event.preventDefault();
      const last = this.#history.length - 1;
      const step = event.key === "ArrowUp" ? 1 : -1;
      this.#back = Math.min(Math.max(this.#back + step, 0), last);
      this.text = this.#history[last - this.#back];
    }
  }

  #grow() {
    const prompt = $("prompt");
    prompt.style.height = "auto";
    prompt.style.height = `${Math.min(prompt.scrollHeight, 144)}px`;
  }

  update() {
    const { phase, busy } = this.#director;
    const intent = this.intent;
    const label = { generate: "Generate", change: "Change", branch: "Branch" }[intent];
    $("send").querySelector("span").textContent = label;
    $("send").disabled = !this.text || (intent === "change" && !this.#changeable);
    $("stop").hidden = !busy;
    $("extend").hidden = phase !== "done" || !this.#story.current?.length;
    $("bar").dataset.intent = intent;
    this.#notes();
    this.#hints();
  }

  /** Prompts to change to, while something plays. */
  #hints() {
    const used = (this.#story.current?.prompts ?? []).map((change) => change.text);
    const phase = this.#director.phase;
    const texts = (phase === "making" || phase === "done") && !this.#branch ? changes(this.#settings.small, used) : [];
    const box = $("hints");
    const name = `${phase} ${texts.join("|")}`;
    if (box.dataset.name === name) return;
    box.dataset.name = name;
    box.hidden = texts.length === 0;
    box.replaceChildren(el("span", { class: "dim" }, phase === "making" ? "Change it to" : "Try next"),
      ...texts.map((text) => el("button", { type: "button", class: "chip", onclick: () => { this.text = text; $("prompt").focus(); } }, text)));
  }

  /** What holds now and what is promised. */
  #notes() {
    const take = this.#story.current;
    const box = $("notes");
    const rows = [];
    if (this.#branch) {
      rows.push(el("p", { class: "note branch" }, el("strong", {}, `Branch from chunk ${this.#branch.index + 1}`),
        el("span", {}, "Write what should happen instead, then press Enter."),
        button("close", "Do not branch", () => this.cancelBranch(), { visible: false })));
    } else if (this.#director.branching !== null) {
      rows.push(el("p", { class: "note branch", dataset: { applied: false } }, el("span", { class: "dot", "aria-hidden": "true" }),
        el("strong", {}, `Branching from chunk ${this.#director.branching + 1}`), el("span", { class: "text" }, "It begins when the chunk being made is finished.")));
    } else {
      const { wished } = this.#director;
      const pending = this.#promised(take);
      if (wished !== null && wished !== pending?.text) rows.push(this.#sent(wished));
      else if (pending) rows.push(this.#promise(pending));
    }
    box.hidden = rows.length === 0;
    const name = rows.map((row) => row.textContent).join("|");
    if (box.dataset.name === name) return;
    box.dataset.name = name;
    box.replaceChildren(...rows);
  }

  /** The change that is not on the screen yet: accepted or already made. */
  #promised(take) {
    if (!take) return null;
    const now = this.#player.time / this.#player.chunkSeconds;
    const busy = this.#director.busy;
    return take.prompts.filter((change) => change.chunk > Math.max(0, take.from - 1) && change.chunk > now + 1e-3)
      .findLast((change) => change.applied || busy) ?? null;
  }

  #promise(change) {
    const take = this.#story.current;
    const seconds = this.#untilSeen(change.chunk, take);
    const when = Number.isFinite(seconds) ? later(seconds) : "";
    return el("p", { class: `note hue-${this.#story.hue(change.text)}`, dataset: { applied: change.applied } },
      el("span", { class: "dot", "aria-hidden": "true" }),
      el("strong", {}, `Lands in chunk ${change.chunk + 1}`),
      el("span", { class: "text" }, `“${short(change.text, 70)}”`),
      el("span", { class: "when" }, when));
  }

  /** A change that the server has not answered: the model looks up between two steps. */
  #sent(text) {
    return el("p", { class: `note hue-${this.#story.hue(text)}`, dataset: { applied: false } },
      el("span", { class: "dot", "aria-hidden": "true" }),
      el("strong", {}, "On its way"), el("span", { class: "text" }, `“${short(text, 70)}”`));
  }

  /** Seconds until the beginning of a chunk is on the screen, by the present pace. */
  #untilSeen(chunk, take) {
    const { pace, chunkSeconds, time } = this.#player;
    const now = performance.now() / 1000;
    const playing = chunk * chunkSeconds - time;
    if (chunk < take.length || pace.chunkSeconds === null) return chunk < take.length ? playing / Math.max(pace.rate(now, this.#player.ready, true), 0.1) : Infinity;
    const making = pace.until(now) + (chunk - take.length) * pace.chunkSeconds;
    return Math.max(playing, making);
  }

  #tell(name) { this.dispatchEvent(new Event(name)); }
}
