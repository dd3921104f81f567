// The only place that talks to where the page came from: the key, and what an error of it is.

const KEPT = "rapt-key";
let key = sessionStorage.getItem(KEPT) ?? "";

/** Sends this key from now on; with `keep` it outlives a reload of the tab, and never the tab. */
export function useKey(value, { keep = false } = {}) {
  key = value;
  sessionStorage.removeItem(KEPT);
  if (keep && value) sessionStorage.setItem(KEPT, value);
}

export const hasKey = () => key !== "";

/** A refusal, or no answer at all. */
class ServiceError extends Error {
  constructor(message, { status = 0, requestId = "" } = {}) {
    super(message);
    this.status = status;
    this.requestId = requestId;
  }
}

/** The answer to a request; `where` fills the braces of the route, `query` goes behind it, `body` is sent as JSON. */
export async function send(route, { where = {}, query = {}, body, form, signal } = {}) {
  const [method, pattern] = route.split(" ");
  const path = pattern.slice(1).replace(/\{(\w+)\}/g, (_, name) => encodeURIComponent(where[name]));
  const asked = new URLSearchParams(Object.entries(query).filter(([, value]) => value != null)).toString();
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  if (body !== undefined) headers["content-type"] = "application/json";
  let answer;
  try {
    answer = await fetch(asked ? `${path}?${asked}` : path, {
      method, headers, signal, body: form ?? (body === undefined ? undefined : JSON.stringify(body)),
      cache: "no-store", credentials: "omit", redirect: "error", referrerPolicy: "no-referrer",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError("the server of this page does not answer; is it running?");
  }
  if (answer.ok) return answer;
  const requestId = answer.headers.get("x-request-id") ?? "";
  const said = await answer.json().catch(() => null);
  throw new ServiceError(said?.error?.message ?? `refused with status ${answer.status}`, {
    status: answer.status, requestId,
  });
}

/** The JSON of an answer. */
export const ask = async (route, options) => (await send(route, options)).json();

/** Every object of a list, page by page, up to `most`. */
export async function all(route, { query = {}, most = 1000, ...options } = {}) {
  const found = [];
  let after;
  for (;;) {
    const page = await ask(route, { ...options, query: { limit: 100, ...query, after } });
    found.push(...page.data);
    if (!page.has_more || found.length >= most) return found;
    after = page.last_id;
  }
}

/** The values of a streamed answer as they come, until `[DONE]`. */
export async function* streamed(route, options) {
  const answer = await send(route, options);
  const requestId = answer.headers.get("x-request-id") ?? "";
  for await (const line of lines(answer.body)) {
    if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
    const value = JSON.parse(line.slice(6));
    if (value.error) throw new ServiceError(value.error.message, { requestId });
    yield value;
  }
}

/** The lines of a stream of bytes; whoever stops early ends the download. */
export async function* lines(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const parts = (rest + decoder.decode(value, { stream: true })).split("\n");
      rest = parts.pop();
      yield* parts;
    }
    if (rest) yield rest;
  } finally {
    await reader.cancel();
  }
}
