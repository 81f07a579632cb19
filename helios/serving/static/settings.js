// The settings panel: what a video starts from, how long, how fine, which model and adapters.

import { $, el, button, memory, banner, announce } from "./dom.js";
import { get, upload, address } from "./api.js";
import { embedded } from "./embedded.js";

const LENGTHS = [["5", "5 s"], ["10", "10 s"], ["30", "30 s"], ["", "Until I stop"]];
/** Share of the checkpoint's own denoising steps. */
const DETAILS = [["quick", "Quick", 0.25], ["fine", "Fine", 0.5], ["full", "Full", 1]];
const TRANSITIONS = [["0", "At once"], ["3", "Over 3 chunks"]];

/** Denoising steps of a level of detail: a number, or one per scale. */
export function stepsFor(own, share) {
  const part = (count, least) => Math.min(count, Math.max(least, Math.round(count * share)));
  return Array.isArray(own) ? own.map((count) => part(count, 1)) : part(own, 4);
}

/** Steps as a person writes them: "6", or "2, 2, 2" for three scales; null if they do not fit. */
export function stepsOf(text, scales) {
  const counts = text.split(",").map((part) => Number(part.trim()));
  if (!text.trim() || counts.length !== scales || counts.some((n) => !Number.isInteger(n) || n < 1 || n > 100)) return null;
  return scales === 1 ? counts[0] : counts;
}

