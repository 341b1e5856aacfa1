// The page of StatusApp: shows lanes and jobs live, and operates them.
//
// What the server told is kept in `now`, `list` and `detail`; schedule() draws all of it, at most once a frame, and
// writes only what differs. Whatever comes from the app is text and set as textContent, never as markup. Sizes are
// set through CSSOM or SVG attributes: the page's CSP allows no style attributes. Every URL is relative to the
// document, so the page works wherever it is mounted.

const PAGE = 200; // jobs a request, the most that the API gives: history then takes few requests
const REFRESH_EVERY = 1000; // ms between two looks at the newest jobs, while something changes
const LOST_AFTER = 3000; // ms; the stream ends by design and comes back within a second or so, that is no loss
const MOST_ROWS = 20000; // then a list that is at its top lets go of what is far below
const OVERSCAN = 6; // rows drawn above and below those that are seen
const LANES_AT_FIRST = 12; // more would push the jobs out of sight
const NOT_RUN = ["skipped", "cancelled", "superseded", "dropped"];
const FILTERS = {
  all: { states: [], count: (s) => s.added },
  running: { states: ["running"], count: (s) => s.running },
  waiting: { states: ["pending", "queued"], count: (s) => s.waiting },
  failed: { states: ["failed"], count: (s) => s.failed },
  succeeded: { states: ["succeeded"], count: (s) => s.succeeded },
  off: { states: NOT_RUN, count: (s) => NOT_RUN.reduce((sum, state) => sum + s[state], 0) },
};

const now = { summary: null, lanes: [], total: 0, at: 0 };
const list = { rows: [], next: null, filter: "all", query: "", loaded: false, loading: false, turn: 0 };
let detail = null; // the job in the dialog: {id, job, at, settled, missing}

// --- The document ---------------------------------------------------------------------------------------------------

const ui = Object.fromEntries([...document.querySelectorAll("[id]")].map((node) => [node.id, node]));
const small = matchMedia("(max-width: 680px)");
const on = (node, name) => node.getAttribute(name) === "true";
const focusIn = (node) => node.contains(document.activeElement);
const show = (node, shown) => { if (node.hidden === Boolean(shown)) node.hidden = !shown; };

/** Sets a node's text; in the text node that is there, as a new one would have to be styled and laid out anew. */
function put(node, text) {
  if (!node.firstChild) node.append("");
  if (node.firstChild.data !== String(text)) node.firstChild.data = text;
}

