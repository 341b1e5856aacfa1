// Rows of the list of jobs: only those that are seen are in the document.

import { arrange, fill, focusIn, schedule, set, small, stamp, ui } from "./document.js";
import { list, listed, load, place } from "./jobs.js";
import { now } from "./now.js";
import { count, duration, errorText, look, ran, short, time, waited } from "./words.js";

const OVERSCAN = 6; // rows drawn above and below those that are seen
const NEW_A_FRAME = 8; // rows; scrolling needs fewer, as it uses those again that have gone out of sight

const drawnRows = new Map(); // by a job's number
let anchor = null; // {number, at}: a row and where it was: by as much as others have moved it since, one is moved along
let tallest = 0;
let kept = null; // the number of the row that stays in the document, though it may not be seen
let drawn = list.rows;

export function paintRows() {
  const { rows } = list;
  if (rows !== drawn) anchor = ui.scroller.scrollTop = 0; // another list begins at its top
  drawn = rows;
  const height = small.matches ? 44 : 36;
  const focused = [...drawnRows.keys()].find((number) => focusIn(drawnRows.get(number).root));
  const view = ui.scroller.clientHeight || 514;
  let top = ui.scroller.scrollTop;
  const stays = anchor && (top > 0 || (focused && document.activeElement.matches(":focus-visible")));
  if (stays) top = Math.max(0, top + place(anchor.number) * height - anchor.at); // one may have scrolled since
  // The box grows with its rows and stays so, or the page would jump when one chooses another state.
  const grows = tallest < Math.min(514, rows.length * height + 36);
  tallest = Math.max(tallest, rows.length * height + 36);
  ui.scroller.style.setProperty("min-height", `min(${tallest}px, 514px, 80vh)`);
  const first = Math.floor(top / height);
  const [from, to] = [Math.max(0, first - OVERSCAN), Math.ceil((top + view) / height) + OVERSCAN];
  ui.rows.style.setProperty("height", `${rows.length * height}px`);
  ui.rows.style.setProperty("padding-top", `${from * height}px`);
  if (stays && top !== ui.scroller.scrollTop) ui.scroller.scrollTop = top;

  // The row with the focus is no longer among these jobs: the one in its place takes over.
  const instead = focused && !listed(focused) ? rows[Math.min(place(focused), rows.length - 1)] : null;
  // In the order in which they are made: what one sees before what one may scroll to.
  const wanted = new Set([...(instead ? [instead] : []), ...rows.slice(first, to - OVERSCAN), ...rows.slice(from, to)]);
  // What has the focus, or whose dialog is open, stays though it is not seen: the focus is to come back to it.
  for (const number of [focused, kept]) if (listed(number)) wanted.add(listed(number));
  const numbers = new Set([...wanted].map((job) => job.number));
  const spare = [...drawnRows].filter(([number]) => !numbers.has(number) && drawnRows.delete(number) && number !== focused);
  const missing = [...wanted].filter((job) => !drawnRows.has(job.number));
  // A row that has gone out of sight is used again: new elements would cost several times the drawing.
  for (const job of missing.splice(0, spare.length + NEW_A_FRAME)) drawnRows.set(job.number, spare.shift()?.[1] ?? stamp(ui.row));
  if (missing.length || grows) schedule(); // a box that has grown shows more than was measured
  const shown = [...wanted].filter((job) => drawnRows.has(job.number)).sort((a, b) => b.number - a.number);
  let next = from; // rows follow each other by themselves, but for one behind a row that is not made yet
  for (const job of shown) {
    const [row, at] = [drawnRows.get(job.number), place(job.number)];
    row.root.classList.toggle("far", at !== next);
    if (at === next) next += 1;
    else row.root.style.setProperty("top", `${at * height}px`);
    paintRow(row, job, at + 2); // after the row of headings, and counted from one
  }
  arrange(ui.rows, shown.map((job) => drawnRows.get(job.number).root));
  if (instead) drawnRows.get(instead.number)?.function.focus({ preventScroll: true });

  anchor = rows[first] ? { number: rows[first].number, at: first * height } : null;
  set(ui.table, "aria-rowcount", list.next ? -1 : rows.length + 1);
  set(ui.table, "aria-busy", list.loading);
  fill(ui, {
    noJobs: list.problem ?? (list.loaded && !rows.length ? (list.filter === "all" && !list.query ? "No jobs yet." : "No job matches.") : null),
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

export const rowOf = (node) => [...drawnRows.values()].find((row) => row.root.contains(node));

export function keepRow(number) {
  kept = number;
}

/** Gives the focus to the row of this number, or the one in its place. */
export function focusNear(number) {
  const near = list.rows[Math.min(place(number), list.rows.length - 1)];
  drawnRows.get(near?.number)?.function.focus({ preventScroll: true });
}

/** Up and down go from row to row: by Tab alone, ten thousand of them would be a long way. */
export function keyInRows(event) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  const next = step && drawnRows.get(list.rows[place(rowOf(event.target).job.number) + step]?.number);
  if (!next) return;
  event.preventDefault();
  next.function.focus({ preventScroll: true });
  next.root.scrollIntoView({ block: "nearest" });
}
