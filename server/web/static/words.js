// Numbers and states as the words that people read.

const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto", style: "narrow" });
const moment = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

/** 8 s, 2 min, 1 h 5 min */
export function duration(seconds) {
  if (seconds < 10) return `${seconds.toFixed(1).replace(/\.0$/, "")} s`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  return `${Math.floor(minutes / 60)} h${minutes % 60 ? ` ${minutes % 60} min` : ""}`;
}

/** 640 kB, 20 MB */
export function fileSize(bytes) {
  return bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1).replace(/\.0$/, "")} MB`;
}

/** "3m ago", "yesterday" for a time in seconds since 1970. */
export function relativeTime(unixSeconds) {
  const seconds = unixSeconds - Date.now() / 1000;
  for (const [unit, size] of [["day", 86_400], ["hour", 3_600], ["minute", 60]]) {
    if (Math.abs(seconds) >= size) return relative.format(Math.trunc(seconds / size), unit);
  }
  return "just now";
}

/** "kept 23 h" for a time in seconds since 1970 at which a video goes. */
export function keptFor(unixSeconds) {
  const minutes = Math.round((unixSeconds - Date.now() / 1000) / 60);
  if (minutes < 1) return "kept 1 min";
  if (minutes < 120) return `kept ${minutes} min`;
  const hours = Math.round(minutes / 60);
  return hours < 72 ? `kept ${hours} h` : `kept ${Math.floor(hours / 24)} days`;
}

export function dateTime(unixSeconds) {
  return moment.format(new Date(unixSeconds * 1000));
}

/** A message of the service as a sentence. */
export function sentence(message) {
  return `${capital(message).replace(/[.\s]+$/, "")}.`;
}

function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** What a waiting or running job is doing. */
export function stage({ status, stage }) {
  if (status === "queued") return "Queued";
  if (stage === "text") return "Reading the prompt";
  if (stage === "image" || stage === "encode") return "Looking at what it begins with";
  if (stage === "denoise") return "Denoising";
  if (stage === "decode") return "Decoding the frames";
  if (stage?.startsWith("compile")) return "Compiling";
  return "Starting";
}

/** How far it is with that: a place in the queue, a step of steps, a frame of frames. */
export function stageDetail({ status, stage, step, steps, queue_position: position }) {
  if (status === "queued" && position != null) {
    return position <= 1 ? "next in line" : `number ${position} in line`;
  }
  const unit = { denoise: "step", decode: "frame" }[stage];
  return unit ? `${unit} ${step} of ${steps}` : "";
}

export function timeLeft(seconds) {
  if (seconds == null) return "";
  return seconds < 1 ? "almost done" : `about ${duration(Math.ceil(seconds))} left`;
}

export function doneIn(seconds) {
  return seconds == null ? "" : `done in about ${duration(Math.ceil(seconds))}`;
}

/**
 * How long it takes: "About 40 s each, 3 min for all 4, after 2 others: done in about 5 min."; "" where
 * nothing is known. `each` and `wait` are seconds, or null.
 */
export function forecast({ each, number, ahead, wait, isCompiled }) {
  const about = (seconds) => duration(Math.max(seconds, 0.1)); // nothing takes no time
  const before = ahead === 0 ? "" : ahead === 1 ? "after one other" : `after ${ahead} others`;
  const compile = isCompiled ? "" : " The first of a size or length is compiled first, which takes longer.";
  if (each === null) return `${before && capital(`${before}.`)}${compile}`.trim();
  const all = number > 1 ? ` each, ${about(each * number)} for all ${number}` : "";
  const end = before && wait !== null ? `: done in about ${about(wait + each * number)}` : "";
  return `About ${about(each)}${all}${before && `, ${before}`}${end}.${compile}`;
}

/** "fox.safetensors, bear.safetensors × 0.5 (high noise)"; "" for none. */
export function adapters(loras) {
  const one = ({ name, strength, expert }) =>
    `${plain(name)}${strength === 1 ? "" : ` × ${strength}`}${expert ? ` (${expert} noise)` : ""}`;
  return (loras ?? []).map(one).join(", ");
}

/** What a preset is called, where the video says it. */
export function preset(name, { fast } = {}) {
  return fast?.label ?? name;
}

/** "magcache:0.12, 7 of 12 steps computed" */
export function stepCache(text, { step_cache: used } = {}) {
  return used?.steps ? `${text}, ${used.computed} of ${used.steps} steps computed` : text;
}

/** Why a video was not made: [title, what a person can do about it]. */
const FAILURES = {
  cancelled: ["Cancelled", ""],
  timeout: ["Took too long", "Fewer frames or steps, or a smaller size, take less time."],
  out_of_memory: ["Out of memory", "A smaller size or fewer frames need less."],
  interrupted: ["Interrupted", "The service stopped while it was made, more than once. Try again."],
  disk_full: ["No room left", "The service had no room to keep it. Try again later."],
  adapter_lost: ["Adapter gone", "One of its adapters is not there any more, or cannot be used. Choose others."],
  upload_lost: ["Picture lost", "The service lost the picture it begins with. Send it again."],
  bad_numbers: ["No picture", "What the model computed is no picture. Another seed, or settings nearer to its defaults, may help."],
};
const INSIDE = "Something went wrong inside the service. Try again; if it happens again, give the id to those who run it.";
const INSIDE_CODES = ["engine_error", "engine_crashed"];

/** The words for a failed job's error, of any code: {title, text}. */
export function failure(error) {
  const [title, text] = FAILURES[error?.code] ?? ["Failed", ""];
  if (FAILURES[error?.code]) return { title, text };
  if (!error?.message || INSIDE_CODES.includes(error.code)) return { title, text: INSIDE };
  return { title, text: sentence(withoutLog(error.message)) };
}

/** A message without what it says of a log that only those who run the service can read. */
function withoutLog(message) {
  return message.replace(/[;,]?[^;,.]*\blogs?\b[^;,.]*/gi, "") || "it failed inside the service";
}

/** What a slice is at, and since when: {state: "Busy", since: "for 5 min"}. */
export function stateOfSlice({ state, since }) {
  const seconds = Math.max(0, Date.now() / 1000 - since);
  return { state: capital(state), since: seconds < 5 ? "just now" : `for ${duration(Math.round(seconds))}` };
}

/** "4 slices, 1 broken": all of them, and of those the ones that most want to be known of. */
export function slicesInShort(slices) {
  const all = slices.length === 1 ? "1 slice" : `${slices.length || "No"} slices`;
  const number = (state) => slices.filter((slice) => slice.state === state).length;
  const worst = ["broken", "loading", "busy"].find((state) => number(state));
  if (!worst) return all;
  if (slices.length === 1) return `${all}, ${worst}`;
  return `${all}, ${number(worst) === slices.length ? "all" : number(worst)} ${worst}`;
}

/** What a person can do about an error of the service. */
export function advice({ status, code, message, retryAfterSeconds, requestId }) {
  const wait = retryAfterSeconds ? ` Try again in ${duration(retryAfterSeconds)}.` : "";
  if (status === 429 || status === 503) {
    return `${sentence(message)}${wait || " Try again in a while."} Nothing you wrote is lost.`;
  }
  if (code === "model_not_found") return sentence(message);
  if (status === 404) return `${sentence(message)} It may have been deleted or have expired.`;
  if (status >= 500) {
    const id = requestId ? ` and give them this id: ${requestId}` : "";
    return `Something went wrong inside the service. Try again; if it stays, tell those who run it${id}.`;
  }
  return sentence(message);
}

/**
 * Text of a person, to be shown: without the signs that turn the direction of what follows, which
 * make "exe.txt" read as another name than it is. Languages need them no more: `dir="auto"` does it.
 */
export function plain(text) {
  return text.replace(/[\u202a-\u202e\u2066-\u2069]/g, "");
}
