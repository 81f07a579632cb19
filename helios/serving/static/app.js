// The page: parts are made and tied together here.

import { $, announce, banner, memory, setIcon } from "./dom.js";
import { get, download } from "./api.js";
import { bytes, clock, later, plural, rate } from "./format.js";
import { SLOWEST } from "./pace.js";
import { Player } from "./player.js";
import { Story } from "./story.js";
import { Timeline } from "./timeline.js";
import { Director } from "./director.js";
import { Settings } from "./settings.js";
import { Composer } from "./composer.js";
import { Library } from "./library.js";
import { cards } from "./examples.js";
import { shortcuts } from "./keys.js";
import { files } from "./dropping.js";
import { drawer, drawerOpen, narrow, nextTheme } from "./looks.js";

const story = new Story();
const player = new Player($("video"));
const director = new Director(story, player);
const timeline = new Timeline(story, player);
const settings = new Settings();
const composer = new Composer(director, player, story, settings);
const library = new Library();

// ------------------------------------------------------------------------------------- wishes

async function generate(prompt) {
  timeline.choose(null);
  banner("");
  await director.start(settings.request(prompt));
}

composer.addEventListener("generate", ({ detail }) => generate(detail.prompt));
composer.addEventListener("change", ({ detail }) => director.change(detail.prompt, settings.transition));
composer.addEventListener("branch", ({ detail }) => branch(detail));
composer.addEventListener("stop", () => director.stop());
composer.addEventListener("extend", async ({ detail }) => {
  if (detail.prompt) await director.change(detail.prompt, settings.transition);
  await director.extend(settings.seconds);
});

function branch({ take, index, prompt }) {
  timeline.choose(null);
  const same = prompt === take.promptAt(index);
  director.branch(take, index, { prompt: same ? null : prompt, seed: same ? newSeed() : null, transition: settings.transition });
}

function keep({ take, index }) {
  return director.keep(take, index, `${take.promptAt(index)} (chunk ${index + 1})`.slice(0, 128));
}

function reroll(detail) {
  if (!detail) return;
  timeline.choose(null);
  director.branch(detail.take, detail.index, { seed: newSeed() });
}

const newSeed = () => Math.floor(Math.random() * 2 ** 31);

timeline.addEventListener("seek", async ({ detail }) => {
  if (detail.take.owner(detail.index) !== story.current?.owner(detail.index)) await director.show(detail.take);
  if (player.holds(detail.index)) player.seek(detail.index * player.chunkSeconds + 0.25 / player.fps);
  else announce("That part is no longer in this page; download the video to see it.");
});
timeline.addEventListener("branch", ({ detail }) => composer.branchFrom(detail.take, detail.index));
timeline.addEventListener("reroll", ({ detail }) => reroll(detail));
timeline.addEventListener("move", ({ detail: { take, text, chunk } }) => {
  story.promise(take, { chunk, prompt: text });
  director.change(text, settings.transition, chunk);
});
timeline.addEventListener("keep", ({ detail }) => keep(detail));

settings.addEventListener("loras", () => director.wear(settings.loras));
settings.addEventListener("prompt", ({ detail }) => { composer.text = detail; });
settings.addEventListener("start", () => {
  $("attach").dataset.on = settings.start !== null;
  if (settings.start && narrow.matches) drawer(true);
});

library.addEventListener("open", async ({ detail }) => {
  view("studio");
  timeline.choose(null);
  composer.text = detail.prompts.at(-1) ?? "";
  await director.resume(detail.id, { fresh: true, hold: true, entry: detail });
});
library.addEventListener("use", ({ detail }) => { view("studio"); settings.adopt(detail); $("prompt").focus(); });
library.addEventListener("gone", ({ detail }) => { if (story.takes.has(detail)) { director.leave(); timeline.choose(null); } });
library.addEventListener("from", ({ detail }) => {
  view("studio");
  director.leave();
  settings.from(detail.reference, detail.name, detail.thumbnail);
  $("prompt").focus();
});

