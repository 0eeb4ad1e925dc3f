// SPDX-License-Identifier: Apache-2.0
// Keeps every file of the page for use without a network, and lets no request go to another host.

const CACHE = "page";
// What the browser loads before this worker is there. Everything else comes through it.
const FIRST_FILES = ["./", "index.html", "style.css", "icon.svg", "page.js", "answer.js", "camera.js", "map.js"];

addEventListener("install", (event) => {
  skipWaiting();
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(FIRST_FILES)));
});

addEventListener("activate", (event) => event.waitUntil(clients.claim()));

/** Return the newest version of a file, or the one that was kept where the network is missing. */
async function fetchOrRemember(event) {
  const cache = await caches.open(CACHE);
  try {
    const response = await fetch(event.request);
    if (response.ok) event.waitUntil(cache.put(event.request, response.clone()));
    return response;
  } catch (error) {
    const kept = await cache.match(event.request, { ignoreSearch: true });
    if (!kept) throw error;
    return kept;
  }
}

addEventListener("fetch", (event) => {
  const { protocol, origin } = new URL(event.request.url);
  // Previews of images are no requests
  if (protocol === "blob:" || protocol === "data:") return;
  if (origin !== location.origin) event.respondWith(Response.error());
  else if (event.request.method === "GET") event.respondWith(fetchOrRemember(event));
});
