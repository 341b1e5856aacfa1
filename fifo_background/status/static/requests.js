// Requests to the app. Every URL is relative to the document, so the page works wherever it is mounted.

const PATIENCE = 20000; // ms; over a connection that has broken without a word no answer comes

export async function request(url, options) {
  const signal = AbortSignal.timeout(PATIENCE);
  const response = await fetch(url, { cache: "no-store", signal, ...options }).catch(() => null);
  if (!response) throw { status: 0, detail: "Not connected: the app has not answered." };
  const body = await response.json().catch(() => null); // another page: a login's, a proxy's, or that of an error
  if (response.ok && body) return body;
  const [title, detail] = [body?.title, body?.detail].map((text) => (typeof text === "string" ? text : null));
  throw { status: response.status, title, detail: detail ?? title ?? `The app answered ${response.status}${response.ok ? ", but not in JSON" : ""}.` };
}

export const post = (url, body) => request(url, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
