// Every call of the service in one place: the key, the errors, and whether it can be reached.

import { readEvents } from "./sse.js";

const TIMEOUT_MS = 20_000;
const UPLOAD_MS = 600_000; // files, in either direction
const SILENCE_MS = 45_000; // the service sends a ping at least every 15 s

/** The service answered, and said no. */
export class ServiceError extends Error {
  constructor(status, { message, code = null, param = null }, headers) {
    super(message);
    this.status = status;
    this.code = code;
    this.param = param;
    const retryAfter = Number.parseInt(headers.get("Retry-After"), 10);
    this.retryAfterSeconds = Number.isNaN(retryAfter) ? null : retryAfter;
    this.requestId = headers.get("X-Request-Id");
  }
}

/** No answer came from the service. */
export class Unreachable extends Error {}

/** Tells "reachable", "unreachable" and "unauthorised" as calls find out. */
export const contact = new EventTarget();

/** The key of this tab, or the one that a person chose to keep on this device. */
export const apiKey = {
  get: () => keyOfPage ?? stored("sessionStorage") ?? stored("localStorage"),
  set: (key, { keep = false } = {}) => {
    keyOfPage = key;
    store("sessionStorage", keep ? null : key);
    store("localStorage", keep ? key : null);
  },
  forget: () => apiKey.set(null),
  isKept: () => stored("localStorage") !== null,
};

let keyOfPage = null; // where storage is blocked, the key holds until the page is closed

function stored(storage) {
  try {
    return globalThis[storage].getItem("api-key");
  } catch {
    return null; // storage is blocked
  }
}

function store(storage, key) {
  try {
    if (key === null) globalThis[storage].removeItem("api-key");
    else globalThis[storage].setItem("api-key", key);
  } catch {
    // Storage is blocked: `keyOfPage` has it.
  }
}

export function urlOf(path) {
  return new URL(path, document.baseURI).href;
}

export function contentPath(id, variant) {
  return `v1/videos/${encodeURIComponent(id)}/content?variant=${variant}`;
}

export const api = {
  models: (key = apiKey.get()) => callJson("v1/models", { key }),
  slices: () => callJson("v1/slices"),
  list: ({ limit, after }) => {
    const query = new URLSearchParams({ limit, order: "desc", ...(after && { after }) });
    return callJson(`v1/videos?${query}`);
  },
  get: (id) => callJson(videoPath(id)),
  /** `path` and `body`, JSON or a form, are what `requestOf` makes. */
  create: ({ path, body }, idempotencyKey) => {
    const isForm = body instanceof FormData; // whose type the browser knows, with its boundary
    const headers = { "Idempotency-Key": idempotencyKey, ...(!isForm && { "Content-Type": "application/json" }) };
    return callJson(path, { method: "POST", body, headers, ...(isForm && { timeout: UPLOAD_MS }) });
  },
  cancel: (id) => callJson(`${videoPath(id)}/cancel`, { method: "POST" }),
  remove: (id) => callJson(videoPath(id), { method: "DELETE", keepalive: true }),
  content: async (id, variant, signal = null) => {
    const response = await call(contentPath(id, variant), { timeout: UPLOAD_MS, signal });
    return response.blob();
  },
  /** Lets this browser's players read a video for a quarter of an hour, by a cookie. */
  ticket: (id) => call(`${videoPath(id)}/ticket`, { method: "POST" }),
  /** A picture or clip that a video was made from. */
  input: async (id, role) => (await call(`${videoPath(id)}/inputs/${role}`, { timeout: UPLOAD_MS })).blob(),
  events,
  isReady,
};

/** Yields the states of a job until it ends, or null when it is deleted; throws when it breaks off. */
async function* events(id, signal) {
  const silence = new AbortController();
  let timer = setTimeout(() => silence.abort(), SILENCE_MS);
  const response = await call(`${videoPath(id)}/events`, {
    headers: { Accept: "text/event-stream" },
    signal: AbortSignal.any([signal, silence.signal]),
    timeout: null,
  });
  if (response.status === 204) { // it had ended before
    clearTimeout(timer);
    yield api.get(id);
    return;
  }
  const alive = new TransformStream({
    transform(chunk, controller) {
      clearTimeout(timer);
      timer = setTimeout(() => silence.abort(), SILENCE_MS);
      controller.enqueue(chunk);
    },
  });
  try {
    for await (const { event, data } of readEvents(response.body.pipeThrough(alive))) {
      yield event === "deleted" ? null : parseJson(data);
    }
  } catch (error) {
    if (signal.aborted) throw error;
    throw new Unreachable(`the stream of ${id} broke off`, { cause: error });
  } finally {
    clearTimeout(timer);
  }
}

/** Whether the service can run jobs. The reason is for those who run it, not for those who ask. */
async function isReady() {
  try {
    await call("readyz", { timeout: 5_000 });
    return true;
  } catch (error) {
    if (error instanceof ServiceError) return false;
    throw error;
  }
}

function videoPath(id) {
  return `v1/videos/${encodeURIComponent(id)}`;
}

async function callJson(path, options) {
  return parseJson(await (await call(path, options)).text());
}

/** Seeds have up to 63 bits, which a JavaScript number would round: large ones become their digits. */
function parseJson(text) {
  return JSON.parse(text, (name, value, context) =>
    name === "seed" && !Number.isSafeInteger(value) ? (context?.source ?? value) : value,
  );
}

async function call(path, { headers = {}, timeout = TIMEOUT_MS, signal = null, key = apiKey.get(), ...options } = {}) {
  if (key) headers = { ...headers, Authorization: `Bearer ${key}` };
  const signals = [signal, timeout && AbortSignal.timeout(timeout)].filter(Boolean);
  let response;
  try {
    response = await fetch(urlOf(path), { ...options, headers, signal: AbortSignal.any(signals) });
  } catch (error) {
    if (signal?.aborted) throw error;
    contact.dispatchEvent(new Event("unreachable"));
    throw new Unreachable("the service does not answer", { cause: error });
  }
  if (!response.ok) throw await readError(response);
  contact.dispatchEvent(new Event("reachable"));
  return response;
}

async function readError(response) {
  const body = await response.json().catch(() => null);
  if (!body?.error?.message && response.status >= 502 && response.status <= 504) {
    // A proxy in front speaks for a service that is away.
    contact.dispatchEvent(new Event("unreachable"));
    return new Unreachable(`the proxy answered ${response.status}`);
  }
  contact.dispatchEvent(new Event("reachable"));
  if (response.status === 401) contact.dispatchEvent(new Event("unauthorised"));
  const error = body?.error ?? { message: `the service answered ${response.status}` };
  return new ServiceError(response.status, error, response.headers);
}
