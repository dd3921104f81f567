// The ledger in counts: what was released, what it cost, and what is left under the caps.

import { bar, count, el, facts, list, plural } from "./elements.js";
import { ROUTES, ask } from "./gateway.js";

const BUDGETS = { metric: ["Tokens", "η·tokens", "η"], text: ["Whole texts", "ε", "ε"], label: ["Labels", "ε", "ε"] };
const number = (value) => Number(value.toPrecision(6)).toLocaleString("en");

/** The section of the ledger. */
export async function showLedger(place, setting, signal) {
  const found = await ask(ROUTES.ledger, { signal });
  place.append(
    facts({
      "Different texts": count(found.texts), Releases: count(found.releases), "Tokens released": count(found.tokens),
      "First release": day(found.first), "Last release": day(found.last),
    }),
    el("h2", {}, "Budgets"),
    el("p", { class: "note" }, "Each is a promise of its own; they are never added up."),
    ...Object.entries(found.budgets).filter(([, budget]) => budget.in_all > 0 || budget.cap_in_all != null || budget.cap_on_one_text != null).map(one),
    el("h2", {}, "By setting"),
    list(found.settings.map((row) => el("div", { class: "line" },
      el("span", { class: "name" }, row.mechanism, el("small", {}, `${plural(row.releases, "release")}${row.tokens ? `, ${plural(row.tokens, "token")}` : ""}`)),
      el("span", { class: "value" }, number(row.in_all)))), "Nothing was released yet."),
    el("p", { class: "note last" }, "The ledger holds no text: keyed hashes, settings, and the ids that left. ", el("code", {}, "rapt ledger verify"), " checks that nobody changed it, ", el("code", {}, "rapt ledger cap"), " sets what may be spent."));
}

function one([kind, budget]) {
  const [name, ofAll, ofOne] = BUDGETS[kind];
  const rows = [
    ["in all", budget.in_all, budget.cap_in_all, ofAll], ["most on one text", budget.most_on_one_text, budget.cap_on_one_text, ofOne],
  ].map(([what, spent, cap, unit]) => (cap == null
    ? el("div", { class: "row" }, el("span", { class: "name" }, `${name}, ${what}`, el("small", {}, "no cap: nothing says what is left")),
      el("span", { class: "value" }, `${number(spent)} ${unit} spent`))
    : bar({ name: [`${name}, ${what}`, el("small", {}, `${number(spent)} of ${number(cap)} ${unit} spent`)],
      value: `${number(Math.max(cap - spent, 0))} ${unit} left`, share: spent / cap, tone: budget.severity })));
  return el("div", { class: "bars" }, rows);
}

const day = (time) => (time == null ? null : time.replace("T", " ").replace(/\.\d+/, "").replace("+00:00", " UTC"));
