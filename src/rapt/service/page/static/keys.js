// API keys, of one's own tenant or, for the provider, of any: shown once when new, rotated, revoked.

import { confirmed, copyButton, el, item, list, moment } from "./elements.js";
import { searchable } from "./search.js";
import { ask } from "./service.js";
import { guarded, say } from "./status.js";

/** The keys of a tenant; `routes` are those of the owner or of the provider, `again` shows them anew. */
export function keyList(keys, { routes, again, shown }) {
  return searchable(list(keys.map((key) => keyItem(key, { routes, again, shown })), "No keys."), "keys").element;
}

/** A new key, with the only sight of it. */
export function secret(made) {
  const value = el("code", {}, made.value);
  const box = el("div", { class: "secret", tabindex: -1 },
    el("strong", {}, `New key of ${made.tenant}, shown this once`), value,
    el("div", { class: "buttons" },
      copyButton(made.value),
      el("button", { type: "button", onclick: () => box.remove() }, "I have stored it")));
  return box;
}

function keyItem(key, { routes, again, shown }) {
  const now = Date.now() / 1000;
  const ended = key.revoked_at ?? (key.expires_at && key.expires_at <= now ? key.expires_at : null);
  const [state, tone] = ended ? ["ended", ""] : key.expires_at ? ["ends", "caution"] : ["good", "good"];
  const rotate = async (grace) => {
    const made = await ask(routes.rotate, { where: { key_id: key.id }, body: { grace_seconds: grace } });
    await again();
    shown(secret(made));
  };
  const revoke = async () => {
    if (!await confirmed(`Revoke ${key.id}? Whoever uses it is refused from now on.`, { yes: "Revoke the key" })) return;
    await ask(routes.revoke, { where: { key_id: key.id } });
    await again();
    say(`Revoked ${key.id}.`);
  };
  return item({
    name: key.id, detail: ["role ", key.role, " · created ", moment(key.created_at)],
    value: el("span", { class: `state ${tone}` }, state),
    inside: () => [
      ended ? el("p", { class: "note" }, "It ended ", moment(ended), ".") : key.expires_at ? el("p", { class: "note" }, "It ends ", moment(key.expires_at), ".") : "",
      ended ? "" : el("div", { class: "buttons" },
        el("button", { type: "button", onclick: guarded(() => rotate(86400)) }, "Rotate, old one good for a day"),
        el("button", { type: "button", onclick: guarded(() => rotate(0)) }, "Rotate now"),
        el("button", { type: "button", class: "danger", onclick: guarded(revoke) }, "Revoke"))],
  });
}
