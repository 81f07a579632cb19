// How the page is shown: light or dark, and the settings as a drawer on smaller screens.

import { $, announce } from "./dom.js";

export const narrow = matchMedia("(max-width: 1060px)");
const THEMES = ["system", "light", "dark"];

function theme(next) {
  const root = document.documentElement;
  if (next === "system") delete root.dataset.theme; else root.dataset.theme = next;
  try { if (next === "system") localStorage.removeItem("helios.theme"); else localStorage.setItem("helios.theme", next); } catch { /* for this visit only */ }
  $("theme").setAttribute("aria-label", `Theme: ${next === "system" ? "as the system" : next}`);
  $("theme").title = $("theme").getAttribute("aria-label");
}

/** Light, dark, as the system: the one after the present one. */
export function nextTheme() {
  const now = document.documentElement.dataset.theme ?? "system";
  theme(THEMES[(THEMES.indexOf(now) + 1) % THEMES.length]);
  announce($("theme").getAttribute("aria-label"));
}

export const drawerOpen = () => document.body.dataset.drawer === "true";

/** Open or close the settings; while they cover the page, the keyboard stays in them. */
export function drawer(open) {
  const inside = $("setup").contains(document.activeElement);
  document.body.dataset.drawer = open;
  $("setup-open").setAttribute("aria-expanded", String(open));
  $("setup").inert = narrow.matches && !open;
  for (const node of document.querySelectorAll(".top, .stage, .strip, .composer")) node.inert = narrow.matches && open;
  if (open) {
    if (narrow.matches) $("setup-close").focus();
    else $("setup-body").querySelector("button, input")?.focus();
  } else if (inside) {
    (narrow.matches ? $("setup-open") : $("prompt")).focus();
  }
}

$("setup-open").addEventListener("click", () => drawer(!drawerOpen()));
$("setup-close").addEventListener("click", () => drawer(false));
document.addEventListener("pointerdown", (event) => {
  if (narrow.matches && drawerOpen() && !$("setup").contains(event.target)) drawer(false);
});
narrow.addEventListener("change", () => drawer(false));
$("setup").inert = narrow.matches;
$("theme").addEventListener("click", nextTheme);
theme(document.documentElement.dataset.theme ?? "system");
