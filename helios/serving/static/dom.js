// Small helpers around the document. Text from people only ever becomes text nodes.

export const $ = (id) => document.getElementById(id);

/** An element with properties, attributes (names with a dash, `role`), listeners (`onclick`) and children. */
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name === "class") node.className = value;
    else if (name === "dataset") Object.assign(node.dataset, value);
    else if (name.includes("-") || !(name in node)) node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

const SVG = "http://www.w3.org/2000/svg";

/** An SVG element with attributes and children. */
export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

export const icon = (name) => svg("svg", { "aria-hidden": "true" }, svg("use", { href: `#i-${name}` }));

/** A button with an icon and a label; without a visible label the name is for screen readers. */
export function button(name, label, onclick, { visible = true, ...rest } = {}) {
  const inside = visible ? [icon(name), el("span", {}, label)] : [icon(name)];
  return el("button", { type: "button", class: visible ? "quiet" : "icon", onclick,
    ...(visible ? {} : { "aria-label": label, title: label }), ...rest }, ...inside);
}

/** Replace the icon of a button. */
export function setIcon(node, name) {
  node.querySelector("use").setAttribute("href", `#i-${name}`);
}

/** Say something to screen readers. */
export function announce(text, urgent = false) {
  const region = $(urgent ? "assertive" : "polite");
  // The same sentence twice is a change only if the region was empty in between.
  region.textContent = "";
  requestAnimationFrame(() => { region.textContent = text; });
}

/** As a sentence: servers begin with a small letter and end without a stop. */
const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;

let toastTimer = 0;

/** One line at the top, for problems; an action makes it stay. */
export function banner(text, { action = null, onaction = null, kind = "problem", stay = false } = {}) {
  const node = $("banner");
  clearTimeout(toastTimer);
  node.hidden = !text;
  if (!text) return;
  node.dataset.kind = kind;
  node.querySelector("span").textContent = sentence(text);
  announce(sentence(text), kind === "problem");
  const act = node.querySelector(".act");
  act.hidden = !action;
  act.textContent = action ?? "";
  act.onclick = onaction;
  $("banner-close").onclick = () => banner("");
  if (!stay) toastTimer = setTimeout(() => banner(""), 9000);
}

/** Ask before something that cannot be undone. */
export function confirm(text, yes) {
  const dialog = $("ask");
  $("ask-text").textContent = text;
  $("ask-yes").textContent = yes;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((done) => {
    dialog.addEventListener("close", () => done(dialog.returnValue === "yes"), { once: true });
  });
}

/** Wait for `good()`, looked at now and after each event `name` of `target`. */
export async function until(target, name, good) {
  while (!good()) await new Promise((done) => { target.addEventListener(name, done, { once: true }); });
}

/** A value of local storage, which may be switched off. */
export const memory = {
  get(name) { try { return JSON.parse(localStorage.getItem(`helios.${name}`)); } catch { return null; } },
  set(name, value) {
    try {
      if (value === null) localStorage.removeItem(`helios.${name}`);
      else localStorage.setItem(`helios.${name}`, JSON.stringify(value));
    } catch { /* nothing is remembered then */ }
  },
};
