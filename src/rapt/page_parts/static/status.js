// The one line that says what happened. Screen readers read it out as it changes.

import { el } from "./elements.js";

const line = () => document.getElementById("status");

/** Says that something was done; an empty text clears the line. */
export function say(text) {
  line().className = "status";
  line().replaceChildren(text);
}

/** Says what went wrong, with the id under which the provider finds the request. */
export function complain(error) {
  if (error.name === "AbortError") return;
  line().className = "status bad";
  const id = error.requestId ? el("small", {}, `x-request-id ${error.requestId}`) : "";
  line().replaceChildren(sentence(error.message), id);
}

/** A handler that complains of whatever its task throws, and takes no second click while it is at work. */
export function guarded(task) {
  return async (event) => {
    event?.preventDefault?.();
    const button = event?.submitter ?? event?.currentTarget;
    const busy = button instanceof HTMLButtonElement ? button : null;
    if (busy) busy.disabled = true;
    try {
      await task(event);
    } catch (error) {
      complain(error);
    } finally {
      if (busy) busy.disabled = false;
    }
  };
}

const sentence = (text) => `${text.charAt(0).toUpperCase()}${text.slice(1)}.`;
