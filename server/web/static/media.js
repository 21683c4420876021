// Addresses that <video> and images can load. Without an API key they are the service's own. With
// one, pictures are blobs, because images cannot send the key, and stay in memory as long as somebody
// on the page holds them; of videos a ticket of the service, a cookie, lets the browser's player read
// the parts it needs, so that they can be sought. Where there are no cookies they are blobs, too.

import { api, apiKey, contentPath, urlOf } from "./api.js";

const DOWNLOAD_MS = 60_000; // in which a browser has begun to save a file
const TICKET_MS = 600_000; // after which one is asked for anew; they are good for longer

const held = new Map(); // "id variant" -> {url, holders, free}

/** The address of a video's file, for a holder (any object) that gives it back with `letGo`. */
export async function mediaUrl(id, variant, holder) {
  if (!apiKey.get()) return urlOf(contentPath(id, variant));
  const name = `${id} ${variant}`;
  const isTicket = variant === "video" && navigator.cookieEnabled;
  if (!held.has(name)) held.set(name, isTicket ? admit(id) : load(id, variant));
  const media = held.get(name);
  media.holders.add(holder);
  try {
    return await media.url;
  } catch (error) {
    if (held.get(name) === media) held.delete(name); // the next one to ask tries again
    media.free();
    throw error;
  }
}

/** Gives back what a holder holds, or one variant of it; the last one to let go frees it. */
export function letGo(holder, variant = null) {
  for (const [name, { holders, free }] of held) {
    if (variant && !name.endsWith(` ${variant}`)) continue;
    if (!holders.delete(holder) || holders.size) continue;
    held.delete(name);
    free();
  }
}

function load(id, variant) {
  const fetching = new AbortController();
  const url = api.content(id, variant, fetching.signal).then((blob) => URL.createObjectURL(blob));
  const free = () => {
    fetching.abort(); // stops a download that nobody waits for; after it, does nothing
    url.then(URL.revokeObjectURL, () => {});
  };
  return { url, holders: new Set(), free };
}

/** Keeps a ticket good as long as somebody may seek in the video. */
function admit(id) {
  const url = api.ticket(id).then(() => urlOf(contentPath(id, "video")));
  const renewing = setInterval(() => api.ticket(id).catch(() => {}), TICKET_MS); // the next one may succeed
  return { url, holders: new Set(), free: () => clearInterval(renewing) };
}

/** Saves a video under a name. */
export async function download(id, name) {
  const holder = {};
  const link = document.createElement("a");
  link.href = await mediaUrl(id, "video", holder);
  link.download = name;
  link.click();
  setTimeout(letGo, DOWNLOAD_MS, holder);
}

/** Whether this browser passes videos on to other programs. */
export const canShare = Boolean(
  navigator.share && navigator.canShare?.({ files: [new File([], "video.mp4", { type: "video/mp4" })] }),
);

/** The file of a video, to be passed on. */
export async function videoFile(id, name) {
  return new File([await api.content(id, "video")], name, { type: "video/mp4" });
}
