// A file to start from, however it comes: chosen, dropped or pasted.

import { $ } from "./dom.js";

const carries = (event) => [...event.dataTransfer?.types ?? []].includes("Files");

/** Call `take` with each file that is given to the page. */
export function files(take) {
  let inside = 0;
  $("file").addEventListener("change", (event) => {
    const [file] = event.target.files;
    event.target.value = "";
    if (file) take(file);
  });
  addEventListener("dragenter", (event) => { if (carries(event)) { inside += 1; $("drop").hidden = false; } });
  addEventListener("dragleave", (event) => { if (carries(event)) { inside -= 1; $("drop").hidden = inside <= 0; } });
  addEventListener("dragover", (event) => { if (carries(event)) event.preventDefault(); });
  addEventListener("drop", (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    inside = 0;
    $("drop").hidden = true;
    take(event.dataTransfer.files[0]);
  });
  addEventListener("paste", (event) => {
    const [file] = event.clipboardData?.files ?? [];
    if (file) { event.preventDefault(); take(file); }
  });
}