function set(node, name, value) {
  if (value == null) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

/** Writes texts into parts by name, some with a whole text as title. A part without a text hides. */
function fill(parts, texts) {
  for (const [name, value] of Object.entries(texts)) {
    const [text, title] = Array.isArray(value) ? value : [value];
    show(parts[name].closest("[data-fact]") ?? parts[name], text);
    put(parts[name], text ?? "");
    if (title !== undefined) set(parts[name], "title", title);
  }
}

/** A copy of a template: its named parts, and the root. */
function stamp(template) {
  const root = template.content.firstElementChild.cloneNode(true);
  const parts = [...root.querySelectorAll("[data-part]")].map((node) => [node.dataset.part, node]);
  return { root, ...Object.fromEntries(parts) };
}

/** Lays children out in order, but around the one with the focus: moved, it would lose it. */
function arrange(parent, wanted) {
  for (const child of [...parent.children]) if (!wanted.includes(child)) child.remove();
  const fixed = Math.max(0, wanted.findIndex(focusIn));
  if (wanted[fixed] && wanted[fixed].parentNode !== parent) parent.prepend(wanted[fixed]);
  for (let i = fixed - 1; i >= 0; i--) if (wanted[i].nextSibling !== wanted[i + 1]) wanted[i + 1].before(wanted[i]);
  for (let i = fixed + 1; i < wanted.length; i++) if (wanted[i].previousSibling !== wanted[i - 1]) wanted[i - 1].after(wanted[i]);
}

// --- Words and times ------------------------------------------------------------------------------------------------

let skew = 0; // from this clock to the server's, ms
let halted = null; // when the page stopped to follow: its times then stand still
const clock = () => halted ?? Date.now() + skew;
const since = (at) => Math.max(0, (clock() - at) / 1000);
const waited = (job) => job.waited ?? (job.done ? null : since(Date.parse(job.added_at)));
const ran = (job) => job.ran ?? (job.started_at && !job.done ? since(Date.parse(job.started_at)) : null);

function duration(seconds) {
  if (seconds == null) return "–";
  if (seconds < 0.0995) return `${Math.max(0, Math.round(seconds * 1000))} ms`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  const [big, unit, small, rest] = whole < 3600 ? [60, "min", 1, "s"] : whole < 86400 ? [3600, "h", 60, "min"] : [86400, "d", 3600, "h"];
  const left = Math.floor((whole % big) / small);
  return `${Math.floor(whole / big)} ${unit}${left ? ` ${left} ${rest}` : ""}`;
}

const timeOfDay = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });
const dayAndTime = new Intl.DateTimeFormat("en-US", { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const time = (iso) => (since(Date.parse(iso)) < 43200 ? timeOfDay : dayAndTime).format(Date.parse(iso));
const { format: count } = new Intl.NumberFormat("en-US"); // made once: toLocaleString() would make one each time
const wait = (n) => `${count(n)} ${n === 1 ? "waits" : "wait"}`;
const errorText = (job) => [job.error?.type, job.error?.message].filter(Boolean).join(": ") || null;
const progressText = ({ done, total, note }) => [count(done), total != null && `of ${count(total)}`, note].filter(Boolean).join(" ");

/** The last part of a plain dotted name. Anything else is not ours to cut. */
function short(name) {
  const dotted = /^[\p{L}_][\p{L}\p{N}_]*(\.[\p{L}_][\p{L}\p{N}_]*)+$/u.test(name);
  return dotted ? name.slice(name.lastIndexOf(".") + 1) : name || "(no name)";
}

/** How a job's state is drawn, and the word for it. */
function look(job) {
  if (NOT_RUN.includes(job.state)) return ["off", job.state];
  if (job.state !== "pending" && job.state !== "queued") return [job.state, job.state];
  const word = { request: "held", paused: "paused" }[job.blocked_by?.kind] ?? "waiting";
  return [word, word];
}

// --- Requests -------------------------------------------------------------------------------------------------------

async function request(url, options) {
  const response = await fetch(url, { cache: "no-store", ...options }).catch(() => null);
  if (!response) throw { status: 0, detail: "Not connected: this did not reach the app." };
  const body = await response.json().catch(() => ({}));
  if (response.ok) return body;
  throw { status: response.status, title: body.title, detail: body.detail ?? body.title ?? `The app answered ${response.status}.` };
}

const post = (url, body) => request(url, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

function jobs(limit, cursor) {
  const query = new URLSearchParams({ limit });
  for (const state of FILTERS[list.filter].states) query.append("state", state);
  if (list.query) query.set("q", list.query);
  if (cursor) query.set("cursor", cursor);
  return request(`./jobs?${query}`);
}

// --- The list of jobs: newest first, by number ----------------------------------------------------------------------

const ended = new Map(); // the last that ended, by number: an answer that was under way meanwhile must not undo it
const current = (job) => ended.get(job.number) ?? job;

/** Where in the list a job of this number is, or would be. */
function place(number) {
  let [low, high] = [0, list.rows.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    [low, high] = list.rows[middle].number > number ? [middle + 1, high] : [low, middle];
  }
  return low;
}

const listed = (number) => [list.rows[place(number)]].find((job) => job?.number === number);

function matches(job) {
  const { states } = FILTERS[list.filter];
  if (states.length && !states.includes(job.state)) return false;
  return [job.function, job.lane.name, job.id].some((text) => text.toLowerCase().includes(list.query.toLowerCase()));
}

/** Takes in what the stream tells of a job. One below the last that is loaded comes with its page. */
function learn(job) {
  if (detail?.id === job.id && !detail.job?.done) Object.assign(detail, { job, at: now.at });
  const [at, known] = [place(job.number), listed(job.number)];
  if (known?.done || !(known || at < list.rows.length || (list.loaded && !list.next))) return;
  list.rows.splice(at, known ? 1 : 0, ...(matches(job) ? [job] : []));
}

/** Loads the first page, or with a cursor what comes after those that are there. */
async function load(cursor) {
  const turn = cursor ? list.turn : ++list.turn;
  list.loading = true;
  try {
    const { items, next } = await jobs(PAGE, cursor);
    if (turn !== list.turn) return;
    const oldest = (cursor && list.rows.at(-1)?.number) ?? Infinity;
    const rows = items.map(current).filter((job) => job.number < oldest && matches(job));
    Object.assign(list, { rows: cursor ? list.rows.concat(rows) : rows, next, loaded: true });
    if (!cursor) anchor = ui.scroller.scrollTop = 0;
  } catch (problem) {
    refused(problem);
    await new Promise((done) => setTimeout(done, REFRESH_EVERY)); // or scrolling would ask again in each frame
  } finally {
    if (turn === list.turn) list.loading = false;
    schedule();
  }
}

/** Looks at the newest jobs, as far down as there is something new, and puts them where the list has that range. */
async function refresh() {
  const { turn } = list;
  const newest = list.rows[0]?.number ?? 0;
  let { items, next } = await jobs(50);
  while (next && newest && items.at(-1).number > newest && items.length < 2000) {
    const older = await jobs(PAGE, next);
    [items, next] = [items.concat(older.items), older.next];
  }
  if (turn !== list.turn || halted) return;
  const apart = next && items.at(-1).number > newest;
  const tooMany = list.rows.length > MOST_ROWS && ui.scroller.scrollTop === 0;
  const end = !next || apart || tooMany ? list.rows.length : place(items.at(-1).number - 0.5);
  if (end === list.rows.length) list.next = next;
  list.rows.splice(0, end, ...items.map(current).filter(matches));
}

let refreshTimer = null;
let [changed, refreshed] = [0, -REFRESH_EVERY];
function refreshSoon() {
  changed = performance.now();
  refreshTimer ??= setTimeout(async () => {
    refreshed = performance.now();
    const looks = halted ? [] : [list.loaded ? refresh() : list.loading || load(), detail && !detail.settled && loadDetail()];
    await Promise.allSettled(looks); // that the app is gone, the stream tells
    refreshTimer = null;
    schedule();
    if (changed > refreshed) refreshSoon();
  }, refreshed + REFRESH_EVERY - performance.now());
}

// --- The stream of events -------------------------------------------------------------------------------------------

let [source, lastId] = [null, ""];
let lostTimer, retryTimer;
const frozen = () => on(ui.freeze, "aria-pressed");
const lost = () => ui.link.dataset.link === "lost";

function connect() {
  source?.close();
  clearTimeout(retryTimer);
  if (document.hidden || frozen()) return notLost(); // a host gets six connections of a browser: a hidden tab takes none
  source = new EventSource(lastId ? `./events?after=${encodeURIComponent(lastId)}` : "./events");
  source.onopen = connected;
  source.onerror = disturbed;
  source.addEventListener("tick", (event) => {
    lastId = event.lastEventId;
    tick(JSON.parse(event.data));
  });
  source.addEventListener("reset", () => {
    now.summary = null; // the next tick begins anew
    ended.clear();
    spark.clear();
  });
}

const notLost = () => { lostTimer = clearTimeout(lostTimer); };

function link(state, word) {
  set(ui.link, "data-link", state);
  put(ui.linkWord, word);
  ui.data.classList.toggle("lost", state === "lost");
  show(ui.refused, state === "refused");
  show(ui.data, state !== "refused");
  schedule();
}

function connected() {
  notLost();
  halted = null;
  link("live", (now.summary?.state ?? "open") === "open" ? "Live" : "The app is closing");
}

function disturbed() {
  const at = clock();
  lostTimer ??= setTimeout(() => {
    halted = at;
    link("lost", `Not connected since ${timeOfDay.format(at)}, trying again. This is how it was then.`);
    announce("Not connected to the app.");
  }, LOST_AFTER);
  if (source.readyState !== EventSource.CLOSED) return; // the browser tries again by itself, with Last-Event-ID
  request("./summary").catch(refused);
  retryTimer = setTimeout(connect, 2000);
}

/** The app said no: its own words tell what to do. */
function refused({ status, title, detail: text }) {
  if (status !== 401 && status !== 403) return;
  notLost();
  fill(ui, { refusedTitle: title ?? "Not allowed", refusedDetail: text });
  link("refused", "Not allowed");
}

function tick({ time: at, summary, lanes, ended: newly }) {
  const first = !now.summary;
  if (!first) tellNews(lanes.items, newly); // what had failed before is on the page, it is no news
  Object.assign(now, { summary, lanes: lanes.items, total: lanes.total, at: Date.parse(at) });
  skew = now.at - Date.now();
  for (const job of newly) {
    ended.set(job.number, job);
    if (ended.size > 1000) ended.delete(ended.keys().next().value);
    learn(job);
    countEnded(job);
  }
  for (const job of lanes.items.flatMap((lane) => [lane.running, lane.head])) if (job) learn(current(job));
  connected();
  if (first) load().then(() => list.rows.filter((job) => Date.parse(job.ended_at) <= Date.parse(at)).forEach(countEnded));
  else refreshSoon();
}

function toggleFreeze() {
  set(ui.freeze, "aria-pressed", !frozen());
  connect(); // frozen: only ends the stream; else it goes on behind the last event, so nothing is lost
  if (!frozen()) return;
  halted = clock();
  link("frozen", `Frozen at ${timeOfDay.format(halted)}`);
}

// --- Spoken: failures and stops, politely and not too often ---------------------------------------------------------

let [sentences, speakTimer, toastTimer] = [[]];
function announce(sentence) {
  sentences.push(sentence);
  speakTimer ??= setTimeout(() => {
    put(ui.spoken, sentences.slice(0, 3).join(" ") + (sentences.length > 3 ? ` And ${sentences.length - 3} more.` : ""));
    [sentences, speakTimer] = [[], null];
  }, 3000);
}

function tellNews(lanes, newly) {
  const before = new Set(now.lanes.filter((lane) => lane.state === "stopped").map((lane) => lane.id));
  for (const lane of lanes) if (lane.state === "stopped" && !before.has(lane.id)) announce(`Lane ${lane.name} stopped.`);
  for (const job of newly) if (job.state === "failed") announce(`${short(job.function)} failed in ${job.lane.name}.`);
}

function toast(text) {
  put(ui.toast, text);
  clearTimeout(toastTimer);
  toastTimer = setTimeout(put, 7000, ui.toast, "");
}

// --- Figures --------------------------------------------------------------------------------------------------------

let frame = null;
function schedule() {
  frame ??= requestAnimationFrame(() => {
    frame = null;
    paintRows(); // first: it measures, and nothing has been written yet
    if (now.summary) paintFigures(now.summary);
    if (now.summary) paintLanes();
    if (detail) paintDetail();
  });
}

function paintFigures({ oldest, ...s }) {
  fill(ui, {
    running: count(s.running), maxRunning: `of ${count(s.max_running)}`, waiting: count(s.waiting), failed: count(s.failed),
    succeeded: count(s.succeeded), oldest: oldest ? duration(oldest.for + since(now.at)) : "–",
    oldestLane: oldest && [`in ${oldest.lane.name}`, oldest.lane.name],
  });
  ui.failed.classList.toggle("bad", s.failed > 0);
  for (const pill of ui.pills.children) put(pill.lastElementChild, count(FILTERS[pill.value].count(s)));
  paintSpark();
}

const spark = new Map(); // of two seconds each: how many ended, and how many of them failed

function countEnded(job) {
  const bucket = Math.floor(Date.parse(job.ended_at) / 2000);
  const [all, failed] = spark.get(bucket) ?? [0, 0];
  spark.set(bucket, [all + 1, failed + (job.state === "failed")]);
}

function paintSpark() {
  const last = Math.floor(clock() / 2000);
  for (const bucket of spark.keys()) if (bucket <= last - 60) spark.delete(bucket);
  const peak = Math.max(6, ...[...spark.values()].map(([all]) => all));
  let [ok, bad, ofAll, ofFailed] = ["", "", 0, 0];
  for (const [bucket, [all, failed]] of spark) {
    const at = (n) => `${298 - (last - bucket) * 5} ${(38 - (n / peak) * 36).toFixed(1)}`;
    if (failed) bad += `M${at(0)}L${at(failed)}`;
    if (all > failed) ok += `M${at(failed)}L${at(all)}`;
    [ofAll, ofFailed] = [ofAll + all, ofFailed + failed];
  }
  [ok, bad].forEach((d, i) => set(ui.spark.children[i], "d", d));
  set(ui.spark, "aria-label", `${count(ofAll)} ended in the last 2 minutes, ${count(ofFailed)} of them failed`);
}

// --- Lanes ----------------------------------------------------------------------------------------------------------

const cards = new Map(); // by lane id: used again, so that focus and hover stay
let [order, orderedAt] = [[], 0];

/** Worst first, but not while one points at them and not many times a second: nothing may jump from under a click. */
function orderLanes() {
  const ids = now.lanes.map((lane) => lane.id);
  const urgent = now.lanes.some((lane) => lane.state === "stopped" && cards.get(lane.id)?.root.dataset.state !== "stopped");
  const pointed = matchMedia("(hover: hover)").matches && ui.lanes.matches(":hover");
  const mayMove = !pointed && (urgent || performance.now() - orderedAt > 1000);
  if (mayMove) orderedAt = performance.now();
  order = mayMove ? ids : [...new Set([...order.filter((id) => ids.includes(id)), ...ids])];
}

function paintLanes() {
  orderLanes();
  const all = on(ui.allLanes, "aria-expanded");
  const shown = all ? order : order.slice(0, LANES_AT_FIRST);
  for (const id of cards.keys()) if (!shown.includes(id)) cards.delete(id);
  for (const id of shown) {
    if (!cards.has(id)) cards.set(id, stamp(ui.lane));
    paintLane(cards.get(id), now.lanes.find((lane) => lane.id === id));
  }
  arrange(ui.lanes, shown.map((id) => cards.get(id).root));
  const [hidden, others] = [now.lanes.length - LANES_AT_FIRST, now.total - now.lanes.length];
  show(ui.noLanes, !now.lanes.length);
  fill(ui, {
    allLanes: hidden > 0 ? (all ? "Show fewer" : `Show ${count(hidden)} more`) : null,
    otherLanes: others > 0 ? `${count(others)} other lanes are in no worse state.` : null,
  });
}

function paintLane(card, lane) {
  card.lane = lane;
  set(card.root, "data-state", lane.state);
  set(card.root, "data-chips", lane.next.length);
  fill(card, { name: [lane.name || "(no name)", lane.name], why: why(lane) });
  for (const key of ["waited", "ran"]) for (const p of ["50", "95"]) put(card[key + p], duration(lane[key]?.[`p${p}`]));
  // One that is idle for a moment keeps its height, so that those below it do not jump.
  if (lane.state !== "idle") card.busyAt = clock();
  const still = lane.state === "idle" && (card.busyAt === undefined || since(card.busyAt) > 3);
  card.root.classList.toggle("idle", still && (card.root.matches(".idle") || !focusIn(card.root)));
  paintOperations(card, lane);
  paintBars(card.bars, lane.recent);
  paintHead(card, lane);
  paintNext(card, lane);
}

/** One sentence that says why the lane stands, or how it goes. */
function why({ state, head, running, waiting, ...lane }) {
  const first = lane.head_for == null || !waiting ? "" : `, the first for ${duration(lane.head_for + since(now.at))}`;
  const behind = waiting ? `${wait(waiting)} behind it` : "Nothing waits behind it";
  const held = (head?.blocked_by?.kind === "request" ? head.blocked_by.for : lane.head_for) + since(now.at);
  if (state === "stopped") return `Stopped: ${head ? short(head.function) : "a job"} failed. ${behind}.`;
  if (state === "held") return `Held for ${duration(held)} by ${lane.held_by ?? "a request"}, which has not responded.`;
  if (state === "paused") return `Paused.${running ? " What runs still ends." : ""} ${waiting ? wait(waiting) : "Nothing waits"}${first}.`;
  if (state === "idle") return `Idle.${lane.ended ? ` ${count(lane.ended)} ended${lane.failed ? `, ${count(lane.failed)} failed` : ""}.` : ""}`;
  if (running) return `${behind}${first}.`;
  return `${wait(waiting)}${first}${{ slot: ": all slots are taken", worker: ": no worker is alive" }[head?.blocked_by?.kind] ?? ""}.`;
}

function paintOperations(card, lane) {
  const [stopped, paused] = [lane.state === "stopped", lane.state === "paused"];
  const buttons = [...card.operations.children];
  const focused = buttons.find(focusIn);
  show(card.operations, now.summary.operate);
  set(card.operations, "aria-label", `Operations of ${lane.name}`);
  fill(card, { retry: stopped ? "Retry" : null, skip: stopped ? "Skip" : null });
  fill(card, { pause: stopped ? null : paused ? "Resume" : "Pause", clear: lane.waiting ? "Clear" : null });
  set(card.pause, "data-verb", paused ? "resume" : "pause");
  for (const button of buttons) set(button, "aria-disabled", lost() || card.sending ? true : null);
  // The one with the focus may just have gone: its neighbor takes over, or one would have to start at the page's top.
  if (focused?.hidden) buttons.find((button) => !button.hidden)?.focus();
}

function paintBars(svg, recent) {
  const longest = Math.max(0.001, ...recent.map((job) => job.ran ?? 0));
  const [drawn, sums] = [{ succeeded: "", off: "", failed: "" }, { succeeded: 0, off: 0, failed: 0 }];
  recent.forEach((job, i) => {
    const kind = job.state in drawn ? job.state : "off";
    const x = 129 - (recent.length - i) * 6;
    drawn[kind] += `M${x} 38v${-Math.max(3, ((job.ran ?? 0) / longest) * 36).toFixed(1)}`;
    if (kind === "failed") drawn[kind] += `M${x} 40v2`; // a mark below: not by color alone
    sums[kind] += 1;
  });
  Object.values(drawn).forEach((d, i) => set(svg.children[i], "d", d));
  set(svg, "aria-label", `Last ${recent.length}: ${sums.succeeded} succeeded, ${sums.failed} failed, ${sums.off} did not run`);
}

function paintHead(card, lane) {
  const job = lane.running ?? lane.head;
  show(card.head, job);
  show(card.nothing, !job);
  if (!job) return;
  const stands = { stopped: ["failed", errorText(job) ?? "Failed"], held: ["held", "Waits for its response"], paused: ["held", "Next, when resumed"] };
  const runs = () => ["running", job.progress ? progressText(job.progress) : `No. ${count(job.number)}, waited ${duration(waited(job))}`];
  const [kind, note] = lane.running ? runs() : stands[lane.state] ?? ["next", "Waits for its turn"];
  set(card.head, "data-kind", kind);
  set(card.head, "title", `${job.function}\n${note}`);
  fill(card, { function: short(job.function), time: lane.running ? duration(ran(job)) : null, note });
  paintTrack(card.track, lane.running && job.progress);
}

function paintTrack(track, progress) {
  show(track, progress?.total);
  if (progress?.total) track.firstElementChild.style.setProperty("--done", Math.min(1, progress.done / progress.total));
}

function paintNext(card, lane) {
  [card.chip1, card.chip2, card.chip3].forEach((chip, i) => {
    const { from, to, function: task } = lane.next[i] ?? {};
    show(chip, from);
    if (!from) return;
    put(chip.firstElementChild, to > from ? `${count(from)}–${count(to)}` : count(from));
    put(chip.lastElementChild, short(task));
    set(chip, "title", task);
    set(chip, "data-many", to > from ? "" : null);
  });
  const behind = (lane.next.at(-1)?.to ?? 0) + lane.more;
  fill(card, { more: lane.more ? `+${count(lane.more)}` : null, all: behind ? `+${count(behind)}` : null });
  show(card.next, behind);
}

async function operate(card, verb, body) {
  if (card.sending || lost()) return;
  card.sending = true;
  const asked = now.at;
  try {
    const lane = await post(`./lanes/${encodeURIComponent(card.lane.id)}/${verb}`, body);
    // A tick that came meanwhile may be newer; if it is not, one that is newer comes, as something has changed.
    if (now.at === asked) now.lanes = now.lanes.map((other) => (other.id === lane.id ? lane : other));
  } catch (problem) {
    toast(problem.detail);
  }
  card.sending = false;
  schedule();
}

function clickLane({ target }) {
  const button = target.closest("button");
  const card = [...cards.values()].find(({ root }) => button && root.contains(button));
  if (!card) return;
  const [{ verb }, { lane }] = [button.dataset, card];
  if (!verb) openJob((lane.running ?? lane.head).id);
  else if (verb === "clear") askClear(card);
  // The head that is meant is named: if another came in the meantime, the app says so and does nothing.
  else operate(card, verb, verb === "retry" || verb === "skip" ? { head: lane.head.id } : {});
}

function askClear(card) {
  if (lost()) return;
  const { name, waiting } = card.lane;
  const clearText = `${count(waiting)} waiting ${waiting === 1 ? "job" : "jobs"} will not run. This cannot be undone.`;
  fill(ui, { clearTitle: `Clear ${name || "the lane"}?`, clearText });
  ui.clearYes.onclick = () => {
    ui.clear.close();
    operate(card, "clear", {});
  };
  ui.clear.showModal();
}

// --- Rows: only those that are seen are in the document -------------------------------------------------------------

const drawnRows = new Map(); // by a job's number
let anchor = null; // the row at the top of what is seen, which stays there when others come above it
let tallest = 0;

function paintRows() {
  const { rows } = list;
  const height = small.matches ? 44 : 36;
  const focused = [...drawnRows.keys()].find((number) => focusIn(drawnRows.get(number).root));
  const view = ui.scroller.clientHeight || 514;
  let top = ui.scroller.scrollTop;
  const stays = anchor && (top > 0 || (focused && document.activeElement.matches(":focus-visible")));
  if (stays) top = Math.max(0, place(anchor.number) * height + anchor.offset);
  // The box grows with its rows and stays so, or the page would jump when one chooses another state.
  tallest = Math.max(tallest, rows.length * height + 36);
  ui.scroller.style.setProperty("min-height", `min(${tallest}px, 514px, 80vh)`);
  const first = Math.floor(top / height);
  const [from, to] = [Math.max(0, first - OVERSCAN), Math.ceil((top + view) / height) + OVERSCAN];
  ui.rows.style.setProperty("height", `${rows.length * height}px`);
  ui.rows.style.setProperty("padding-top", `${from * height}px`);
  if (stays && top !== ui.scroller.scrollTop) ui.scroller.scrollTop = top;

  const wanted = new Set(rows.slice(from, to));
  // What has the focus, or whose dialog is open, stays though it is not seen: the focus is to come back to it.
  for (const number of [focused, detail?.job?.number]) if (listed(number)) wanted.add(listed(number));
  const shown = [...wanted].sort((a, b) => b.number - a.number);
  const numbers = new Set(shown.map((job) => job.number));
  const spare = [...drawnRows].filter(([number]) => !numbers.has(number) && drawnRows.delete(number) && number !== focused);
  for (const job of shown) {
    // A row that has gone out of sight is used again: new elements would cost several times the drawing.
    if (!drawnRows.has(job.number)) drawnRows.set(job.number, spare.shift()?.[1] ?? stamp(ui.row));
    const [row, at] = [drawnRows.get(job.number), place(job.number)];
    row.root.classList.toggle("far", at < from || at >= to);
    if (at < from || at >= to) row.root.style.setProperty("top", `${at * height}px`);
    paintRow(row, job, at + 2); // after the row of headings, and counted from one
  }
  arrange(ui.rows, shown.map((job) => drawnRows.get(job.number).root));
  // The row with the focus is no longer among these jobs: the one in its place takes over.
  const instead = focused && !listed(focused) && rows[Math.min(place(focused), rows.length - 1)];
  if (instead) drawnRows.get(instead.number)?.function.focus({ preventScroll: true });

  anchor = rows[first] ? { number: rows[first].number, offset: top - first * height } : null;
  set(ui.table, "aria-rowcount", list.next ? -1 : rows.length + 1);
  set(ui.table, "aria-busy", list.loading);
  fill(ui, {
    noJobs: list.loaded && !rows.length ? (list.filter === "all" && !list.query ? "No jobs yet." : "No job matches.") : null,
    kept: rows.length && !list.next && now.summary?.history != null ? `Of the jobs that ended, the last ${count(now.summary.history)} are kept.` : null,
  });
  if (list.next && !list.loading && (top + view) / height > rows.length - 40) load(list.next);
}

function paintRow(row, job, index) {
  row.job = job;
  const [kind, word] = look(job);
  set(row.root, "aria-rowindex", index);
  set(row.state, "data-look", kind);
  fill(row, {
    number: job.number, function: [short(job.function), job.function], error: [errorText(job), errorText(job)], state: word,
    lane: [job.lane.name || "(no name)", job.lane.name], waited: duration(waited(job)), ran: duration(ran(job)), added: time(job.added_at),
  });
}

const rowOf = (node) => [...drawnRows.values()].find((row) => row.root.contains(node));

/** Up and down go from row to row: by Tab alone, ten thousand of them would be a long way. */
function keyInRows(event) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  const next = step && drawnRows.get(list.rows[place(rowOf(event.target).job.number) + step]?.number);
  if (!next) return;
  event.preventDefault();
  next.function.focus({ preventScroll: true });
  next.root.scrollIntoView({ block: "nearest" });
}

// --- The dialog of one job ------------------------------------------------------------------------------------------

const openJob = (id) => location.assign(`#job=${encodeURIComponent(id)}`);

/** The address says which job is open, so that a link to it can be shared. */
function followAddress() {
  const id = new URLSearchParams(location.hash.slice(1)).get("job");
  if (!id) return ui.job.close();
  if (detail?.id === id) return;
  const known = [...list.rows, ...now.lanes.flatMap((lane) => [lane.running, lane.head])].find((job) => job?.id === id);
  detail = { id, job: known, at: clock(), settled: false, missing: null };
  put(ui.jobSays, "");
  paintDetail();
  if (!ui.job.open) ui.job.showModal();
  loadDetail();
}

async function loadDetail() {
  const asked = detail;
  try {
    const job = await request(`./jobs/${encodeURIComponent(asked.id)}`);
    Object.assign(asked, { job, at: clock(), settled: job.done, missing: null });
  } catch (problem) {
    if (problem.status === 404) asked.settled = true; // what is shown is the last that is known
    if (!asked.job) asked.missing = problem.detail;
  }
  schedule();
}

function paintDetail() {
  const { job, missing } = detail;
  fill(ui, { jobTitle: job?.function ?? (missing ? "Not known" : "Looking for it"), jobMissing: job ? null : missing });
  show(ui.jobKnown, job);
  if (!job) return;
  const [kind, word] = look(job);
  const result = job.result == null ? null : JSON.stringify(job.result, null, 2);
  fill(ui, {
    jobAdded: time(job.added_at), jobWaited: duration(waited(job)), jobRan: duration(ran(job)), jobState: word,
    jobNumber: count(job.number), jobLane: job.lane.name || "(no name)", jobRequest: job.request, jobBlocked: blocked(job),
    jobProgress: job.progress && progressText(job.progress), jobId: job.id, jobOmitted: job.result_omitted,
    jobResult: result?.length > 100000 ? `${result.slice(0, 100000)}\n…` : result, jobError: errorText(job),
  });
  const wait = job.started_at ? "done" : job.done ? "off" : "now";
  const steps = ["done", wait, job.started_at && (job.done ? "done" : "now"), job.done ? kind : null];
  steps.forEach((step, i) => set(ui.jobSteps.children[i], "data-step", step));
  paintTrack(ui.jobTrack, job.progress);
  const operable = now.summary?.operate && !job.done;
  if (!operable && focusIn(ui.jobCancel)) ui.jobClose.focus();
  show(ui.jobCancel, operable);
  set(ui.jobCancel, "aria-disabled", lost() ? true : null);
}

/** What stands before a job, and how many run before it. */
function blocked(job) {
  const { kind, name, for: seconds } = job.blocked_by ?? {};
  const by = {
    job: short(name ?? "another job"), request: `${name ?? "a request"}, which has not responded`, paused: `${job.lane.name} is paused`,
    failed: `${job.lane.name} has stopped: ${short(name ?? "a job")} failed`, slot: "all slots are taken",
    retry: `${short(name ?? "a job")} has failed, and waits to run again`, worker: "no worker is alive",
  }[kind];
  const long = by && seconds != null ? `, for ${duration(seconds + since(detail.at))}` : "";
  const ahead = job.ahead == null ? null : `${job.ahead_more ? "more than " : ""}${count(job.ahead)} ahead`;
  return [by && by + long, ahead].filter(Boolean).join("; ") || null;
}

async function cancelJob() {
  if (lost()) return;
  const answer = post(`./jobs/${encodeURIComponent(detail.id)}/cancel`, {});
  put(ui.jobSays, await answer.then(() => "Asked to cancel.", (problem) => problem.detail));
  if (detail) loadDetail();
}

async function copyId() {
  getSelection().selectAllChildren(ui.jobId); // without a clipboard (plain http) it can be copied by hand
  const copied = await navigator.clipboard?.writeText(detail.id).then(() => true, () => false);
  put(ui.jobSays, copied ? "Copied." : "Selected: copy it with the keyboard.");
}

function closedJob() {
  const { job } = detail ?? {};
  detail = null;
  // The row to which the focus was to come back may have gone.
  const near = job && list.rows[Math.min(place(job.number), list.rows.length - 1)];
  if (document.activeElement === document.body) drawnRows.get(near?.number)?.function.focus({ preventScroll: true });
  if (location.hash) history.replaceState(null, "", location.pathname + location.search);
}

// --- Start ----------------------------------------------------------------------------------------------------------

function choose(filter, query) {
  Object.assign(list, { filter, query });
  for (const pill of ui.pills.children) set(pill, "aria-pressed", pill.value === filter);
  load();
}

let searchTimer = null;
ui.search.oninput = () => {
  clearTimeout(searchTimer);
  searchTimer = setTimeout(() => choose(list.filter, ui.search.value.trim()), 250);
};
ui.pills.onclick = ({ target }) => target.closest("button") && choose(target.closest("button").value, list.query);
ui.freeze.onclick = toggleFreeze;
ui.lanes.onclick = clickLane;
ui.allLanes.onclick = () => {
  set(ui.allLanes, "aria-expanded", !on(ui.allLanes, "aria-expanded"));
  schedule();
};
ui.rows.onclick = ({ target }) => openJob(rowOf(target).job.id);
ui.rows.onkeydown = keyInRows;
ui.scroller.onscroll = () => {
  anchor = null; // one scrolled: what is at the top is chosen anew
  schedule();
};
ui.job.onclose = closedJob;
ui.jobCancel.onclick = cancelJob;
ui.jobCopy.onclick = copyId;
for (const button of document.querySelectorAll("[data-close]")) button.onclick = () => button.closest("dialog").close();
small.onchange = schedule;
addEventListener("hashchange", followAddress);
document.addEventListener("visibilitychange", connect);
setInterval(() => document.hidden || halted || schedule(), 1000);
connect();
followAddress();
