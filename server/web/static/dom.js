// The little that every part of the page does with the document.

export const byId = (id) => document.getElementById(id);

/** Changes text only where it differs, so that nothing flickers and no selection is lost. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Hides or shows something, where it is not so already. */
export function setHidden(element, isHidden) {
  if (element.hidden !== isHidden) element.hidden = isHidden;
}

/** Sets an attribute where it has another value. */
export function setAttribute(element, name, value) {
  if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

/** An element with a text that may be in any language. */
export function make(tag, text) {
  const element = document.createElement(tag);
  element.textContent = text;
  element.dir = "auto";
  return element;
}

/** Shows an error beside a field, or takes it away with null. */
export function setFieldError(name, message) {
  const error = byId(`${name}-error`);
  error.textContent = message ?? "";
  error.hidden = !message;
  if (message) byId(name).setAttribute("aria-invalid", "true");
  else byId(name).removeAttribute("aria-invalid");
}
