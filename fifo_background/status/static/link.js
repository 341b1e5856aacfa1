// The link to the app, as the header tells it: live, frozen, lost or refused.

import { fill, on, put, schedule, set, show, ui } from "./document.js";
import { announce } from "./news.js";
import { clock, goOn, halt, now } from "./now.js";
import { timeOfDay } from "./words.js";

const LOST_AFTER = 3000; // ms; the stream ends by design and comes back within a second or so, that is no loss

let lostTimer;

export const isFrozen = () => on(ui.freeze, "aria-pressed");
export const isLost = () => ui.link.dataset.link === "lost";
export const notLost = () => { lostTimer = clearTimeout(lostTimer); };

function link(state, word) {
  set(ui.link, "data-link", state);
  put(ui.linkWord, word);
  ui.data.classList.toggle("lost", state === "lost");
  show(ui.refused, state === "refused");
  show(ui.data, state !== "refused");
  if (state === "refused") for (const dialog of [ui.job, ui.clear]) dialog.close();
  schedule();
}

export function connected() {
  notLost();
  goOn();
  link("live", (now.summary?.state ?? "open") === "open" ? "Live" : "The app is closing");
}

/** The stream has ended: a loss, unless the next one begins soon. */
export function disturbed(at = clock()) {
  lostTimer ??= setTimeout(() => {
    halt(at);
    link("lost", `Not connected since ${timeOfDay(new Date(at))}, trying again. This is how it was then.`);
    announce("Not connected to the app.");
  }, LOST_AFTER);
}

export function frozen() {
  const at = clock();
  halt(at);
  link("frozen", `Frozen at ${timeOfDay(new Date(at))}`);
}

/** The app said no: its own words tell what to do. */
export function refused({ status, title, detail }) {
  if (status !== 401 && status !== 403) return;
  notLost();
  fill(ui, { refusedTitle: title ?? "Not allowed", refusedDetail: detail });
  link("refused", "Not allowed");
}
