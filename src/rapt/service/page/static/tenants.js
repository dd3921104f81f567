// For the provider: tenants, their quotas and their keys.

import { quotaBars } from "./account.js";
import { el, field, item, list, moment } from "./elements.js";
import { keyList, secret } from "./keys.js";
import { searchable } from "./search.js";
import { ROUTES, all, ask } from "./service.js";
import { guarded, say } from "./status.js";

const QUOTAS = { max_bytes: "Bytes stored", max_jobs: "Jobs at a time", tokens_per_minute: "Tokens a minute" };

/** The section of tenants. */
export async function showTenants(place) {
  const tenants = await all(ROUTES.tenants);
  place.replaceChildren(newTenant(() => showTenants(place)), searchable(list(tenants.map(tenantItem), "No tenants yet."), "tenants").element);
}

function newTenant(again) {
  const name = el("input", { required: true, pattern: "[a-z0-9]([a-z0-9\\-]{0,30}[a-z0-9])?", autocomplete: "off", autocapitalize: "off", spellcheck: "false" });
  const quotas = quotaFields({});
  return el("form", {
    class: "panel",
    onsubmit: guarded(async () => {
      await ask(ROUTES.createTenant, { body: { name: name.value, ...quotas.values() } });
      await again();
      say(`Created the tenant ${name.value}. Open it to give it a key.`);
    }),
  }, el("div", { class: "fields" }, field("New tenant", name, "Letters, digits and dashes."), quotas.fields),
  el("div", { class: "buttons" }, el("button", { type: "submit", class: "primary" }, "Create the tenant")));
}

function quotaFields(own) {
  const inputs = Object.fromEntries(Object.keys(QUOTAS).map((name) =>
    [name, el("input", { type: "number", min: 0, step: 1, placeholder: "as the service", value: own[name] ?? null })]));
  return {
    fields: Object.entries(QUOTAS).map(([name, words]) => field(words, inputs[name])),
    values: () => Object.fromEntries(Object.entries(inputs).map(([name, { value }]) => [name, value === "" ? null : Number(value)])),
  };
}

function tenantItem(tenant) {
  const own = Object.keys(QUOTAS).filter((name) => tenant[name] != null).length;
  return item({
    name: tenant.id, // The tenant of this machine was there before there were any.
    detail: [...(tenant.created_at ? ["created ", moment(tenant.created_at)] : ["of this machine"]), own ? " · quotas of its own" : ""],
    inside: () => {
      const box = el("div", {}, el("p", { class: "note" }, "Looking it up…"));
      const show = () => showTenant(box, tenant.id, tenant);
      guarded(show)();
      return box;
    },
  });
}

async function showTenant(box, id, tenant) {
  const where = { tenant: id };
  const [usage, keys] = await Promise.all([ask(ROUTES.usageOf, { where }), all(ROUTES.keys, { query: { tenant: id } })]);
  const quotas = quotaFields(tenant);
  const again = (own = tenant) => showTenant(box, id, own);
  const shown = (made) => { box.querySelector(".news").replaceChildren(made); made.focus(); };
  const create = (role) => guarded(async () => {
    const made = await ask(ROUTES.createKey, { where, body: { role } });
    await again();
    shown(secret(made));
  });
  box.replaceChildren(
    quotaBars(usage),
    el("form", {
      class: "panel",
      onsubmit: guarded(async () => {
        await again(await ask(ROUTES.setQuotas, { where, body: quotas.values() }));
        say(`The quotas of ${id} are set.`);
      }),
    }, el("div", { class: "fields" }, quotas.fields),
    el("div", { class: "buttons" }, el("button", { type: "submit" }, "Set quotas"), el("small", {}, "What is left empty is as the service's settings say."))),
    el("h3", {}, "Keys"), el("div", { class: "news" }),
    keyList(keys, { routes: { rotate: ROUTES.rotateKey, revoke: ROUTES.revokeKey }, again, shown }),
    el("div", { class: "buttons" },
      el("button", { type: "button", onclick: create("tenant") }, "Create a key"),
      el("button", { type: "button", onclick: create("admin") }, "Create an admin's key")));
}
