// Addresses that <video> and images can load. With an API key these are blobs, because media
// elements cannot send the key; without one they are the service's own, which can seek by ranges.
// A blob is in memory whole: it stays as long as somebody on the page holds it, and no longer.

import { api, apiKey, contentPath, urlOf } from "./api.js";

const DOWNLOAD_MS = 60_000; // in which a browser has begun to save a blob

const blobs = new Map(); // "id variant" -> {url, holders, fetching}

/** The address of a video's file, for a holder (any object) that gives it back with `letGo`. */
export async function mediaUrl(id, variant, holder) {
  if (!apiKey.get()) return urlOf(contentPath(id, variant));
  const name = `${id} ${variant}`;
  if (!blobs.has(name)) blobs.set(name, load(id, variant));
  const blob = blobs.get(name);
  blob.holders.add(holder);
  try {
    return await blob.url;
  } catch (error) {
    if (blobs.get(name) === blob) blobs.delete(name); // the next one to ask tries again
    throw error;
  }
}

/** Gives back what a holder holds, or one variant of it; the last one to let go frees the memory. */
export function letGo(holder, variant = null) {
  for (const [name, { url, holders, fetching }] of blobs) {
    if (variant && !name.endsWith(` ${variant}`)) continue;
    if (!holders.delete(holder) || holders.size) continue;
    blobs.delete(name);
    fetching.abort(); // stops a download that nobody waits for; after it, does nothing
    url.then(URL.revokeObjectURL, () => {});
  }
}

function load(id, variant) {
  const fetching = new AbortController();
  const url = api.content(id, variant, fetching.signal).then((blob) => URL.createObjectURL(blob));
  return { url, holders: new Set(), fetching };
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