// --------------------------------------------------------------------------------------- stage

function showPhase() {
  const { phase } = director;
  document.body.dataset.phase = phase;
  $("welcome").hidden = phase !== "empty";
  $("video").hidden = phase === "empty";
  timeline.refresh();
  glow();
  curtain();
  clocks();
  pace();
}

/** Behind a picture that does not fill the stage: its own colours, far out of focus. */
function glow() {
  const shown = story.current?.chunk(Math.min(player.chunk, story.current.length - 1))?.thumbnail;
  const url = shown ? `url("${shown}")` : "none";
  if ($("glow").style.backgroundImage !== url) $("glow").style.backgroundImage = url;
}

/** Whether a video is to go on and there is nobody to make it. */
const cut = () => director.busy && player.end > 0 && !director.connection.open;

/** What to look at while there is no picture. */
function curtain() {
  const { phase, place } = director;
  const none = player.end === 0;
  const starved = phase === "making" && !none && !player.paused && player.ready < 0.08;
  let text = "";
  if (phase === "queued") text = place === 1 ? "You are next. It starts as soon as the model is free." : `You are number ${place} in line.`;
  else if (phase === "starting" && none) text = settings.model?.defaults ? "Starting…" : "The model is being loaded…";
  else if (phase === "making" && none) text = "Making the first chunk…";
  else if (director.recovering) text = "Starting the model again…";
  else if (cut()) text = "Waiting for the server";
  else if (starved) text = `Making chunk ${(story.current?.length ?? 0) + 1}`;
  $("curtain").hidden = !text;
  $("curtain").dataset.small = String(!none);
  if (text && $("curtain-text").textContent !== text) $("curtain-text").textContent = text;
  progress();
}

/** The ring fills while the next chunk is made, as far as its time is known. */
function progress() {
  const chunk = player.pace.chunkSeconds;
  const known = director.phase === "making" && chunk !== null && !cut();
  const part = known ? 1 - player.pace.until(performance.now() / 1000) / chunk : 0;
  $("ring").dataset.known = String(known);
  $("ring").style.setProperty("--part", Math.min(1, Math.max(0.02, part)).toFixed(3));
}

function pace() {
  const making = director.phase === "making" && player.end > 0;
  $("transport").hidden = director.phase === "empty" || player.end === 0;
  const speed = player.pace.rate(performance.now() / 1000, player.ready, making);
  const starved = making && player.ready < 0.08;
  $("badge").hidden = !making || (cut() && starved);
  const slow = speed < 0.95;
  $("badge").dataset.slow = slow;
  $("badge").textContent = starved && slow ? "Catching up" : slow ? `Live at ${rate(speed * player.fps)} fps` : "Live";
  $("pace").textContent = making && slow && !starved ? (speed > SLOWEST ? `Slowed to ${rate(speed)}× so that it never stops` : "Waits for each chunk") : "";
  const idle = player.paused || $("video").ended;
  setIcon($("play"), idle ? "play" : "pause");
  $("play").setAttribute("aria-label", idle ? "Play" : "Pause");
  curtain();
}

function clocks() {
  $("clock").textContent = clock(player.time);
  const take = story.current;
  const length = take ? take.seconds(player.fps) : 0;
  const frames = take?.settings.num_frames;
  const whole = frames ? frames / player.fps : null;
  $("made").textContent = length ? `/ ${clock(length)}${director.busy && whole && whole > length + 0.05 ? ` made of ${clock(whole)}` : ""}` : "";
}

director.addEventListener("phase", showPhase);
director.addEventListener("video", ({ detail }) => {
  $("stage").style.setProperty("--aspect", `${detail.width} / ${detail.height}`);
  showPhase();
});
director.addEventListener("arrived", showPhase);
player.addEventListener("chunk", glow);
player.addEventListener("pace", pace);
player.addEventListener("time", () => { clocks(); pace(); });
player.addEventListener("failed", ({ detail }) => banner(`The player stopped: ${detail}. The video itself is not lost; it is in the library.`, { stay: true }));

