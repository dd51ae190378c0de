// What every page has: the theme switch, dialogs, relative times, forms that submit by a choice.

const THEMES = ["auto", "light", "dark"];
const root = document.documentElement;

function setTheme(theme) {
  if (theme === "auto") delete root.dataset.theme;
  else root.dataset.theme = theme;
  document.cookie = `lorica-theme=${theme}; path=/; max-age=31536000; samesite=lax`;
  for (const word of document.querySelectorAll("[data-theme-word]")) word.textContent = `Theme: ${theme}`;
  root.dispatchEvent(new CustomEvent("themechange"));
}

for (const button of document.querySelectorAll("[data-theme-switch]")) {
  button.addEventListener("click", () => {
    const now = root.dataset.theme ?? "auto";
    setTheme(THEMES[(THEMES.indexOf(now) + 1) % THEMES.length]);
  });
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => root.dispatchEvent(new CustomEvent("themechange")));

for (const opener of document.querySelectorAll("[data-opens]")) {
  opener.addEventListener("click", () => document.getElementById(opener.dataset.opens).showModal());
}
for (const closer of document.querySelectorAll("[data-closes]")) {
  closer.addEventListener("click", () => closer.closest("dialog").close());
}
for (const field of document.querySelectorAll("[data-submits]")) {
  field.addEventListener("change", () => field.form.requestSubmit());
}

function ago(seconds) {
  for (const [limit, unit, word] of [[90, 1, "s"], [5400, 60, "min"], [129600, 3600, "h"]]) {
    if (seconds < limit) return `${Math.round(seconds / unit)}\u2009${word} ago`;
  }
  return `${Math.round(seconds / 86400)}\u2009d ago`;
}
setInterval(() => {
  for (const time of document.querySelectorAll("time[data-ago]")) {
    time.textContent = ago(Math.max(0, (Date.now() - Date.parse(time.dateTime)) / 1000));
  }
}, 15000);
