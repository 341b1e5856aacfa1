// Now: what the server told last, and its clock.

export const now = { summary: null, lanes: [], total: 0, at: 0 };

let skew = 0; // from this clock to the server's, ms
let halted = null; // when the page stopped to follow: its times then stand still

export const clock = () => halted ?? Date.now() + skew;
export const since = (at) => Math.max(0, (clock() - at) / 1000);
export const isHalted = () => halted !== null;
export const halt = (at) => { halted = at; };
export const goOn = () => { halted = null; };

export function takeTick({ time, summary, lanes }) {
  Object.assign(now, { summary, lanes: lanes.items, total: lanes.total, at: Date.parse(time) });
  skew = now.at - Date.now();
}

/** An operation has answered with the lane as it is since then. */
export function takeLane(lane) {
  now.lanes = now.lanes.map((other) => (other.id === lane.id ? lane : other));
}

/** The server no longer knows what this page has seen: the next tick begins anew. */
export function forget() {
  now.summary = null;
}
