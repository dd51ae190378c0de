// The list of runs: rows stay up to date, new runs come in on top, a few can be compared.

import { follow, say } from "./feed.js";

const table = document.querySelector("[data-runs]");
const choice = document.getElementById("choice");
const compare = document.querySelector("[data-compare]");

function countChosen() {
  if (!choice) return;
  const boxes = [...choice.querySelectorAll("input[name=run]")], chosen = boxes.filter((box) => box.checked), most = Number(choice.dataset.most);
  compare.disabled = chosen.length < 2;
  compare.lastElementChild.textContent = chosen.length ? `Compare ${chosen.length}` : "Compare";
  for (const box of boxes) box.disabled = !box.checked && chosen.length >= most;
}
choice?.addEventListener("change", countChosen);
addEventListener("pageshow", countChosen);

const cells = (html) => {
  const made = document.createElement("template");
  made.innerHTML = `<table><tbody><tr>${html}</tr></tbody></table>`;
  return [...made.content.querySelector("tr").children];
};

function heardRun(run) {
  if (!table) { location.reload(); return; }
  let row = [...table.tBodies[0].rows].find((found) => found.dataset.run === run.run_id);
  if (!row) {
    const part = run.kind === "baseline" || run.kind === "sweep-run";
    if (table.dataset.firstPage !== "1" || part || run.status !== "running" && run.status !== "queued") return;
    row = table.tBodies[0].insertRow(0);
    row.dataset.run = run.run_id;
    row.className = "fresh";
    const pick = row.insertCell();
    pick.className = "pick";
    const box = Object.assign(document.createElement("input"), { type: "checkbox", name: "run", value: run.run_id });
    box.setAttribute("aria-label", `Compare ${run.name || run.run_id}`);
    pick.append(box);
    say(`New run: ${run.name || run.run_id}.`);
    countChosen();
  }
  const focused = row.querySelector("th a") === document.activeElement;
  while (row.children.length > 1) row.lastElementChild.remove();
  row.append(...cells(run.html.row));
  if (focused) row.querySelector("th a").focus();
}

follow("", { run: heardRun });
