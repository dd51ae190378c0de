// How figures are written in charts; the same as formats.py does on the server.

export const percent = (value) => (value == null ? "–" : `${(100 * value).toFixed(1)}\u2009%`);

/** How the axis of a task's headline metric is drawn: a share in percent, any other as it is. */
export function scored(name) {
  return ["loss", "perplexity", "rmse", "mae", "r2"].includes(name) ? { format: figure } : { format: percent, least: 0, most: 1 };
}

export function figure(value) {
  if (value == null) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e4 || size < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
}

export function bytes(value) {
  if (value == null) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let at = 0;
  while (Math.abs(value) >= 999.5 && at < units.length - 1) { value /= 1000; at += 1; }
  return `${at && value < 99.95 ? value.toFixed(1) : Math.round(value)}\u2009${units[at]}`;
}

export function seconds(value) {
  if (value == null) return "–";
  if (value < 0.1) return value === 0 ? "0" : `${(value * 1000).toPrecision(2)}\u2009ms`;
  return value < 100 ? `${Number(value.toPrecision(3))}\u2009s` : `${Math.round(value / 60)}\u2009min`;
}
