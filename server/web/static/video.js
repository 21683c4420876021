// How this page reads a Video object of the service, and what it sends to get one.

/** The fields of a request whose values are numbers, in JSON too. */
const NUMBERS = [
  "num_frames", "fps", "num_inference_steps", "guidance_scale", "guidance_scale_2", "flow_shift", "strength", "seed", "n",
];

/** Fields that are as they were for a video that the service has, unless they are sent empty. */
const HELD = ["negative_prompt", "fast", "sigmas", "step_cache", "lora"];

/** Fields of a video's request that say by a digest what it was made from; they cannot be sent. */
const DIGESTS = ["image", "last_image", "video"];

export const isActive = (video) => video.status === "queued" || video.status === "in_progress";
export const isEnded = (video) => !isActive(video);
export const isPlayable = (video) => video.status === "completed";
export const isCancelled = (video) => video.error?.code === "cancelled";

/** When a job ended, good enough to sort by: all are kept equally long, and only some say the moment. */
export const endOf = (video) => video.expires_at ?? video.completed_at ?? video.created_at;

/** Whether the service has given it up by now, if the clocks agree. */
export const isExpired = (video) => video.expires_at !== null && video.expires_at < Date.now() / 1000;

/** The request that a video was made from: {prompt, model, size, seed, ...}. */
export function settingsOf(video) {
  const { prompt, model, size } = video;
  return { prompt, model, size, ...video.metadata?.request };
}

/** Frames of the whole video, of which an extension makes the last ones. */
export function framesOf(video) {
  const { request, extended } = video.metadata ?? {};
  return extended ? extended.num_frames + request.num_frames - 1 : request?.num_frames;
}

/**
 * What is sent to have a video made: {path, body}. With files it is a form, else JSON.
 *
 * `first` is what it is made from ({kind, blob, id, use}, see `inputs.js`), `last` its last image.
 */
export function requestOf(settings, { first = null, last = null } = {}) {
  const fields = fieldsOf(settings);
  // Of a video that the service has, what is left out holds: that nothing is excluded must be said.
  if (first?.id) for (const name of HELD) fields[name] ??= "";
  const isExtension = first?.use === "extend";
  const path = isExtension ? "v1/videos/extensions" : first?.id ? `v1/videos/${first.id}/remix` : "v1/videos";
  if (isExtension && first.id) fields.video = { id: first.id };
  if (!first?.blob && !last) return { path, body: requestBody(fields) };
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) {
    if (name === "video") form.append("video[id]", value.id);
    else form.append(name, asText(value));
  }
  if (first?.blob) form.append(isExtension ? "video" : "input_reference", first.blob, "input");
  if (last) form.append("last_image", last.blob, "last");
  return { path, body: form };
}

function fieldsOf(settings) {
  const isSaid = ([name, value]) => value != null && value !== "" && value.length !== 0 && !DIGESTS.includes(name);
  return Object.fromEntries(Object.entries(settings).filter(isSaid));
}

/**
 * A request as JSON. Numbers stay as they are written: a seed has up to 63 bits, which a
 * JavaScript number would round. What is not a number stays text, for the service to refuse.
 */
function requestBody(fields) {
  const write = ([name, value]) => {
    const isNumber = NUMBERS.includes(name) && /^-?(0|[1-9]\d*)(\.\d+)?$/.test(value);
    return `${JSON.stringify(name)}: ${isNumber ? value : JSON.stringify(value)}`;
  };
  return `{${Object.entries(fields).map(write).join(", ")}}`;
}

/** A value as a form has it: noise levels with commas between them, adapters as JSON. */
function asText(value) {
  return Array.isArray(value) && typeof value[0] === "object" ? JSON.stringify(value) : value;
}

/** A command line that makes the same video, of files by these names. The API key stays out of it. */
export function curlCommand(video, urlOf, needsKey) {
  const quote = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
  const { request = {}, extended } = video.metadata ?? {};
  const files = { ...(request.video && { input_reference: "video.mp4" }), ...(request.last_image && { last_image: "last.png" }) };
  if (extended) files.video = "video.mp4";
  else if (request.image) files.input_reference = "image.png";
  const fields = fieldsOf(settingsOf(video));
  const form = [
    ...Object.entries(fields).map(([name, value]) => `--form-string ${quote(`${name}=${asText(value)}`)}`),
    ...Object.entries(files).map(([name, file]) => `-F ${quote(`${name}=@${file}`)}`),
  ];
  const json = [`-H 'Content-Type: application/json'`, `-d ${quote(requestBody(fields))}`];
  return [
    `curl ${quote(urlOf(extended ? "v1/videos/extensions" : "v1/videos"))}`,
    ...(needsKey ? [`-H "Authorization: Bearer $WAN_TPU_API_KEY"`] : []),
    ...(Object.keys(files).length ? form : json),
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
