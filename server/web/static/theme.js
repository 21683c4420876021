// Sets the remembered theme before the first paint, and turns the button in the header.
"use strict";
{
  const next = { system: "light", light: "dark", dark: "system" };
  const root = document.documentElement;
  const remembered = () => {
    try {
      return localStorage.getItem("theme") ?? "system";
    } catch {
      return "system"; // storage is blocked: follow the system
    }
  };

  const apply = (theme) => {
    if (theme === "system") root.removeAttribute("data-theme");
    else root.dataset.theme = theme;
  };

  const describe = (button, theme) => {
    button.querySelector("use").setAttribute("href", `web/icons.svg#theme-${theme}`);
    const label = `Theme: ${theme}. Change to ${next[theme]}`;
    button.setAttribute("aria-label", label);
    button.title = label;
  };

  let theme = next[remembered()] ? remembered() : "system";
  apply(theme);

  addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    describe(button, theme);
    button.addEventListener("click", () => {
      theme = next[theme];
      apply(theme);
      describe(button, theme);
      try {
        localStorage.setItem("theme", theme);
      } catch {
        // Storage is blocked: the choice holds until the page is closed.
      }
    });
  });
}
