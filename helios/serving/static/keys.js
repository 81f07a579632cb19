// Shortcuts, and the dialog that lists them.

import { $, el } from "./dom.js";

/** `[key, words, action name]`; keys without a modifier work outside text fields. */
const TABLE = [
  ["/", "Write the prompt", "write"],
  ["Enter", "Generate, or change the scene", null],
  ["Ctrl Enter", "A new video from this prompt", null],
  ["Alt ↑ ↓", "Earlier prompts", null],
  ["Space", "Play or pause", "toggle"],
  ["← →", "Chunk by chunk", null],
  ["b", "Branch from the chunk", "branch"],
  ["r", "Re-roll from the chunk", "reroll"],
  ["k", "Keep the chunk on disk", "keep"],
  ["e", "Extend", "extend"],
  ["Tab ← →", "Move the dot of a change", null],
  ["s", "Stop", "stop"],
  ["d", "Download", "download"],
  ["n", "Empty stage, new video", "fresh"],
  ["f", "Full screen", "full"],
  [",", "Settings", "settings"],
  ["l", "Library, and back", "library"],
  ["t", "Light, dark, as the system", "theme"],
  ["?", "This list", "help"],
  ["Esc", "Close, cancel, leave a field", null],
];

/** Listen; `actions` maps action names to functions, and "previous", "next", "escape". */
export function shortcuts(actions) {
  $("keys").replaceChildren(...TABLE.flatMap(([key, words]) => [
    el("dt", {}, ...key.split(" ").map((part) => el("kbd", {}, part))), el("dd", {}, words),
  ]));
  const byKey = new Map(TABLE.filter(([, , name]) => name).map(([key, , name]) => [key === "Space" ? " " : key, name]));
  document.addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]")) return;
    if (event.key === "Escape") { actions.escape(event); return; }
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    const target = event.target;
    if (target.matches("input, textarea, select")) return;
    // Space presses a button that has the focus.
    if (event.key === " " && target.matches("button, summary, a")) return;
    const name = event.key === "ArrowLeft" ? "previous" : event.key === "ArrowRight" ? "next" : byKey.get(event.key.length === 1 ? event.key.toLowerCase() : event.key);
    if (!name || event.repeat && name !== "previous" && name !== "next") return;
    event.preventDefault();
    actions[name]();
  });
}
