// A field that narrows a list to the items whose first line, or whose `data-search`, has every word.

import { el, field } from "./elements.js";

const ENOUGH = 5; // items from which looking for one takes longer than typing

/** Puts the field before the items of `box`; `again` looks anew after they have changed. */
export function searchable(box, what) {
  const input = el("input", { type: "search", autocomplete: "off", spellcheck: "false", oninput: () => again() });
  const told = el("small", { role: "status" });
  const place = el("div", { class: "search", role: "search" }, field(`Search ${what}`, input), told);
  function again() {
    const items = [...box.querySelectorAll(":scope > .item")];
    place.hidden = items.length < ENOUGH;
    const words = place.hidden ? [] : input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const one of items) {
      const text = `${one.querySelector("summary").textContent} ${one.dataset.search ?? ""}`.toLowerCase();
      one.hidden = !words.every((word) => text.includes(word));
      shown += one.hidden ? 0 : 1;
    }
    told.textContent = words.length ? `${shown} of ${items.length}` : "";
  }
  again();
  return { element: el("div", {}, place, box), again };
}
