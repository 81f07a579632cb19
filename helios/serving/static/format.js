// Numbers as people read them.

/** Seconds as 0:03.2, or 1:02:03 for long ones. */
export function clock(seconds) {
  const tenths = Math.max(0, Math.round(seconds * 10));
  const hours = Math.floor(tenths / 36000);
  const minutes = Math.floor(tenths / 600) % 60;
  const rest = (tenths % 600) / 10;
  if (hours) return `${hours}:${String(minutes).padStart(2, "0")}:${String(Math.floor(rest)).padStart(2, "0")}`;
  return `${minutes}:${rest.toFixed(1).padStart(4, "0")}`;
}

/** When something comes that is so many seconds away: "now", "in 3 s", "in 2 min". */
export function later(seconds) {
  if (seconds < 0.95) return "now";
  if (seconds < 90) return `in ${Math.round(seconds)} s`;
  return `in ${Math.round(seconds / 60)} min`;
}

export function bytes(count) {
  if (!count) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let power = 0;
  while (count >= 999.5 && power < units.length - 1) { count /= 1000; power += 1; }
  return `${count >= 100 || power === 0 ? Math.round(count) : count.toFixed(1)} ${units[power]}`;
}

/** A rate with as many digits as matter. */
export const rate = (value) => (value >= 10 ? value.toFixed(0) : value.toFixed(value >= 1 ? 1 : 2));

export function ago(seconds) {
  const past = Math.max(0, Date.now() / 1000 - seconds);
  if (past < 60) return "just now";
  if (past < 3600) return `${Math.floor(past / 60)} min ago`;
  if (past < 86400) return `${Math.floor(past / 3600)} h ago`;
  return new Date(seconds * 1000).toLocaleDateString();
}

export function short(text, length = 60) {
  return text.length > length ? `${text.slice(0, length - 1).trimEnd()}…` : text;
}

export const plural = (count, one, many = `${one}s`) => `${count} ${count === 1 ? one : many}`;
