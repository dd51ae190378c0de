// A run's page: its curves, grid and log, as they come.

import { Chart } from "./chart.js";
import { ask, follow, say } from "./feed.js";
import { bytes, figure, scored, seconds } from "./figures.js";
import { Grid } from "./grid.js";

const curves = document.getElementById("curves");
const run = curves.dataset.run;
const path = `/runs/${encodeURIComponent(run)}`;
const budget = curves.dataset.budget ? Number(curves.dataset.budget) : null;
const box = (name) => curves.querySelector(`[data-chart="${name}"]`);
const PAGE = 2000;

const charts = {
  score: new Chart(box("score"), { ...scored(curves.dataset.headline), empty: "Not measured yet: it comes with the first evaluation." }),
  loss: new Chart(box("loss"), { format: figure, empty: "No loss yet: it comes with the first evaluation." }),
  epsilon: new Chart(box("epsilon"), { format: figure, zero: true, limit: budget, limitWord: budget == null ? "" : `budget ${budget}`, empty: budget == null ? "This run gives no privacy." : "Nothing spent yet." }),
  signal: new Chart(box("signal"), { format: figure, zero: true, empty: "Not known: the plan alone does not decide the noise of these rounds." }),
  norms: new Chart(box("norms"), { format: figure, zero: true, empty: curves.dataset.sealed ?? "No update yet." }),
  agreement: new Chart(box("agreement"), { format: figure, empty: curves.dataset.sealed ?? "Not known: it needs updates of two sites or more." }),
  phases: new Chart(box("phases"), { format: seconds, stacked: true }),
  bytes: new Chart(box("bytes"), { format: bytes, zero: true }),
};
const grid = new Grid(document.querySelector("[data-grid]"), document.querySelector("[data-grid-said]"), run);
const log = document.querySelector("[data-log]");
const rounds = new Map();
const norms = new Map(), agreements = new Map();

function column(name) {
  const found = new Map();
  for (const [round, row] of rounds) if (row[name] != null) found.set(round, row[name]);
  return found;
}

function draw() {
  charts.score.set([
    { label: "at the coordinator", points: column("score"), colour: "--s1" },
    { label: "at the sites", points: column("site_score"), band: column("site_accuracy_band"), colour: "--s2", dots: true },
  ]);
  charts.loss.set([
    { label: "at the coordinator", points: column("loss"), colour: "--s1" },
    { label: "at the sites", points: column("site_loss"), colour: "--s2", dots: true },
  ]);
  charts.epsilon.set([{ label: "spent", points: budget == null ? new Map() : column("epsilon"), colour: "--s1" }]);
  charts.signal.set([{ label: "signal to noise", points: column("signal_to_noise"), colour: "--s1" }]);
  const trained = [...rounds.values()].filter((row) => row.round > 0);
  const phases = [...new Set(trained.flatMap((row) => Object.keys(row.phases)))];
  charts.phases.set(phases.map((phase, index) => ({ label: phase, colour: `--s${(index % 7) + 1}`, points: new Map(trained.map((row) => [row.round, row.phases[phase] ?? 0])) })));
  charts.bytes.set([
    { label: "from sites", colour: "--s1", points: new Map(trained.map((row) => [row.round, row.bytes_up])) },
    { label: "to sites", colour: "--s3", points: new Map(trained.map((row) => [row.round, row.bytes_down])) },
  ]);
  charts.norms.set(perSite(norms));
  charts.agreement.set(perSite(agreements));
  const known = trained.filter((row) => row.exact != null), exact = known.filter((row) => row.exact).length;
  const place = document.querySelector("[data-exact]");
  place.hidden = !known.length;
  place.textContent = exact === known.length
    ? `Aggregation was exact in all ${known.length} rounds: the next product B·A equals the weighted mean of the sites' products.`
    : `Aggregation was exact in ${exact} of ${known.length} rounds; in the others the next product B·A differs from the weighted mean of the sites' products.`;
}

function perSite(found) {
  return [...found].sort(([a], [b]) => a.localeCompare(b)).map(([label, points]) => ({ label, points }));
}

async function load() {
  let last = -1, found;
  do {
    found = await ask(`${path}/rounds?after=${last}&limit=${PAGE}`);
    for (const row of found) rounds.set(row.round, row);
    last = found.at(-1)?.round ?? last;
  } while (found.length === PAGE);
  draw();
  const [shape, norm, agreement] = await Promise.all([ask(`${path}/grid`), ask(`${path}/site-curves?name=update_norm`), ask(`${path}/site-curves?name=agreement`)]);
  grid.set(shape);
  for (const [into, from] of [[norms, norm], [agreements, agreement]]) {
    for (const [site, points] of Object.entries(from)) into.set(site, new Map(points));
  }
  draw();
  const lines = await ask(`${path}/events?after=${log.dataset.last}`);
  lines.forEach(addLine);
}

function heardRound(row) {
  for (const later of rounds.keys()) if (later > row.round) rounds.delete(later); // resumed before it
  rounds.set(row.round, row);
  for (const [site, [, norm, agreement]] of Object.entries(row.cells)) {
    for (const [into, value] of [[norms, norm], [agreements, agreement]]) {
      if (value == null) continue;
      if (!into.has(site)) into.set(site, new Map());
      into.get(site).set(row.round, value);
    }
  }
  draw();
  if (Object.keys(row.alike).length || Object.keys(row.kept_own).length) refresh("together");
  if (row.round > 0 && grid.add(row.round, row.cells)) ask(`${path}/grid`).then((shape) => grid.set(shape));
}

let before = null;
function heardRun(state) {
  for (const [name, html] of Object.entries(state.html)) {
    const place = document.querySelector(`[data-live="${name}"]`);
    if (place && !place.contains(document.activeElement)) place.innerHTML = html;
  }
  if (state.html.sites && document.querySelector("[data-reloads-with-sites]") && state.sites) location.reload();
  const stoppable = ["queued", "running"].includes(state.status);
  for (const button of document.querySelectorAll("[data-while-live]")) button.hidden = !stoppable;
  if (!stoppable) document.getElementById("stop")?.close();
  if (before && before !== state.status) {
    say(`The run is ${state.status}.`);
    if (!["running", "stopping", "queued"].includes(state.status)) setTimeout(() => refresh("files"), 1500);
  }
  before = state.status;
}

/** Take a part of the page anew: files are entered when a run ends, what sites are together after some rounds. */
async function refresh(part) {
  const answer = await fetch(location.href);
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById(part);
  if (fresh) document.getElementById(part).replaceWith(fresh);
}

function addLine(line) {
  if (line.id <= Number(log.dataset.last)) return;
  log.dataset.last = line.id;
  log.querySelector(".none")?.remove();
  const item = document.createElement("li"), at = new Date(line.at * 1000).toISOString();
  item.className = `${line.level} fresh`;
  const where = [line.round == null ? "" : `round ${line.round}`, line.site ?? ""].filter(Boolean).join(" · ");
  item.append(
    Object.assign(document.createElement("time"), { dateTime: at, textContent: at.slice(11, 19) }),
    Object.assign(document.createElement("span"), { className: "where", textContent: where }),
    Object.assign(document.createElement("span"), { className: "what", textContent: line.text }),
  );
  log.prepend(item);
}

follow(run, { open: load, run: heardRun, round: heardRound, line: addLine });
