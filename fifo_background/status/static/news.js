// News: failures and stops are spoken, politely and not too often; a toast says what went wrong with a click.

import { put, ui } from "./document.js";
import { now } from "./now.js";
import { short } from "./words.js";

let [sentences, speakTimer, toastTimer] = [[]];
export function announce(sentence) {
  sentences.push(sentence);
  speakTimer ??= setTimeout(() => {
    put(ui.spoken, sentences.slice(0, 3).join(" ") + (sentences.length > 3 ? ` And ${sentences.length - 3} more.` : ""));
    [sentences, speakTimer] = [[], null];
  }, 3000);
}

export function tellNews(lanes, newly) {
  const before = new Set(now.lanes.filter((lane) => lane.state === "stopped").map((lane) => lane.id));
  for (const lane of lanes) if (lane.state === "stopped" && !before.has(lane.id)) announce(`Lane ${lane.name} stopped.`);
  for (const job of newly) if (job.state === "failed") announce(`${short(job.function)} failed in ${job.lane.name}.`);
}

export function toast(text) {
  put(ui.toast, text);
  clearTimeout(toastTimer);
  toastTimer = setTimeout(put, 7000, ui.toast, "");
}
