// The document: its elements by id, and how they are written. Only what differs is.
//
// Whatever comes from the app is text and set as textContent, never as markup. Sizes are set through CSSOM or SVG
// attributes: the page's CSP allows no style attributes.

export const ui = Object.fromEntries([...document.querySelectorAll("[id]")].map((node) => [node.id, node]));
export const small = matchMedia("(max-width: 680px)");
export const on = (node, name) => node.getAttribute(name) === "true";
export const focusIn = (node) => node.contains(document.activeElement);
export const show = (node, shown) => { if (node.hidden === Boolean(shown)) node.hidden = !shown; };

/** Sets a node's text; in the text node that is there, as a new one would have to be styled and laid out anew. */
export function put(node, text) {
  if (!node.firstChild) node.append("");
  if (node.firstChild.data !== String(text)) node.firstChild.data = text;
}

export function set(node, name, value) {
  if (value == null) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

/** Writes texts into parts by name, some with a whole text as title. A part without a text hides. */
export function fill(parts, texts) {
  for (const [name, value] of Object.entries(texts)) {
    const [text, title] = Array.isArray(value) ? value : [value];
    show(parts[name].closest("[data-fact]") ?? parts[name], text);
    put(parts[name], text ?? "");
    if (title !== undefined) set(parts[name], "title", title);
  }
}

/** A copy of a template: its named parts, and the root. */
export function stamp(template) {
  const root = template.content.firstElementChild.cloneNode(true);
  const parts = [...root.querySelectorAll("[data-part]")].map((node) => [node.dataset.part, node]);
  return { root, ...Object.fromEntries(parts) };
}

/** Lays children out in order, but around the one with the focus: moved, it would lose it. */
export function arrange(parent, wanted) {
  for (const child of [...parent.children]) if (!wanted.includes(child)) child.remove();
  const fixed = Math.max(0, wanted.findIndex(focusIn));
  if (wanted[fixed] && wanted[fixed].parentNode !== parent) parent.prepend(wanted[fixed]);
  for (let i = fixed - 1; i >= 0; i--) if (wanted[i].nextSibling !== wanted[i + 1]) wanted[i + 1].before(wanted[i]);
  for (let i = fixed + 1; i < wanted.length; i++) if (wanted[i].previousSibling !== wanted[i - 1]) wanted[i - 1].after(wanted[i]);
}

/** How far a task is, as a line. */
export function paintTrack(track, progress) {
  show(track, progress?.total);
  if (progress?.total) track.firstElementChild.style.setProperty("--done", Math.min(1, progress.done / progress.total));
}

const BUDGET = 2; // ms; a frame in which drawing has taken longer leaves the other parts to the next one

const painters = [];
const due = new Set(); // what is to be drawn; what waits longest comes first
let frame = null;

/** Takes what draws a part of the page, in the order in which they draw. */
export const drawsWith = (...functions) => { painters.push(...functions); };

/** Lets all parts be drawn: in the next frame, or in several, as all that a new page draws would be one long task. */
export function schedule() {
  for (const paint of painters) due.add(paint);
  frame ??= requestAnimationFrame(paintDue);
}

function paintDue(began) {
  frame = null;
  for (const paint of [...due]) {
    due.delete(paint);
    paint();
    if (performance.now() - began > BUDGET) break;
  }
  if (due.size) frame ??= requestAnimationFrame(paintDue);
}
