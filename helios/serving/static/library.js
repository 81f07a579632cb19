// Results with their settings: sessions of the studio and files made through the API.

import { $, el, button, banner, confirm, announce } from "./dom.js";
import { get, remove, upload, address, download, ApiError } from "./api.js";
import { ago, bytes, clock, plural } from "./format.js";
import { sketch } from "./examples.js";

/** Events: "open" (a session entry), "use" (settings), "gone" (an id), "from" (`{reference, name, thumbnail}`). */
export class Library extends EventTarget {
  #entries = [];
  #shown = false;
  #cards = new Map();
  #timer = 0;

  constructor() {
    super();
    $("search").addEventListener("input", () => this.#draw());
    $("import").addEventListener("click", () => $("session-file").click());
    $("session-file").addEventListener("change", (event) => this.#import(event.target));
  }

  show() {
    this.#shown = true;
    this.refresh();
    this.#timer = setInterval(() => this.refresh(), 5000);
  }

  hide() {
    this.#shown = false;
    clearInterval(this.#timer);
  }

  async refresh() {
    try {
      const [sessions, videos] = await Promise.all([get("v1/sessions"), get("v1/videos?limit=100")]);
      this.#entries = [
        ...(sessions.data ?? []).map((one) => this.#session(one)),
        ...(videos.data ?? []).map((one) => this.#video(one)),
      ].sort((a, b) => b.created - a.created);
      if (this.#shown) this.#draw();
    } catch (error) {
      if (!(error instanceof ApiError)) return; // the connection banner says it
      banner(error.message);
    }
  }

  #session(one) {
    const settings = one.settings ?? {};
    const prompts = one.prompts?.length ? one.prompts.map((p) => p.prompt ?? p.text ?? p[1]) : [].concat(settings.prompt ?? []);
    const fps = settings.fps ?? 24;
    return { id: one.id, kind: "session", branchedAt: one.branched_at ?? null, created: one.created_at ?? 0, name: one.name ?? null, settings, status: one.status ?? one.state,
      prompts: prompts.map((p) => (Array.isArray(p) ? p[1] : p)).filter(Boolean), seconds: (one.frames ?? (one.chunks ?? 0) * 33) / fps,
      chunks: one.chunks ?? null, size: one.bytes ?? null, thumbnail: one.chunks === 0 ? null : `v1/sessions/${one.id}/thumbnail`,
      content: `v1/sessions/${one.id}/content`, remove: `v1/sessions/${one.id}`, reference: { session_id: one.id } };
  }

  #video(one) {
    const done = one.status === "completed";
    const settings = { prompt: one.prompt, seed: one.seed, steps: one.steps, ...(one.settings ?? {}) };
    return { id: one.id, kind: "video", branchedAt: null, created: one.created_at ?? 0, name: null, settings, status: one.status, progress: one.progress,
      error: one.error?.message, prompts: [].concat(one.prompt ?? []).map((p) => (Array.isArray(p) ? p[1] : p)), seconds: Number(one.seconds ?? 0),
      chunks: null, size: one.bytes ?? null, thumbnail: done ? `v1/videos/${one.id}/content?variant=thumbnail` : null,
      content: done ? `v1/videos/${one.id}/content` : null, remove: `v1/videos/${one.id}`, reference: { video_id: one.id } };
  }

  #draw() {
    const words = $("search").value.trim().toLowerCase();
    const found = this.#entries.filter((entry) => !words || `${entry.prompts.join(" ")} ${entry.name ?? ""}`.toLowerCase().includes(words));
    const cards = found.map((entry) => this.#card(entry));
    const box = $("cards");
    if (cards.length !== box.children.length || cards.some((card, i) => card !== box.children[i])) box.replaceChildren(...cards);
    const keep = new Set(this.#entries.map((entry) => entry.id));
    for (const id of this.#cards.keys()) if (!keep.has(id)) this.#cards.delete(id);
    $("nothing").hidden = found.length > 0;
    $("nothing-title").textContent = words ? "No prompt has these words" : "Nothing here yet";
    $("nothing-text").textContent = words ? "Try fewer of them." : "What you make in the studio, and what programs make through the API, is kept here with its settings.";
    $("nothing-go").hidden = Boolean(words);
  }

  /** The card of an entry; made again only when the entry changed, so that focus stays. */
  #card(entry) {
    const state = JSON.stringify(entry);
    const known = this.#cards.get(entry.id);
    if (known?.state === state) return known.card;
    const title = entry.name ?? entry.prompts.at(0) ?? "Untitled";
    const picture = el("div", { class: "card-picture" }, sketch(title));
    if (entry.thumbnail) this.#picture(picture, entry.thumbnail);
    const more = entry.prompts.length > 1 ? ` → ${entry.prompts.slice(1).join(" → ")}` : "";
    const open = entry.kind === "session"
      ? button("play", "Open", () => this.#tell("open", entry))
      : button("play", "Watch", () => this.#watch(entry), { disabled: !entry.content });
    const card = el("li", { class: "card", dataset: { kind: entry.kind, status: entry.status ?? "" } },
      picture,
      el("div", { class: "card-text" },
        el("h2", {}, title), more ? el("p", { class: "then" }, more) : null,
        el("p", { class: "dim facts" }, facts(entry).flatMap((fact, i) => [i ? " · " : "", el("span", {}, fact)])),
        entry.error ? el("p", { class: "wrong" }, entry.error) : null),
      el("div", { class: "card-acts" }, open,
        button("save", "Download", () => download(entry.content, `helios-${entry.id.slice(-8)}.mp4`).catch((e) => banner(e.message)), { visible: false, disabled: !entry.content }),
        button("tune", "Use these settings", () => this.#tell("use", entry.settings), { visible: false }),
        button("image", "Start a new video from this one", () => this.#tell("from", { reference: entry.reference, name: title, thumbnail: entry.thumbnail }), { visible: false, disabled: !entry.content }),
        entry.kind === "session" ? button("file", "Export the session as one file", () => download(`v1/sessions/${entry.id}/export`, `helios-${entry.id.slice(-8)}.session`).catch((e) => banner(e.message)), { visible: false }) : null,
        button("trash", "Delete", () => this.#delete(entry, title), { visible: false })));
    this.#cards.set(entry.id, { state, card });
    return card;
  }

  async #picture(box, path) {
    try {
      const image = el("img", { alt: "", loading: "lazy", decoding: "async" });
      image.addEventListener("load", () => box.replaceChildren(image), { once: true });
      image.src = await address(path);
      box.append(image);
    } catch { /* the drawing stays */ }
  }

  async #watch(entry) {
    const src = await address(entry.content);
    const video = el("video", { src, controls: true, autoplay: true, loop: true, muted: true, playsInline: true });
    const dialog = el("dialog", { class: "viewer", "aria-label": entry.prompts[0] ?? "Video" }, video,
      el("form", { method: "dialog" }, el("button", { type: "submit", class: "primary" }, "Close")));
    dialog.addEventListener("close", () => { video.removeAttribute("src"); video.load(); dialog.remove(); });
    document.body.append(dialog);
    dialog.showModal();
  }

  async #delete(entry, title) {
    if (!await confirm(`Delete “${title}” for good?`, "Delete")) return;
    this.#tell("gone", entry.id);
    try {
      await this.#removed(entry);
      announce("Deleted");
    } catch (error) {
      banner(error.message);
    }
    await this.refresh();
  }

  /** Delete; a session that was just left may need a moment to be parked. */
  async #removed(entry, tries = 5) {
    try {
      await remove(entry.remove);
    } catch (error) {
      if (error.code !== "session_active" || tries === 0) throw error;
      await new Promise((done) => { setTimeout(done, 700); });
      await this.#removed(entry, tries - 1);
    }
  }

  async #import(input) {
    const [file] = input.files;
    input.value = "";
    if (!file) return;
    try {
      await upload("v1/sessions/import", file);
      announce("Imported");
      await this.refresh();
    } catch (error) {
      banner(error.message);
    }
  }

  #tell(name, detail) { this.dispatchEvent(new CustomEvent(name, { detail })); }
}

function facts(entry) {
  const { settings } = entry;
  const steps = settings.steps ?? settings.plan?.steps;
  const parts = [
    entry.status && entry.status !== "completed" && entry.kind === "video" ? `${entry.status.replace("_", " ")}${entry.progress ? ` ${entry.progress} %` : ""}` : null,
    entry.seconds ? clock(entry.seconds) : null,
    settings.width ? `${settings.width} × ${settings.height}` : null,
    settings.seed !== undefined && settings.seed !== null ? `seed ${settings.seed}` : null,
    entry.branchedAt === null ? null : `branch from chunk ${entry.branchedAt + 1}${(settings.branch_seed ?? null) === null ? "" : `, seed ${settings.branch_seed}`}`,
    steps ? (Array.isArray(steps) ? `${steps.join("+")} steps` : plural(steps, "step")) : null,
    settings.model ?? null,
    entry.size ? bytes(entry.size) : null,
    entry.created ? ago(entry.created) : null,
  ];
  return parts.filter(Boolean);
}
