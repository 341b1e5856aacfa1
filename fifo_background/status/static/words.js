// Words: how times, numbers, names and states are written.

import { since } from "./now.js";

export const NOT_RUN = ["skipped", "cancelled", "superseded", "dropped"];

export const waited = (job) => job.waited ?? (job.done ? null : since(Date.parse(job.added_at)));
export const ran = (job) => job.ran ?? (job.started_at && !job.done ? since(Date.parse(job.started_at)) : null);

export function duration(seconds) {
  if (seconds == null) return "–";
  if (seconds < 0.0995) return `${Math.max(0, Math.round(seconds * 1000))} ms`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  const [big, unit, small, rest] = whole < 3600 ? [60, "min", 1, "s"] : whole < 86400 ? [3600, "h", 60, "min"] : [86400, "d", 3600, "h"];
  const left = Math.floor((whole % big) / small);
  return `${Math.floor(whole / big)} ${unit}${left ? ` ${left} ${rest}` : ""}`;
}

// Made by hand: the first Intl formatter of a page takes longer than all of the page's own work at its start.
export const count = (n) => String(n).replace(/^\d+/, (whole) => whole.replace(/\B(?=(\d{3})+$)/g, ","));
const two = (n) => String(n).padStart(2, "0");
export const timeOfDay = (date) => [date.getHours(), date.getMinutes(), date.getSeconds()].map(two).join(":");
const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
const dayAndTime = (date) => `${MONTHS[date.getMonth()]} ${date.getDate()}, ${two(date.getHours())}:${two(date.getMinutes())}`;
export const time = (iso) => (since(Date.parse(iso)) < 43200 ? timeOfDay : dayAndTime)(new Date(iso));
export const wait = (n) => `${count(n)} ${n === 1 ? "waits" : "wait"}`;
export const errorText = (job) => [job.error?.type, job.error?.message].filter(Boolean).join(": ") || null;
export const progressText = ({ done, total, note }) => [count(done), total != null && `of ${count(total)}`, note].filter(Boolean).join(" ");

/** The last part of a plain dotted name. Anything else is not ours to cut. */
export function short(name) {
  const dotted = /^[\p{L}_][\p{L}\p{N}_]*(\.[\p{L}_][\p{L}\p{N}_]*)+$/u.test(name);
  return dotted ? name.slice(name.lastIndexOf(".") + 1) : name || "(no name)";
}

/** How a job's state is drawn, and the word for it. */
export function look(job) {
  if (NOT_RUN.includes(job.state)) return ["off", job.state];
  if (job.state !== "pending" && job.state !== "queued") return [job.state, job.state];
  const word = { request: "held", paused: "paused" }[job.blocked_by?.kind] ?? "waiting";
  return [word, word];
}
