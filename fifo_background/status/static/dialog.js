// The dialog of one job.

import { fill, focusIn, paintTrack, put, schedule, set, show, ui } from "./document.js";
import { list } from "./jobs.js";
import { isLost } from "./link.js";
import { clock, now, since } from "./now.js";
import { post, request } from "./requests.js";
import { focusNear, keepRow } from "./rows.js";
import { count, duration, errorText, look, progressText, ran, short, time, waited } from "./words.js";

let detail = null; // what is shown: {id, job, at, settled, missing}

/** The id of the job that the address names, so that a link to it can be shared. */
const addressed = () => new URLSearchParams(location.hash.slice(1)).get("job");

export function openJob(id) {
  location.assign(`#job=${encodeURIComponent(id)}`);
  followAddress(); // the address tells of its change later, and not if it is the same
}

export function followAddress() {
  const id = addressed();
  if (!id) return ui.job.close();
  if (detail?.id === id && ui.job.open) return;
  const known = [...list.rows, ...now.lanes.flatMap((lane) => [lane.running, lane.head])].find((job) => job?.id === id);
  detail = { id, job: known, at: clock(), settled: false, missing: null };
  put(ui.jobSays, "");
  paintDetail();
  if (!ui.job.open) ui.job.showModal();
  loadDetail();
}

/** Takes in what the stream tells of a job. */
export function tellDialog(job) {
  if (detail?.id === job.id && !detail.job?.done) Object.assign(detail, { job, at: now.at });
}

/** Asks for the job again, unless what is shown is the last that there will be. */
export async function refreshDetail() {
  if (detail && !detail.settled) await loadDetail();
}

async function loadDetail() {
  const asked = detail;
  try {
    const job = await request(`./jobs/${encodeURIComponent(asked.id)}`);
    Object.assign(asked, { job, at: clock(), settled: job.done, missing: null });
  } catch (problem) {
    const gone = problem.status === 404;
    if (gone) asked.settled = true; // what is shown of one that has ended is the last that is known
    if (gone && !asked.job?.done) asked.job = null; // it no longer is as it is shown: perhaps it was another app's, before a restart
    if (!asked.job) asked.missing = problem.detail;
  }
  schedule();
}

export function paintDetail() {
  if (!detail) return;
  const { job, missing } = detail;
  keepRow(job?.number ?? null);
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
  set(ui.jobCancel, "aria-disabled", isLost() ? true : null);
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

/** Says how it went, if the dialog still shows that job. */
function say(shown, sentence) {
  if (detail === shown) put(ui.jobSays, sentence);
}

export async function cancelJob() {
  if (isLost()) return;
  const shown = detail;
  const answer = post(`./jobs/${encodeURIComponent(shown.id)}/cancel`, {});
  say(shown, await answer.then(() => "Asked to cancel.", (problem) => problem.detail));
  if (detail === shown) loadDetail();
}

export async function copyId() {
  const shown = detail;
  getSelection().selectAllChildren(ui.jobId); // without a clipboard (plain http) it can be copied by hand
  const copied = await navigator.clipboard?.writeText(shown.id).then(() => true, () => false);
  say(shown, copied ? "Copied." : "Selected: copy it with the keyboard.");
}

export function closedJob() {
  if (ui.job.open) return; // a dialog tells later that it has closed: since then another job was opened
  const closed = detail;
  detail = null;
  keepRow(null);
  // The row to which the focus was to come back may have gone.
  if (closed?.job && document.activeElement === document.body) focusNear(closed.job.number);
  if (closed && addressed() === closed.id) history.replaceState(null, "", location.pathname + location.search);
}