/** Events: "change"; "start" when an image or a video was put in or taken out; "prompt" (`detail`: text). */
export class Settings extends EventTarget {
  models = [];
  start = null;
  #values = { length: "", detail: null, transition: "0", seed: "", model: null, motion: 0.5, loras: {},
    size: "", guidance: "", steps: "", negative: "", anti_drift: false, ...memory.get("settings") };
  #loras = [];

  async load() {
    const [models, loras] = await Promise.all([get("v1/models"), get("v1/loras").catch(() => ({ data: [] }))]);
    this.models = models.data ?? [];
    this.#loras = (loras.data ?? []).map((entry) => (typeof entry === "string" ? { name: entry } : entry));
    if (!this.models.some((model) => model.id === this.#values.model)) this.#values.model = this.models[0]?.id ?? null;
    this.#draw();
    this.#changed();
  }

  get model() { return this.models.find((model) => model.id === this.#values.model) ?? this.models[0] ?? null; }
  get defaults() { return this.model?.defaults ?? {}; }
  /** Whether this is the bundled model, whose world is a list of words. */
  get small() { return this.model?.id === "tiny"; }
  get transition() { return Number(this.#values.transition); }
  get seconds() { return this.#values.length === "" ? null : Number(this.#values.length); }

  /** The levels that differ: few steps have no quarter and no half. */
  get #details() {
    const steps = DETAILS.map(([, , share]) => JSON.stringify(stepsFor(this.defaults.plan.steps, share)));
    return DETAILS.filter((_, i) => steps.indexOf(steps[i]) === i);
  }

  get #detail() {
    // A CPU shows something soon only with few steps; a GPU makes what the checkpoint is meant for.
    const wanted = this.#values.detail ?? (String(this.model?.device ?? "").startsWith("cpu") ? "quick" : "full");
    const at = DETAILS.findIndex(([name]) => name === wanted);
    return this.#details.findLast(([name]) => DETAILS.findIndex(([other]) => other === name) <= at)?.[0] ?? "quick";
  }

  get steps() {
    const own = this.defaults.plan?.steps;
    if (own === undefined) return null;
    const written = stepsOf(this.#values.steps, Array.isArray(own) ? own.length : 1);
    if (written !== null) return written;
    return stepsFor(own, DETAILS.find(([name]) => name === this.#detail)[2]);
  }

  get loras() {
    return Object.entries(this.#values.loras).filter(([name]) => this.#loras.some((one) => one.name === name))
      .map(([name, scale]) => ({ name, scale }));
  }

  /** The fields of a new session. */
  request(prompt) {
    const values = this.#values;
    const request = { prompt, model: this.model?.id, seed: values.seed === "" ? Math.floor(Math.random() * 2 ** 31) : Number(values.seed) };
    if (values.length !== "") request.seconds = Number(values.length);
    if (this.steps !== null && JSON.stringify(this.steps) !== JSON.stringify(this.defaults.plan.steps)) request.steps = this.steps;
    if (values.size) request.size = values.size;
    if (values.guidance !== "" && !this.defaults.distilled) request.guidance_scale = Number(values.guidance);
    if (values.negative.trim()) request.negative_prompt = values.negative.trim();
    if (values.anti_drift) request.anti_drift = true;
    if (this.loras.length) request.loras = this.loras;
    if (this.start) {
      request.input_reference = this.start.reference;
      request.motion = Number(values.motion);
    }
    if (request.model === undefined) delete request.model;
    return request;
  }

  /** Take over the settings of a finished video. */
  adopt(settings) {
    const values = this.#values;
    if (Number.isSafeInteger(settings.seed)) values.seed = String(settings.seed);
    if (settings.height && settings.width && this.#sizes().some(([size]) => size === `${settings.width}x${settings.height}`)) {
      values.size = `${settings.width}x${settings.height}`;
    }
    if (settings.negative_prompt !== undefined) values.negative = settings.negative_prompt ?? "";
    const scale = settings.guidance_scale ?? settings.guidance?.scale;
    if (scale !== undefined && scale !== null) values.guidance = String(scale);
    const steps = JSON.stringify(settings.steps ?? settings.plan?.steps);
    const level = DETAILS.find(([, , share]) => this.defaults.plan && JSON.stringify(stepsFor(this.defaults.plan.steps, share)) === steps);
    values.steps = "";
    if (level) values.detail = level[0];
    else if (steps) values.steps = JSON.parse(steps).toString();
    if (settings.motion !== undefined && settings.motion !== null) values.motion = settings.motion;
    this.#draw();
    this.#changed();
    const prompt = typeof settings.prompt === "string" ? settings.prompt : settings.prompt?.[0]?.[1];
    if (prompt) this.dispatchEvent(new CustomEvent("prompt", { detail: prompt }));
  }

  /** Put in a file that was dropped or chosen. */
  async take(file) {
    banner("");
    const settings = await embedded(file);
    const before = this.start;
    this.start = { name: file.name, busy: true };
    this.#draw();
    try {
      const sent = await upload("v1/uploads", file);
      this.start = { name: file.name, kind: sent.kind, reference: { file_id: sent.id }, settings,
        picture: sent.kind === "image" ? URL.createObjectURL(file) : null,
        size: `${sent.width} × ${sent.height}${sent.frames > 1 ? `, ${sent.frames} frames` : ""}` };
      announce(`Starts from ${file.name}`);
    } catch (error) {
      this.start = before?.busy ? null : before;
      banner(error.message);
    }
    this.#draw();
    this.dispatchEvent(new Event("start"));
  }

  /** Start from a result of the library. */
  async from(reference, name, thumbnail) {
    this.start = { name, kind: "video", reference, settings: null,
      picture: thumbnail ? await address(thumbnail).catch(() => null) : null, size: "from the library" };
    this.#draw();
    this.dispatchEvent(new Event("start"));
  }

  clearStart() {
    this.start = null;
    this.#draw();
    this.dispatchEvent(new Event("start"));
  }

  #set(name, value) {
    this.#values[name] = value;
    this.#changed();
  }

  #changed() {
    memory.set("settings", this.#values);
    this.dispatchEvent(new Event("change"));
  }

  #sizes() {
    const { height, width } = this.defaults;
    if (!height) return [];
    const multiple = this.model.size_multiple ?? 64;
    const near = (pixels) => Math.max(128, Math.round(pixels / multiple) * multiple);
    const sizes = new Map([[`${width}x${height}`, `${width} × ${height}`]]);
    for (const [w, h] of [[height, width], [Math.sqrt(width * height), Math.sqrt(width * height)]]) {
      const size = `${near(w)}x${near(h)}`;
      if (!sizes.has(size)) sizes.set(size, `${near(w)} × ${near(h)} (experimental)`);
    }
    return [...sizes];
  }

  // ------------------------------------------------------------------------------- drawing

  #draw() {
    const open = $("setup-body").querySelector("details")?.open ?? false;
    const active = document.activeElement?.id;
    $("setup-body").replaceChildren(
      this.#startBox(),
      this.#choice("length", "Length", LENGTHS),
      this.defaults.plan ? this.#choice("detail", "Detail", this.#details, this.#detail, this.#detailNote()) : "",
      this.#choice("transition", "A new prompt arrives", TRANSITIONS),
      this.#seed(),
      this.#modelBox(),
      this.#lorasBox(),
      this.#more(open),
    );
    if (active) $(active)?.focus();
  }

  #detailNote() {
    const steps = this.steps;
    return `${Array.isArray(steps) ? steps.join(" + ") : steps} denoising steps a chunk. Fewer are quicker, more are cleaner.`;
  }

  #group(label, ...children) {
    return el("fieldset", { class: "group" }, el("legend", {}, label), ...children);
  }

  #choice(name, label, options, value = this.#values[name], note = null) {
    const choose = (key) => { this.#set(name, key); this.#draw(); };
    return this.#group(label, el("div", { class: "segments" }, options.map(([key, text]) => {
      const id = `${name}-${key || "endless"}`;
      return el("label", { for: id }, el("input", { type: "radio", name, id, value: key, checked: key === value, onchange: () => choose(key) }), el("span", {}, text));
    })), note ? el("p", { class: "dim" }, note) : null);
  }

  #startBox() {
    const start = this.start;
    if (!start) {
      return this.#group("Start from", el("button", { type: "button", id: "pick", class: "dropzone", onclick: () => $("file").click() },
        el("strong", {}, "An image or a video"), el("span", { class: "dim" }, "Drop it anywhere, or choose a file. Nothing: from the prompt alone.")));
    }
    const card = el("div", { class: "start-card" },
      start.picture ? el("img", { src: start.picture, alt: "" }) : el("span", { class: "film", "aria-hidden": "true" }),
      el("div", {}, el("strong", {}, start.name), el("span", { class: "dim" }, start.busy ? "Sending…" : start.size)),
      button("close", "Start from the prompt alone", () => this.clearStart(), { visible: false }));
    const adopt = start.settings ? el("button", { type: "button", class: "link", onclick: () => this.adopt(start.settings) }, "Use the settings stored in this file") : null;
    return this.#group("Start from", card, adopt, this.#range("motion", "Motion", "Stay close to it", "Move freely"));
  }

  #range(name, label, low, high) {
    const input = el("input", { type: "range", id: name, min: 0, max: 1, step: 0.05, value: this.#values[name],
      oninput: (event) => this.#set(name, Number(event.target.value)) });
    return el("div", { class: "range" }, el("label", { for: name }, label), input,
      el("p", { class: "ends dim", "aria-hidden": "true" }, el("span", {}, low), el("span", {}, high)));
  }

  #seed() {
    return this.#group("Seed", el("div", { class: "seed" },
      el("input", { id: "seed", type: "number", min: 0, max: Number.MAX_SAFE_INTEGER, step: 1, inputMode: "numeric", placeholder: "A new one each time",
        "aria-label": "Seed", value: this.#values.seed, onchange: (event) => {
          const seed = Number(event.target.value);
          const good = event.target.value !== "" && Number.isSafeInteger(seed) && seed >= 0;
          this.#set("seed", good ? String(seed) : "");
          event.target.value = this.#values.seed;
        } }),
      button("dice", "A new seed each time", () => { this.#set("seed", ""); $("seed").value = ""; }, { visible: false })));
  }

  #modelBox() {
    const select = el("select", { id: "model", "aria-label": "Model", onchange: (event) => { this.#set("model", event.target.value); this.#draw(); } },
      this.models.map((model) => el("option", { value: model.id, selected: model === this.model }, model.id)));
    const device = this.model?.device ? [this.model.device.replace(/^cpu$/, "CPU").replace(/^cuda:?/, "GPU ").trim(), this.model.dtype].filter(Boolean).join(", ") : null;
    return this.#group("Model", select, device ? el("p", { class: "dim" }, device) : null);
  }

  #lorasBox() {
    const chips = this.#loras.map(({ name }) => {
      const scale = this.#values.loras[name];
      const on = scale !== undefined;
      const toggle = () => {
        const loras = { ...this.#values.loras };
        if (on) delete loras[name]; else loras[name] = 1;
        this.#set("loras", loras);
        this.#draw();
        this.dispatchEvent(new Event("loras"));
      };
      return el("div", { class: "lora", dataset: { on } },
        el("button", { type: "button", id: `lora-${name}`, class: "chip", "aria-pressed": String(on), onclick: toggle }, name),
        on ? el("input", { type: "number", step: 0.1, min: -10, max: 10, value: scale, "aria-label": `Weight of ${name}`, onchange: (event) => {
          const value = Number(event.target.value);
          this.#set("loras", { ...this.#values.loras, [name]: Number.isFinite(value) ? value : 1 });
          this.dispatchEvent(new Event("loras"));
        } }) : null);
    });
    if (!chips.length) return "";
    return this.#group("Adapters (LoRA)", el("div", { class: "chips" }, chips));
  }

  #more(open) {
    const values = this.#values;
    const own = this.defaults.guidance?.scale;
    const scales = this.model?.scales ?? 1;
    const wrong = values.steps.trim() !== "" && stepsOf(values.steps, scales) === null;
    return el("details", { class: "more", open }, el("summary", {}, "More"),
      el("label", { for: "size" }, "Size"),
      el("select", { id: "size", onchange: (event) => this.#set("size", event.target.value) },
        this.#sizes().map(([size, text], i) => el("option", { value: i ? size : "", selected: values.size === size }, text))),
      el("label", { for: "guidance" }, "Guidance"),
      el("input", { id: "guidance", type: "number", min: 0, max: 20, step: 0.5, value: this.defaults.distilled ? "" : values.guidance,
        disabled: Boolean(this.defaults.distilled),
        placeholder: this.defaults.distilled ? "None: a distilled model" : own === undefined ? "The model's own" : `The model's own: ${own}`,
        onchange: (event) => this.#set("guidance", event.target.value) }),
      el("label", { for: "steps" }, "Denoising steps"),
      el("input", { id: "steps", type: "text", inputMode: "numeric", value: values.steps, placeholder: "As Detail says", onchange: (event) => {
        this.#set("steps", event.target.value);
        this.#draw();
      }, "aria-invalid": String(wrong), "aria-describedby": "steps-wrong" }),
      el("p", { id: "steps-wrong", class: "wrong", hidden: !wrong }, `Not used: ${scales === 1 ? "one number" : `${scales} numbers with commas`} from 1 to 100, please.`),
      el("label", { for: "negative" }, "What it should not show"),
      el("textarea", { id: "negative", rows: 2, maxLength: 4096, value: values.negative, onchange: (event) => this.#set("negative", event.target.value) }),
      el("label", { class: "check" }, el("input", { type: "checkbox", id: "drift", checked: values.anti_drift, onchange: (event) => this.#set("anti_drift", event.target.checked) }), "Hold colours and contrast on long videos"));
  }
}
