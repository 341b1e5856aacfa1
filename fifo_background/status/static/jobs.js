// The list of jobs: newest first, by number.

import { schedule, ui } from "./document.js";
import { refused } from "./link.js";
import { isHalted } from "./now.js";
import { request } from "./requests.js";
import { NOT_RUN } from "./words.js";

const PAGE = 200; // jobs a request, the most that the API gives: history then takes few requests
const MOST_ROWS = 20000; // then a list that is at its top lets go of what is far below
const AFTER_FAILURE = 1000; // ms before a page is asked for again, as scrolling would ask in each frame

export const FILTERS = {
  all: { states: [], count: (s) => s.added },
  running: { states: ["running"], count: (s) => s.running },
  waiting: { states: ["pending", "queued"], count: (s) => s.waiting },
  failed: { states: ["failed"], count: (s) => s.failed },
  succeeded: { states: ["succeeded"], count: (s) => s.succeeded },
  off: { states: NOT_RUN, count: (s) => NOT_RUN.reduce((sum, state) => sum + s[state], 0) },
};

/** A new list has new `rows`; what comes to it later changes them. */
export const list = { rows: [], next: null, filter: "all", query: "", loaded: false, loading: false, problem: null, turn: 0 };

function jobs(limit, cursor) {
  const query = new URLSearchParams({ limit });
  for (const state of FILTERS[list.filter].states) query.append("state", state);
  if (list.query) query.set("q", list.query);
  if (cursor) query.set("cursor", cursor);
  return request(`./jobs?${query}`);
}

const ended = new Map(); // the last that ended, by number: an answer that was under way meanwhile must not undo it

function remember(job) {
  ended.set(job.number, job);
  if (ended.size > 1000) ended.delete(ended.keys().next().value);
}

/** A job as it is, though an answer may be older. */
export const current = (job) => ended.get(job.number) ?? job;

export const forgetEnded = () => ended.clear();

/** Where in the list a job of this number is, or would be. */
export function place(number) {
  let [low, high] = [0, list.rows.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    [low, high] = list.rows[middle].number > number ? [middle + 1, high] : [low, middle];
  }
  return low;
}

export const listed = (number) => [list.rows[place(number)]].find((job) => job?.number === number);

function inState(job) {
  const { states } = FILTERS[list.filter];
  return !states.length || states.includes(job.state);
}

/** Of one that the stream tells. Of what the app lists, it has judged the text by itself: it knows more ways to write one. */
const hasText = (job) => [job.function, job.lane.name, job.id].some((text) => text.toLowerCase().includes(list.query.toLowerCase()));

/** Takes in what the stream tells of a job. One below the last that is loaded comes with its page. */
export function learn(told) {
  if (told.done) remember(told);
  const job = current(told);
  const [at, known] = [place(job.number), listed(job.number)];
  if (known?.done || !(known || at < list.rows.length || (list.loaded && !list.next))) return;
  list.rows.splice(at, known ? 1 : 0, ...(inState(job) && (known || hasText(job)) ? [job] : []));
}

/** Loads the first page, or with a cursor what comes after those that are there. */
export async function load(cursor) {
  const turn = cursor ? list.turn : ++list.turn;
  list.loading = true;
  try {
    const { items, next } = await jobs(PAGE, cursor);
    if (turn !== list.turn) return;
    const oldest = (cursor && list.rows.at(-1)?.number) ?? Infinity;
    const rows = items.map(current).filter((job) => job.number < oldest && inState(job));
    if (cursor) list.rows.push(...rows);
    else list.rows = rows;
    Object.assign(list, { next, loaded: true, problem: null });
  } catch (problem) {
    refused(problem);
    // Those that are there are of another list. The next tick asks again.
    if (turn === list.turn && !cursor) Object.assign(list, { rows: [], next: null, loaded: false, problem: problem.detail });
    schedule();
    await new Promise((done) => setTimeout(done, AFTER_FAILURE));
  } finally {
    if (turn === list.turn) list.loading = false;
    schedule();
  }
}

/** Looks at the newest jobs, as far down as there is something new, and puts them where the list has that range. */
export async function refresh() {
  const { turn } = list;
  const newest = list.rows[0]?.number ?? 0;
  let { items, next } = await jobs(50);
  while (next && newest && items.at(-1).number > newest && items.length < 2000) {
    const older = await jobs(PAGE, next);
    [items, next] = [items.concat(older.items), older.next];
  }
  if (turn !== list.turn || isHalted()) return;
  const apart = next && items.at(-1).number > newest;
  const tooMany = list.rows.length > MOST_ROWS && ui.scroller.scrollTop === 0;
  const end = !next || apart || tooMany ? list.rows.length : place(items.at(-1).number - 0.5);
  if (end === list.rows.length) list.next = next;
  list.rows.splice(0, end, ...items.map(current).filter(inState));
}

/** Makes another list: of these states, with this text. */
export function choose(filter, query) {
  Object.assign(list, { filter, query });
  load();
}
