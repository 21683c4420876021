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

/** "3m ago", "yesterday" for a time in seconds since 1970. */
export function relativeTime(unixSeconds) {
  const seconds = unixSeconds - Date.now() / 1000;
  for (const [unit, size] of [["day", 86_400], ["hour", 3_600], ["minute", 60]]) {
    if (Math.abs(seconds) >= size) return relative.format(Math.trunc(seconds / size), unit);
  }
  return "just now";
}

export function dateTime(unixSeconds) {
  return moment.format(new Date(unixSeconds * 1000));
}

/** A message of the service as a sentence. */
export function sentence(message) {
  return `${message.charAt(0).toUpperCase()}${message.slice(1).replace(/[.\s]+$/, "")}.`;
}

/** What a waiting or running job is doing. */
export function stage({ status, stage }) {
  if (status === "queued") return "Queued";
  if (stage === "text") return "Reading the prompt";
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

const FAILURES = {
  cancelled: "Cancelled",
  timeout: "Took too long",
  out_of_memory: "Out of memory",
  interrupted: "Interrupted",
};

export function failureTitle(code) {
  return FAILURES[code] ?? "Failed";
}

/** What a person can do about an error of the service. */
export function advice({ status, message, retryAfterSeconds }) {
  const wait = retryAfterSeconds ? ` Try again in ${duration(retryAfterSeconds)}.` : "";
  const what = sentence(message);
  if (status === 429 || status === 503) {
    return `${what}${wait || " Try again in a while."} Nothing you wrote is lost.`;
  }
  if (status === 404) return `${what} It may have been deleted or have expired.`;
  if (status >= 500) return `${what} Try again; if it stays, the log of the service says more.`;
  return what;
}