$("play").addEventListener("click", () => { player.toggle(); pace(); });
$("video").addEventListener("click", () => { player.toggle(); pace(); });
$("save").addEventListener("click", save);
$("full").addEventListener("click", fullscreen);

function fullscreen() {
  if (document.fullscreenElement) document.exitFullscreen();
  else $("stage").requestFullscreen?.().catch(() => {});
}

function save() {
  const take = story.current;
  if (take?.length) download(`v1/sessions/${take.id}/content`, "helios.mp4").catch((error) => banner(error.message));
}

function step(by) {
  const take = story.current;
  if (!take?.length) return;
  const now = player.chunk;
  const index = Math.min(Math.max(now + by, 0), take.length - 1);
  if (player.holds(index)) player.seek(index * player.chunkSeconds + 0.25 / player.fps);
  timeline.choose(take, index);
}

// -------------------------------------------------------------------------------------- health

function health() {
  const { health: told } = director;
  const take = story.current;
  const own = player.pace.chunkSeconds;
  const fps = told?.frames_per_second ?? (own ? (player.chunkSeconds * player.fps) / own : null);
  const ratio = told?.real_time ?? (fps ? fps / player.fps : null);
  const live = director.busy && take;
  // At rest there is no speed to speak of.
  $("h-fps").hidden = $("h-ratio").hidden = !(live && fps);
  field("fps", fps ? `${rate(fps)} fps` : "–");
  field("ratio", ratio ? `${rate(ratio)}×` : "–");
  $("h-ratio").dataset.good = String(Boolean(live && ratio >= 1));
  field("memory", told?.memory_bytes ? bytes(told.memory_bytes) : "–");
  const place = director.place;
  const shared = place === null && live && told?.sharing > 1;
  $("h-place").hidden = place === null && !shared;
  $("h-place").querySelector("dt").textContent = shared ? "Taking turns" : "In line";
  field("place", shared ? plural(told.sharing, "video") : `${place}`);
}

function field(name, text) {
  const node = $(`h-${name}`).querySelector("dd");
  if (node.textContent !== text) node.textContent = text;
}

director.addEventListener("health", health);
director.addEventListener("arrived", health);
director.addEventListener("phase", health);

/** Before a stage is open the server is asked over HTTP, rarely. */
async function idle() {
  if (director.phase !== "empty" || document.hidden) return;
  try {
    const status = await get("v1/status");
    director.health = { ...status, memory_bytes: status.memory_bytes ?? status.workers?.[0]?.memory_bytes };
    health();
  } catch { /* the next wish will say it */ }
}

// -------------------------------------------------------------------------- problems, connection

director.addEventListener("problem", ({ detail }) => {
  banner(detail.message, { kind: detail.kind, stay: Boolean(detail.fatal) });
  if (detail.param === "prompt") { $("prompt").focus(); }
});
director.addEventListener("settings", ({ detail }) => {
  const [first] = detail.warnings;
  if (first) banner(first, { kind: "hint" });
});
director.addEventListener("connection", ({ detail }) => {
  if (detail.state === "waiting") {
    banner(`The connection is gone. Trying again ${later(detail.seconds)}; nothing is lost.`, { action: "Try now", onaction: detail.now, stay: true });
  } else if (detail.state === "open" && $("banner").dataset.kind === "problem") {
    banner("");
  }
  pace();
});

// ------------------------------------------------------------------------------- files, dropping

$("attach").addEventListener("click", () => (settings.start ? drawer(true) : $("file").click()));
files((file) => { view("studio"); settings.take(file); });

// ------------------------------------------------------------------------- views, theme, keyboard

