// Light or dark: what the reader chose, else what the system says. Runs before the page is painted.
"use strict";
(() => {
  const root = document.documentElement;
  const stored = () => {
    try {
      return localStorage.getItem("medbench-theme");
    } catch {
      return null; // a browser may refuse storage to pages from disk
    }
  };
  const choose = (theme) => {
    root.dataset.theme = theme;
    try {
      localStorage.setItem("medbench-theme", theme);
    } catch {
      // the choice then lasts as long as the page
    }
  };
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const changed = () => dispatchEvent(new Event("medbench-theme"));
  const known = stored();
  if (known === "light" || known === "dark") root.dataset.theme = known;
  document.addEventListener("DOMContentLoaded", () => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "theme";
    const name = () => {
      button.textContent = isDark() ? "Light colours" : "Dark colours";
    };
    button.addEventListener("click", () => {
      choose(isDark() ? "light" : "dark");
      name();
      changed();
    });
    system.addEventListener("change", () => {
      name();
      changed();
    });
    name();
    document.querySelector("header.site").append(button);
  });
})();
