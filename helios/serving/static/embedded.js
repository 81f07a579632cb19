// Settings that Helios writes into its own files: JSON in the comment tag of an MP4.

const MOST = 8 << 20;

/** The settings in `file`, or null. Only the index of the file is read, at its head or its end. */
export async function embedded(file) {
  if (!/\.(mp4|m4v|mov)$/i.test(file.name)) return null;
  const parts = file.size <= 2 * MOST ? [file] : [file.slice(0, MOST), file.slice(file.size - MOST)];
  for (const part of parts) {
    const found = find(new Uint8Array(await part.arrayBuffer()));
    if (found) return found;
  }
  return null;
}

/** Look for the box `©cmt`, whose `data` box holds 16 bytes of header and then the text. */
function find(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = 4; at + 28 < bytes.length; at += 1) {
    if (bytes[at] !== 0xa9 || bytes[at + 1] !== 0x63 || bytes[at + 2] !== 0x6d || bytes[at + 3] !== 0x74) continue;
    const size = view.getUint32(at + 4);
    if (size < 16 || at + 4 + size > bytes.length) continue;
    try {
      const text = new TextDecoder("utf-8", { fatal: true }).decode(bytes.subarray(at + 20, at + 4 + size));
      const settings = JSON.parse(text);
      if (settings && typeof settings === "object" && "helios" in settings) return settings;
    } catch { /* somebody else's comment */ }
  }
  return null;
}
