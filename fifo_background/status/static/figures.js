// The figures at the top, those in the pills, and how many ended in the last two minutes.

import { fill, put, set, ui } from "./document.js";
import { FILTERS } from "./jobs.js";
import { clock, now, since } from "./now.js";
import { count, duration } from "./words.js";

export function paintFigures() {
  if (!now.summary) return;
  const { oldest, ...s } = now.summary;
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

export function countEnded(job) {
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

export const forgetSpark = () => spark.clear();
