// What the tenant has and may have, and its keys.

import { bar, bytes, count, el } from "./elements.js";
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
  const share = (part, whole) => (whole ? part / whole : 0);
  return el("div", { class: "bars" },
    bar({ name: "Bytes stored", value: `${bytes(used.bytes)} of ${bytes(quotas.max_bytes)}`, share: share(used.bytes, quotas.max_bytes) }),
    bar({ name: "Jobs that have not ended", value: `${count(used.jobs)} of ${count(quotas.max_jobs)}`, share: share(used.jobs, quotas.max_jobs) }),
    el("p", { class: "note" },
      `${count(used.files)} files and ${count(used.models)} tuned models. Predictions may take ${count(quotas.tokens_per_minute)} tokens a minute.`));
}
