// Addresses that <video> and images can load. With an API key these are blobs, because media
// elements cannot send the key; without one they are the service's own, which can seek by ranges.

import { api, apiKey, contentPath, urlOf } from "./api.js";

const blobs = new Map(); // "id variant" -> promise of an object URL

export async function mediaUrl(id, variant) {
  if (!apiKey.get()) return urlOf(contentPath(id, variant));
  const name = `${id} ${variant}`;
  if (!blobs.has(name)) {
    const url = api.content(id, variant).then((blob) => URL.createObjectURL(blob));
    blobs.set(name, url);
    url.catch(() => blobs.delete(name)); // the next one to ask tries again
  }
  return blobs.get(name);
}

/** Gives back what a removed video holds. */
export function releaseMedia(id) {
  for (const variant of ["video", "thumbnail", "spritesheet"]) {
    blobs.get(`${id} ${variant}`)?.then(URL.revokeObjectURL, () => {});
    blobs.delete(`${id} ${variant}`);
  }
}

/** Saves a video under a name. */
export async function download(id, name) {
  const link = document.createElement("a");
  link.href = await mediaUrl(id, "video");
  link.download = name;
  link.click();
}
