// The page of alerts, taken anew when their number changes and every few seconds while it is open.

import { follow } from "./feed.js";

const place = document.querySelector("[data-alerts]");

async function refresh() {
  const answer = await fetch(location.href);
  if (!answer.ok) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("[data-alerts]");
  if (fresh && fresh.textContent !== place.textContent && !place.contains(document.activeElement)) place.innerHTML = fresh.innerHTML;
}

follow("", { alerts: refresh, run: refresh });
