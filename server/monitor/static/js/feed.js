// The live feed: one stream of server-sent events, closed while the page is hidden.

const STATES = { live: "live", waiting: "connecting", lost: "connection lost, trying again", ended: "signed out: load the page again" };

/**
 * Follow the news.
 * @param {string} run id of the run to follow; empty for all.
 * @param {Object<string, function>} heard handlers by kind of event; "open" is called on every
 *   (re)connection, so that the page can fetch what it missed.
 */
export function follow(run, heard) {
  let source = null;
  const show = (state) => {
    for (const place of document.querySelectorAll("[data-link-state]")) {
      place.dataset.state = state === "ended" ? "lost" : state;
      place.firstElementChild.textContent = STATES[state];
    }
  };
  const open = () => {
    if (source) return;
    source = new EventSource(`/api/v1/live${run ? `?run=${encodeURIComponent(run)}` : ""}`);
    source.addEventListener("open", () => { show("live"); heard.open?.(); });
    source.addEventListener("error", () => show(source?.readyState === EventSource.CLOSED ? "ended" : "lost"));
    source.addEventListener("alerts", (event) => countAlerts(JSON.parse(event.data)));
    for (const [kind, handler] of Object.entries(heard)) {
      if (kind !== "open") source.addEventListener(kind, (event) => handler(JSON.parse(event.data)));
    }
  };
  const close = () => { source?.close(); source = null; show("waiting"); };
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  addEventListener("pagehide", close);
  addEventListener("pageshow", () => { if (!document.hidden) open(); });
  if (!document.hidden) open();
}

function countAlerts({ open }) {
  for (const badge of document.querySelectorAll("[data-alert-count]")) {
    badge.hidden = !open;
    badge.querySelector("[data-number]").textContent = open;
  }
}

/** Say something to people who listen rather than look. */
export function say(text) {
  const place = document.querySelector("[data-said]");
  if (place) place.textContent = text;
}

/** JSON from the API; throws with the server's sentence. */
export async function ask(path) {
  const answer = await fetch(`/api/v1${path}`, { headers: { Accept: "application/json" } });
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.message ?? answer.statusText);
  return content;
}
