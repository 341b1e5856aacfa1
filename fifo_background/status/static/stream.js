// The stream of events: what it tells goes to all parts of the page, and what it does not tell is asked for.

import { refreshDetail, tellDialog } from "./dialog.js";
import { schedule, set, ui } from "./document.js";
import { countEnded, forgetSpark } from "./figures.js";
import { current, forgetEnded, learn, list, load, refresh } from "./jobs.js";
import { connected, disturbed, frozen, isFrozen, notLost, refused } from "./link.js";
import { tellNews } from "./news.js";
import { clock, forget, isHalted, now, takeTick } from "./now.js";
import { request } from "./requests.js";

const REFRESH_EVERY = 1000; // ms between two looks at the newest jobs, while something changes
const SILENT_AFTER = 15000; // ms; the app says every 5 s that nothing has changed, so a silent connection is none

let [source, lastId] = [null, ""];
let [retryTimer, silenceTimer] = [];

export function connect() {
  source?.close();
  clearTimeout(retryTimer);
  clearTimeout(silenceTimer);
  if (document.hidden || isFrozen()) return notLost(); // a host gets six connections of a browser: a hidden tab takes none
  source = new EventSource(lastId ? `./events?after=${encodeURIComponent(lastId)}` : "./events");
  heard();
  source.onopen = () => {
    heard();
    connected();
  };
  source.onerror = ended;
  source.addEventListener("unchanged", heard);
  source.addEventListener("tick", (event) => {
    heard();
    lastId = event.lastEventId;
    tick(JSON.parse(event.data));
  });
  source.addEventListener("reset", () => {
    forget();
    forgetEnded();
    forgetSpark();
  });
}

/** A connection may break without a word: who hears nothing for long tries another one. */
function heard() {
  const at = clock();
  clearTimeout(silenceTimer);
  silenceTimer = setTimeout(() => {
    disturbed(at);
    connect();
  }, SILENT_AFTER);
}

function ended() {
  disturbed();
  if (source.readyState !== EventSource.CLOSED) return; // the browser tries again by itself, with Last-Event-ID
  request("./summary").catch(refused);
  retryTimer = setTimeout(connect, 2000);
}

function tick(told) {
  const [first, { lanes, ended: newly }] = [!now.summary, told];
  if (!first) tellNews(lanes.items, newly); // what had failed before is on the page, it is no news
  takeTick(told);
  newly.forEach(countEnded);
  for (const job of [...newly, ...lanes.items.flatMap((lane) => [lane.running, lane.head])]) {
    if (!job) continue;
    learn(job);
    tellDialog(current(job));
  }
  connected();
  if (!first) return refreshSoon();
  load();
  refreshDetail();
  countEarlier(now.at);
}

/** Counts those that had ended before the first tick, whatever the list shows. */
async function countEarlier(at) {
  const { items } = await request("./jobs?state=ended&limit=200").catch(() => ({ items: [] }));
  items.filter((job) => Date.parse(job.ended_at) <= at).forEach(countEnded);
  schedule();
}

let refreshTimer = null;
let [changed, refreshed] = [0, -REFRESH_EVERY];
function refreshSoon() {
  changed = performance.now();
  refreshTimer ??= setTimeout(async () => {
    refreshed = performance.now();
    const looks = isHalted() ? [] : [list.loaded ? refresh() : list.loading || load(), refreshDetail()];
    await Promise.allSettled(looks); // that the app is gone, the link tells
    refreshTimer = null;
    schedule();
    if (changed > refreshed) refreshSoon();
  }, refreshed + REFRESH_EVERY - performance.now());
}

export function toggleFreeze() {
  set(ui.freeze, "aria-pressed", !isFrozen());
  connect(); // frozen: only ends the stream; else it goes on behind the last event, so nothing is lost
  if (isFrozen()) frozen();
}
