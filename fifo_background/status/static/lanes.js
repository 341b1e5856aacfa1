// Lanes: each is drawn as its queue, past | now | next, and operated.

import { openJob } from "./dialog.js";
import { arrange, fill, focusIn, on, paintTrack, put, schedule, set, show, stamp, ui } from "./document.js";
import { isLost } from "./link.js";
import { toast } from "./news.js";
import { clock, now, since, takeLane } from "./now.js";
import { post } from "./requests.js";
import { count, duration, errorText, progressText, ran, short, wait, waited } from "./words.js";

const LANES_AT_FIRST = 12; // more would push the jobs out of sight
const NEW_A_FRAME = 2; // cards; to make and lay out dozens at once would keep the page from answering

const cards = new Map(); // by lane id: used again, so that focus and hover stay
let [order, orderedAt] = [[], 0];
let toClear = null; // the card whose lane the dialog asks about

/** Worst first, but not while one points at them and not many times a second: nothing may jump from under a click. */
function orderLanes() {
  const ids = now.lanes.map((lane) => lane.id);
  const urgent = now.lanes.some((lane) => lane.state === "stopped" && cards.get(lane.id)?.root.dataset.state !== "stopped");
  const pointed = matchMedia("(hover: hover)").matches && ui.lanes.matches(":hover");
  const mayMove = !pointed && (urgent || performance.now() - orderedAt > 1000);
  if (mayMove) orderedAt = performance.now();
  order = mayMove ? ids : [...new Set([...order.filter((id) => ids.includes(id)), ...ids])];
}

export function paintLanes() {
  if (!now.summary) return;
  orderLanes();
  const all = on(ui.allLanes, "aria-expanded");
  // The one with the focus stays, or one would have to start at the page's top.
  const shown = order.filter((id, i) => all || i < LANES_AT_FIRST || (cards.has(id) && focusIn(cards.get(id).root)));
  for (const id of cards.keys()) if (!shown.includes(id)) cards.delete(id);
  const missing = shown.filter((id) => !cards.has(id));
  for (const id of missing.slice(0, NEW_A_FRAME)) cards.set(id, stamp(ui.lane));
  if (missing.length > NEW_A_FRAME) schedule();
  const drawn = shown.filter((id) => cards.has(id));
  for (const id of drawn) paintLane(cards.get(id), now.lanes.find((lane) => lane.id === id));
  arrange(ui.lanes, drawn.map((id) => cards.get(id).root));
  const [hidden, others] = [now.lanes.length - (all ? LANES_AT_FIRST : shown.length), now.total - now.lanes.length];
  if (ui.clear.open) paintClear();
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
  for (const button of buttons) set(button, "aria-disabled", isLost() || card.sending ? true : null);
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
  if (card.sending || isLost()) return;
  card.sending = true;
  const asked = now.at;
  try {
    const lane = await post(`./lanes/${encodeURIComponent(card.lane.id)}/${verb}`, body);
    // A tick that came meanwhile may be newer; if it is not, one that is newer comes, as something has changed.
    if (now.at === asked) takeLane(lane);
  } catch (problem) {
    toast(problem.detail);
  }
  card.sending = false;
  schedule();
}

export function clickLane({ target }) {
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
  if (isLost()) return;
  toClear = card;
  paintClear();
  ui.clearYes.onclick = () => {
    if (isLost()) return;
    ui.clear.close();
    operate(card, "clear", {});
  };
  ui.clear.showModal();
}

/** Its number is that of now: more may have come since one has clicked. */
function paintClear() {
  const { name, waiting } = now.lanes.find((lane) => lane.id === toClear.lane.id) ?? toClear.lane;
  const clearText = `${count(waiting)} waiting ${waiting === 1 ? "job" : "jobs"} will not run. This cannot be undone.`;
  fill(ui, { clearTitle: `Clear ${name || "the lane"}?`, clearText });
  set(ui.clearYes, "aria-disabled", isLost() ? true : null);
}