function view(name) {
  if (document.body.dataset.view === name) return;
  document.body.dataset.view = name;
  $("studio").hidden = name !== "studio";
  $("library").hidden = name !== "library";
  for (const one of ["studio", "library"]) {
    if (one === name) $(`go-${one}`).setAttribute("aria-current", "page");
    else $(`go-${one}`).removeAttribute("aria-current");
  }
  if (name === "library") library.show(); else library.hide();
}

$("go-studio").addEventListener("click", () => view("studio"));
$("go-library").addEventListener("click", () => view("library"));
$("nothing-go").addEventListener("click", () => { view("studio"); $("prompt").focus(); });

$("help-open").addEventListener("click", () => $("help").showModal());

const here = () => document.body.dataset.view === "studio";
shortcuts({
  write: () => { view("studio"); $("prompt").focus(); $("prompt").select(); },
  toggle: () => { if (here()) { player.toggle(); pace(); } },
  previous: () => { if (here()) step(-1); },
  next: () => { if (here()) step(1); },
  branch: () => { const at = timeline.target; if (here() && at) composer.branchFrom(at.take, at.index); },
  reroll: () => { if (here()) reroll(timeline.target); },
  extend: () => { if (here() && !$("extend").hidden) composer.extend(); },
  stop: () => { if (director.busy) director.stop(); },
  download: save,
  keep: () => { const at = timeline.target; if (here() && at) keep(at); },
  fresh: () => { view("studio"); fresh(); },
  full: fullscreen,
  settings: () => { view("studio"); drawer(!drawerOpen()); },
  library: () => view(here() ? "library" : "studio"),
  theme: nextTheme,
  help: () => $("help").showModal(),
  escape: (event) => {
    if (drawerOpen()) drawer(false);
    else if (composer.cancelBranch()) $("prompt").focus();
    else if (event.target.matches("input, textarea, select")) event.target.blur();
    else timeline.choose(null);
  },
});

function fresh() {
  director.leave();
  timeline.choose(null);
  settings.clearStart();
  $("prompt").focus();
}

// --------------------------------------------------------------------------------------- begin

async function begin() {
  if (!Player.supported) {
    banner("This browser cannot play video while it is being made (MediaSource with H.264). Chrome, Edge, Firefox and Safari can.", { stay: true });
  }
  try {
    await settings.load();
  } catch (error) {
    banner(`The server does not answer: ${error.message}`, { action: "Try again", onaction: begin, stay: true });
    return;
  }
  if (!settings.model?.defaults) {
    // The page is there before the weights are.
    banner("The model is being loaded. You can already write.", { kind: "hint", stay: true });
    setTimeout(begin, 1000);
    return;
  }
  if ($("banner").dataset.kind === "hint") banner("");
  $("examples").replaceChildren(...cards(settings.small, (text) => { composer.text = text; composer.send(); }));
  if (settings.small) {
    $("welcome-text").textContent = "Choose a scene, or describe one and press Enter. It plays while it is being made, and you can change your mind on the way. This bundled model is small and knows a small world: balls, cubes, stars and what they do.";
  }
  const last = memory.get("last");
  if (last) {
    const entry = await get(`v1/sessions/${last}`).catch(() => null);
    if (!entry) { memory.set("last", null); return; }
    const chunks = typeof entry.chunks === "number" ? entry.chunks : entry.chunks?.length ?? 0;
    if (chunks > 0 && director.phase === "empty") {
      banner(`Your last video is still here (${plural(chunks, "chunk")}).`, { kind: "hint", action: "Open it", stay: true,
        onaction: () => { banner(""); director.resume(last, { fresh: true, hold: true, entry }); } });
    }
  }
}

addEventListener("pagehide", () => director.sleep());
addEventListener("pageshow", (event) => { if (event.persisted) director.wake(); });
setInterval(idle, 5000);
if (!narrow.matches) $("prompt").focus({ preventScroll: true });
showPhase();
begin().then(idle);
