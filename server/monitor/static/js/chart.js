// A curve over the rounds: uPlot in the page's colours, with a readout, keys and a table.

import uPlot from "../vendor/uplot/uPlot.esm.js";

const HEIGHT = 220;
const MANY = 7; // more curves than this are drawn alike, with their median on top
const charts = new Set();

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
document.documentElement.addEventListener("themechange", () => { for (const chart of charts) chart.redraw(); });

/** One figure of the page, drawn anew whenever its curves change. */
export class Chart {
  /**
   * @param {HTMLElement} box the figure element.
   * @param {Object} how format: value -> text; zero: y begins at 0; stacked: areas on one another;
   *   limit: a value to draw as a dashed line; empty: what to say without data.
   */
  constructor(box, how) {
    this.box = box;
    this.how = { format: String, empty: "No data yet.", ...how };
    this.plot = box.querySelector("[data-plot]");
    this.table = box.querySelector("[data-table]");
    this.title = box.querySelector("h3").textContent;
    this.readout = document.createElement("p");
    this.readout.className = "readout num";
    this.plot.after(this.readout);
    this.plot.tabIndex = 0;
    this.plot.setAttribute("role", "img");
    this.curves = [];
    this.waiting = false;
    new ResizeObserver(() => this.resize()).observe(this.plot);
    this.plot.addEventListener("keydown", (event) => this.key(event));
    this.plot.addEventListener("blur", () => this.show(null));
    const button = box.querySelector("[data-as-table]");
    button.addEventListener("click", () => {
      const shown = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(shown));
      this.table.hidden = !shown;
      this.plot.hidden = this.readout.hidden = shown;
      if (shown) this.fill();
    });
    charts.add(this);
  }

  /**
   * Draw these curves.
   * @param {Array} curves {label, points: Map round -> value, colour, dots, band: Map round -> half-width}
   */
  set(curves) {
    this.curves = curves.filter((curve) => curve.points.size);
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => { this.waiting = false; this.draw(); });
  }

  draw() {
    const rounds = [...new Set(this.curves.flatMap((curve) => [...curve.points.keys()]))].sort((a, b) => a - b);
    const label = `${this.title} by round`;
    if (!rounds.length) {
      this.u?.destroy(); this.u = null; this.shape = "";
      this.plot.replaceChildren(Object.assign(document.createElement("p"), { className: "chart-empty", textContent: this.how.empty }));
      this.plot.setAttribute("aria-label", `${label}: ${this.how.empty}`);
      this.readout.replaceChildren();
      return;
    }
    this.rounds = rounds;
    this.many = this.curves.length > MANY;
    const columns = this.curves.map((curve) => rounds.map((round) => curve.points.get(round) ?? null));
    this.values = columns;
    const drawn = this.how.stacked ? stacked(columns) : [...columns];
    if (this.many) drawn.push(median(columns));
    const shape = JSON.stringify(this.curves.map((curve) => [curve.label, curve.colour]));
    if (this.u && shape === this.shape) this.u.setData([rounds, ...drawn]);
    else this.build([rounds, ...drawn], shape);
    this.plot.setAttribute("aria-label", `${label}, ${rounds.length} points. Latest: ${this.said(rounds.length - 1)}. Arrow keys read the values.`);
    if (this.u.cursor.idx == null) this.show(null);
    if (!this.table.hidden) this.fill();
  }

  build(data, shape) {
    this.u?.destroy();
    this.plot.replaceChildren();
    this.shape = shape;
    const series = this.curves.map((curve, index) => ({
      label: curve.label,
      stroke: () => (this.many ? `${colour("--faint")}59` : colour(this.tint(index))),
      width: this.many ? 1 : curve.dots ? 0 : 2,
      fill: this.how.stacked ? () => colour(this.tint(index)) : undefined,
      spanGaps: true,
      paths: curve.dots ? () => null : undefined,
      points: curve.dots
        ? { show: true, size: 7, fill: () => colour("--card"), stroke: () => colour(this.tint(index)), width: 2 }
        : { show: (u) => u.data[0].length < 3, size: 6, fill: () => colour(this.tint(index)) },
    }));
    if (this.many) series.push({ label: "median", stroke: () => colour("--s1"), width: 2.5, spanGaps: true, points: { show: false } });
    const axis = { stroke: () => colour("--faint"), font: "12px Inter, system-ui, sans-serif", ticks: { show: false } };
    const wide = () => Math.max(this.plot.clientWidth, 120);
    this.u = new uPlot({
      width: wide(), height: HEIGHT, padding: [12, 12, 0, 0],
      legend: { show: false },
      cursor: { y: false, points: { size: 8 }, drag: { x: false, y: false, setScale: false } },
      scales: { x: { time: false, range: (u, low, high) => (low === high ? [low - 1, high + 1] : [low, high]) }, y: { range: (u, low, high) => this.range(low, high) } },
      axes: [
        { ...axis, size: 30, grid: { show: false }, space: 50, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000] },
        { ...axis, size: 58, gap: 8, space: 40, grid: { stroke: () => colour("--line"), width: 1 }, values: (u, ticks) => ticks.map((tick) => this.how.format(tick)) },
      ],
      series: [{}, ...series],
      hooks: { drawSeries: [(u, index) => this.whiskers(u, index)], draw: [(u) => this.limitLine(u)], setCursor: [(u) => this.show(u.cursor.idx)] },
    }, data, this.plot);
    if (this.how.stacked) this.u.root.classList.add("stacked");
  }

  tint(index) { return this.curves[index]?.colour ?? `--s${(index % 7) + 1}`; }

  range(low, high) {
    if (low == null) return [0, 1];
    for (const curve of this.curves) {
      for (const [round, half] of curve.band ?? []) {
        const middle = curve.points.get(round);
        if (middle != null) { low = Math.min(low, middle - half); high = Math.max(high, middle + half); }
      }
    }
    if (this.how.limit != null) high = Math.max(high, this.how.limit);
    if (this.how.zero || this.how.stacked) low = Math.min(0, low);
    const room = (high - low || Math.abs(high) || 1) * 0.08;
    low = this.how.zero && low === 0 ? 0 : low - (this.how.stacked ? 0 : room);
    high += room;
    return this.how.most == null ? [low, high] : [Math.max(low, this.how.least ?? low), Math.min(high, this.how.most)];
  }

  /** The noise's band: an area where it can be seen as one, and a whisker at every point. */
  whiskers(u, index) {
    const curve = this.curves[index - 1];
    if (!curve?.band?.size) return;
    const { ctx } = u;
    const places = [...curve.band].filter(([round]) => curve.points.has(round)).sort((a, b) => a[0] - b[0])
      .map(([round, half]) => [u.valToPos(round, "x", true), u.valToPos(curve.points.get(round) + half, "y", true), u.valToPos(curve.points.get(round) - half, "y", true)]);
    ctx.save();
    ctx.beginPath(); ctx.rect(u.bbox.left, u.bbox.top, u.bbox.width, u.bbox.height); ctx.clip();
    ctx.strokeStyle = ctx.fillStyle = colour(this.tint(index - 1));
    if (places.length > 2) {
      ctx.globalAlpha = 0.13;
      ctx.beginPath();
      places.forEach(([x, top], at) => (at ? ctx.lineTo(x, top) : ctx.moveTo(x, top)));
      for (const [x, , bottom] of places.toReversed()) ctx.lineTo(x, bottom);
      ctx.fill();
    }
    ctx.globalAlpha = 0.75; ctx.lineWidth = 1.5 * devicePixelRatio;
    const cap = 3.5 * devicePixelRatio;
    ctx.beginPath();
    for (const [x, top, bottom] of places) {
      ctx.moveTo(x, top); ctx.lineTo(x, bottom);
      for (const y of [top, bottom]) { ctx.moveTo(x - cap, y); ctx.lineTo(x + cap, y); }
    }
    ctx.stroke();
    ctx.restore();
  }

  limitLine(u) {
    if (this.how.limit == null) return;
    const { ctx } = u, y = u.valToPos(this.how.limit, "y", true);
    ctx.save();
    ctx.strokeStyle = ctx.fillStyle = colour("--soft");
    ctx.setLineDash([5 * devicePixelRatio, 4 * devicePixelRatio]);
    ctx.lineWidth = devicePixelRatio;
    ctx.beginPath(); ctx.moveTo(u.bbox.left, y); ctx.lineTo(u.bbox.left + u.bbox.width, y); ctx.stroke();
    ctx.font = `${11 * devicePixelRatio}px Inter, system-ui, sans-serif`;
    ctx.textAlign = "left"; ctx.textBaseline = "top";
    ctx.fillText(this.how.limitWord ?? "", u.bbox.left + 6 * devicePixelRatio, y + 4 * devicePixelRatio);
    ctx.restore();
  }

  /** Write the values of a round below the curve; without one, those of the latest. */
  show(at) {
    if (!this.rounds) return;
    const index = at ?? this.rounds.length - 1;
    const parts = [Object.assign(document.createElement("b"), { textContent: `round ${this.rounds[index]}` })];
    const shown = this.many ? this.nearest(index) : this.curves.map((curve, place) => [curve.label, this.latest(place, index), this.tint(place), curve.band?.get(this.rounds[index])]);
    for (const [label, value, tint, half] of shown) {
      if (value == null) continue;
      const item = document.createElement("span"), swatch = document.createElement("i");
      swatch.className = `swatch ${tint.replace("--", "")}`;
      item.append(swatch, `${label} `, Object.assign(document.createElement("strong"), { textContent: this.how.format(value) + (half ? ` ± ${this.how.format(half)}` : "") }));
      parts.push(item);
    }
    this.readout.replaceChildren(...parts);
  }

  latest(place, index) {
    const column = this.values[place];
    if (!this.curves[place].dots && index < this.rounds.length - 1) return column[index];
    for (let at = index; at >= 0; at -= 1) if (column[at] != null) return column[at];
    return null;
  }

  /** Of many curves: their median, the lowest and the highest, by name. */
  nearest(index) {
    const found = this.curves.map((curve, place) => [curve.label, this.values[place][index]]).filter(([, value]) => value != null).sort((a, b) => a[1] - b[1]);
    if (!found.length) return [];
    const middle = median(this.values)[index], low = found[0], high = found.at(-1);
    return [["median", middle, "--s1"], [`lowest: ${low[0]}`, low[1], "--faint"], [`highest: ${high[0]}`, high[1], "--faint"]];
  }

  said(index) {
    const shown = this.many ? this.nearest(index) : this.curves.map((curve, place) => [curve.label, this.latest(place, index)]);
    return shown.filter(([, value]) => value != null).map(([label, value]) => `${label} ${this.how.format(value)}`).join(", ");
  }

  key(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (!step || !this.u) return;
    event.preventDefault();
    const last = this.rounds.length - 1, now = this.u.cursor.idx ?? last;
    const index = Math.min(last, Math.max(0, now + step));
    this.u.setCursor({ left: this.u.valToPos(this.rounds[index], "x"), top: 10 });
    this.plot.setAttribute("aria-label", `${this.title}, round ${this.rounds[index]}: ${this.said(index)}`);
  }

  /** The same figures as a table, the newest first. */
  fill() {
    const table = document.createElement("table"), head = table.createTHead().insertRow(), body = table.createTBody();
    for (const word of ["round", ...this.curves.map((curve) => curve.label)]) head.append(Object.assign(document.createElement("th"), { textContent: word, scope: "col", className: word === "round" ? "" : "n" }));
    for (let index = (this.rounds?.length ?? 0) - 1; index >= 0; index -= 1) {
      const row = body.insertRow();
      row.append(Object.assign(document.createElement("th"), { textContent: this.rounds[index], scope: "row" }));
      this.values.forEach((column, place) => {
        const half = this.curves[place].band?.get(this.rounds[index]);
        row.append(Object.assign(document.createElement("td"), { textContent: this.how.format(column[index]) + (half ? ` ± ${this.how.format(half)}` : ""), className: "n" }));
      });
    }
    this.table.replaceChildren(table);
  }

  resize() { if (this.u && this.plot.clientWidth) this.u.setSize({ width: this.plot.clientWidth, height: HEIGHT }); }

  redraw() { this.u?.redraw(false, true); if (this.u) this.show(this.u.cursor.idx); }
}

/** Sums from the last column to each; drawn in order, every area leaves its own part to be seen. */
function stacked(columns) {
  const sums = columns.map((column) => [...column]);
  for (let place = columns.length - 2; place >= 0; place -= 1) {
    sums[place] = sums[place].map((value, index) => (value ?? 0) + (sums[place + 1][index] ?? 0));
  }
  return sums;
}

function median(columns) {
  return columns[0].map((_, index) => {
    const found = columns.map((column) => column[index]).filter((value) => value != null).sort((a, b) => a - b);
    const half = found.length >> 1;
    return found.length ? (found.length % 2 ? found[half] : (found[half - 1] + found[half]) / 2) : null;
  });
}
