// HTTP to our own server: JSON in and out, one kind of error, an API key where one is asked for.

import { $ } from "./dom.js";

const KEY = "helios.key";
let asking = null;

export class ApiError extends Error {
  constructor(message, code, status) {
    super(message);
    this.code = code;
    this.status = status;
  }
}

const stored = () => { try { return sessionStorage.getItem(KEY); } catch { return null; } };
let key = stored();

export const hasKey = () => key !== null;

function headers(more = {}) {
  return key ? { ...more, Authorization: `Bearer ${key}` } : more;
}

/** A response that is not an error; asks for the key when the server does. */
async function request(path, options = {}) {
  for (;;) {
    const sent = key;
    const response = await fetch(path, { ...options, headers: headers(options.headers) });
    if (response.ok) return response;
    if (response.status === 401) {
      await askKey(sent);
      continue;
    }
    let body = null;
    try { body = await response.json(); } catch { /* not ours: a proxy, say */ }
    const error = body?.error ?? {};
    throw new ApiError(error.message ?? `The server answered ${response.status}.`, error.code, response.status);
  }
}

/** Show the dialog once, however many requests wait for it. */
function askKey(refused) {
  if (refused !== key) return Promise.resolve();
  asking ??= new Promise((done) => {
    const dialog = $("key-dialog");
    $("key-wrong").hidden = refused === null;
    dialog.showModal();
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    dialog.addEventListener("close", () => {
      key = $("key").value.trim() || null;
      $("key").value = "";
      try { if (key) sessionStorage.setItem(KEY, key); } catch { /* kept in memory then */ }
      asking = null;
      done();
    }, { once: true });
  });
  return asking;
}

export const get = async (path) => (await request(path)).json();

export const remove = async (path) => (await request(path, { method: "DELETE" })).json().catch(() => ({}));

export const post = async (path, body = {}) => (await request(path, {
  method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
})).json();

/** Send a file as the multipart field `file`. */
export async function upload(path, file) {
  const form = new FormData();
  form.append("file", file);
  return (await request(path, { method: "POST", body: form })).json();
}

/** An address for `<img>`, `<video>` or a download: behind a key the bytes are fetched with it. */
export async function address(path) {
  if (!key) return path;
  return URL.createObjectURL(await (await request(path)).blob());
}

/** Save what is at `path`; the server names the file unless a key hides it from the browser. */
export async function download(path, name) {
  const href = await address(path);
  const link = document.createElement("a");
  link.href = href;
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
  if (href.startsWith("blob:")) setTimeout(() => URL.revokeObjectURL(href), 60000);
}

/** Sub-protocols of a WebSocket: a browser can send no header, so the key becomes a ticket. */
export async function subprotocols() {
  if (!key) return ["helios.v1"];
  const { ticket } = await post("v1/realtime/tickets");
  return ["helios.v1", `ticket.${ticket}`];
}
