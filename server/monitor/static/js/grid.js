// Sites × rounds: a table of small cells that grows with every round; keys and pointer read it.

import { ask } from "./feed.js";

const WORDS = { o: "ok", r: "refused", f: "failed", l: "late", " ": "not asked" };

export class Grid {
  constructor(box, said, run) {
    Object.assign(this, { box, said, run, sites: [], rounds: [], cells: new Map(), row: 0, column: -1, asked: 0 });
    box.addEventListener("click", (event) => this.pick(event.target.closest("td")));
    box.addEventListener("keydown", (event) => this.key(event));
  }

  /** Draw the whole grid. */
  set({ sites, rounds, cells }) {
    this.sites = sites;
    this.rounds = rounds;
    this.cells = new Map(sites.map((site, index) => [site, [...cells[index]]]));
    if (!rounds.length) return;
    const table = document.createElement("table");
    table.className = "grid";
    this.head = table.createTHead().insertRow();
    this.head.append(Object.assign(document.createElement("th"), { scope: "col", textContent: "site" }));
    for (const round of rounds) this.head.append(heading(round));
    this.body = table.createTBody();
    for (const site of sites) {
      const row = this.body.insertRow();
      row.append(Object.assign(document.createElement("th"), { scope: "row", textContent: site, title: site }));
      for (const letter of this.cells.get(site)) row.append(cell(letter));
    }
    this.box.replaceChildren(table);
    this.box.scrollLeft = this.box.scrollWidth;
    this.box.classList.toggle("dense", rounds.length > 60);
  }

  /** A round more. Returns whether the grid must be fetched anew: an unknown site, an old round. */
  add(round, found) {
    const known = Object.keys(found).every((site) => this.cells.has(site));
    if (!this.rounds.length || !known || round !== this.rounds.at(-1) + 1) return !this.rounds.includes(round);
    const atEnd = this.box.scrollLeft + this.box.clientWidth >= this.box.scrollWidth - 40;
    this.rounds.push(round);
    this.head.append(heading(round));
    this.sites.forEach((site, index) => {
      const letter = found[site]?.[0] ?? " ";
      this.cells.get(site).push(letter);
      this.body.rows[index].append(cell(letter));
    });
    if (atEnd) this.box.scrollLeft = this.box.scrollWidth;
    return false;
  }

  pick(target) {
    if (!target) return;
    this.row = target.parentNode.rowIndex - 1;
    this.column = target.cellIndex - 1;
    this.tell();
  }

  key(event) {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], Home: [0, -Infinity], End: [0, Infinity] }[event.key];
    if (!step || !this.rounds.length) return;
    event.preventDefault();
    const last = this.rounds.length - 1;
    if (this.column < 0) this.column = last;
    else {
      this.row = Math.min(this.sites.length - 1, Math.max(0, this.row + step[0]));
      this.column = Math.min(last, Math.max(0, this.column + step[1]));
    }
    this.tell();
  }

  /** Say what happened in the chosen cell; reasons are fetched when somebody asks. */
  async tell() {
    const site = this.sites[this.row], round = this.rounds[this.column], word = WORDS[this.cells.get(site)[this.column]];
    this.body.querySelector(".at")?.classList.remove("at");
    const chosen = this.body.rows[this.row].cells[this.column + 1];
    chosen.classList.add("at");
    chosen.scrollIntoView({ block: "nearest", inline: "nearest" });
    const begin = `${site}, round ${round}: ${word}`;
    this.said.textContent = begin;
    if (word === "not asked") return;
    const asked = (this.asked += 1);
    const query = new URLSearchParams({ site, round, limit: 1 });
    const [found] = await ask(`/runs/${encodeURIComponent(this.run)}/cells?${query}`);
    if (!found || asked !== this.asked) return;
    const norm = found.update_norm == null ? "" : `, update norm ${Number(found.update_norm.toPrecision(3))}`;
    this.said.textContent = `${begin}${found.reason ? `, ${found.reason}` : ""}${norm}, after ${Number(found.seconds.toPrecision(3))} s`;
  }
}

function heading(round) {
  const shown = round % 10 === 0 || round === 1;
  const made = Object.assign(document.createElement("th"), { scope: "col", textContent: shown ? round : "" });
  if (!shown) made.setAttribute("aria-label", `round ${round}`);
  return made;
}

function cell(letter) {
  const word = WORDS[letter] ?? "not asked";
  return Object.assign(document.createElement("td"), { className: `cell ${letter === " " ? "none" : word}`, textContent: word });
}
