// Requests to the app. Every URL is relative to the document, so the page works wherever it is mounted.

export async function request(url, options) {
  const response = await fetch(url, { cache: "no-store", ...options }).catch(() => null);
  if (!response) throw { status: 0, detail: "Not connected: this did not reach the app." };
  const body = await response.json().catch(() => ({}));
  if (response.ok) return body;
  throw { status: response.status, title: body.title, detail: body.detail ?? body.title ?? `The app answered ${response.status}.` };
}

export const post = (url, body) => request(url, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
