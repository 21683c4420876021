// How this page reads a Video object of the service, and what it sends to get one.

/** The fields of a request whose values are numbers, in JSON too. */
const NUMBERS = ["num_frames", "fps", "num_inference_steps", "guidance_scale", "flow_shift", "seed"];

export const isActive = (video) => video.status === "queued" || video.status === "in_progress";
export const isEnded = (video) => !isActive(video);
export const isPlayable = (video) => video.status === "completed";
export const isCancelled = (video) => video.error?.code === "cancelled";

/** When a job ended, good enough to sort by: all are kept equally long, and only some say the moment. */
export const endOf = (video) => video.expires_at ?? video.completed_at ?? video.created_at;

/** The request that a video was made from: {prompt, model, size, seed, ...}. */
export function settingsOf(video) {
  const { prompt, model, size } = video;
  return { prompt, model, size, ...video.metadata?.request };
}

/**
 * A request as JSON. Numbers stay as they are written: a seed has up to 63 bits, which a
 * JavaScript number would round. What is not a number stays text, for the service to refuse.
 */
export function requestBody(settings) {
  const entries = Object.entries(settings).filter(([, value]) => value != null && value !== "");
  const write = ([name, value]) => {
    const isNumber = NUMBERS.includes(name) && /^-?(0|[1-9]\d*)(\.\d+)?$/.test(value);
    return `${JSON.stringify(name)}: ${isNumber ? value : JSON.stringify(value)}`;
  };
  return `{${entries.map(write).join(", ")}}`;
}

/** A command line that makes the same video. The API key stays out of it. */
export function curlCommand(settings, url, needsKey) {
  const quote = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
  return [
    `curl ${quote(url)}`,
    ...(needsKey ? [`-H "Authorization: Bearer $WAN_TPU_API_KEY"`] : []),
    `-H 'Content-Type: application/json'`,
    `-d ${quote(requestBody(settings))}`,
  ].join(" \\\n  ");
}

export function fileName(video) {
  const words = video.prompt.toLowerCase().normalize("NFKD").match(/[\p{L}\p{N}]+/gu) ?? [];
  return `${words.join("-").slice(0, 60) || video.id}.mp4`;
}

/** An idempotency key; `crypto.randomUUID` is missing where the page comes over plain HTTP. */
export function drawKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
