// Curves of several runs, laid over one another.

import { Chart } from "./chart.js";
import { ask } from "./feed.js";
import { figure, scored } from "./figures.js";

const section = document.querySelector("[data-compare]");
if (section) {
  const runs = [...section.querySelectorAll("[data-run]")].map(({ dataset }) => dataset);
  const found = await Promise.all(runs.map(({ run }) => ask(`/runs/${encodeURIComponent(run)}/rounds`)));
  for (const box of section.querySelectorAll("[data-chart]")) {
    const name = box.dataset.chart;
    const chart = new Chart(box, { ...(name === "score" ? scored(section.dataset.headline) : { format: figure }), zero: name === "epsilon", empty: "None of these runs has it." });
    chart.set(runs.map(({ title }, index) => ({
      label: title, colour: `--s${index + 1}`,
      points: new Map(found[index].filter((row) => row[name] != null).map((row) => [row.round, row[name]])),
    })));
  }
}
