// The little that every part of the page does with the document.

export const byId = (id) => document.getElementById(id);

/** Changes text only where it differs, so that nothing flickers and no selection is lost. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Shows an error beside a field, or takes it away with null. */
export function setFieldError(name, message) {
  const error = byId(`${name}-error`);
  error.textContent = message ?? "";
  error.hidden = !message;
  if (message) byId(name).setAttribute("aria-invalid", "true");
  else byId(name).removeAttribute("aria-invalid");
}
