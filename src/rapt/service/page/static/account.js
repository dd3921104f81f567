// What the tenant has and may have, and its keys.

import { bar, bytes, count, el, weighUse } from "./elements.js";
import { keyList } from "./keys.js";
import { ROUTES, all, ask } from "./service.js";

/** The section of the own account. */
export async function showAccount(place) {
  const [usage, keys] = await Promise.all([ask(ROUTES.usage), all(ROUTES.ownKeys)]);
  place.replaceChildren(
    quotaBars(usage), el("h2", {}, "Keys"),
    keyList(keys, {
      routes: { rotate: ROUTES.rotateOwnKey, revoke: ROUTES.revokeOwnKey },
      again: () => showAccount(place), shown: (box) => { place.prepend(box); box.focus(); },
    }));
}

/** Quotas and what of them is used. */
export function quotaBars({ quotas, ...used }) {
  const use = (name, part, whole, write) => {
    const share = whole ? part / whole : 0;
    return bar({ name, value: `${write(part)} of ${write(whole)}`, share, tone: weighUse(share) });
  };
  return el("div", { class: "bars" },
    use("Bytes stored", used.bytes, quotas.max_bytes, bytes),
    use("Jobs that have not ended", used.jobs, quotas.max_jobs, count),
    el("p", { class: "note" },
      `${count(used.files)} files and ${count(used.models)} tuned models. Predictions may take ${count(quotas.tokens_per_minute)} tokens a minute.`));
}
