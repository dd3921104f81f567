// The try-it box: privatized ids or a privatized query in; labels with probabilities, or a text, out.

import { bar, el, field, percent, plural, strength, tick } from "./elements.js";
import { predictionTable } from "./predictions.js";
import { manifestFor, readIds, readQuery, seal } from "./query.js";
import { ROUTES, ask, streamed } from "./service.js";
import { guarded, say } from "./status.js";

// Texts that one prediction here takes, and of those at once in a request.
const MOST_WRITTEN = 32;
const MOST_CHOSEN = 5000;
const AT_ONCE = 250;
// Those whose only parameter is eta; a query with another comes as a file.
const PLAIN_MECHANISMS = ["laplace", "exponential"];

/** The box for a model; `writes` says that it answers with text. */
export function tryIt(model, { writes }) {
  const { card, vocabulary_hash: vocabularyHash, base } = model.rapt;
  const takesIds = !card?.plain_tokens && !card?.training.pairs && (card || model.rapt.unit !== "text");
  const ids = el("textarea", { class: "ids", spellcheck: "false", autocomplete: "off", inputmode: "numeric" });
  const file = el("input", { type: "file", class: "file-choice", accept: ".jsonl,.json" });
  const sure = el("input", { type: "checkbox" });
  const mechanism = el("select", {}, PLAIN_MECHANISMS.map((name) => el("option", {}, name)));
  const eta = el("input", { type: "number", min: 0, step: "any" });
  const most = el("input", { type: "number", min: 1, max: 512, value: 32 });
  const heat = el("input", { type: "number", min: 0, max: 2, step: "any", value: 1 });
  const answers = el("div", { "aria-live": "polite" });
  let stop = null;
  const stopping = el("button", { type: "button", hidden: true, onclick: () => stop?.abort() }, "Stop");

  const stated = card ? `${card.mechanism.name} at ${strength(card.mechanism.parameters)}` : "the mechanism and η given here";
  const needs = [card?.plain_tokens && plural(card.plain_tokens, "plain token"), card?.training.pairs && "two texts a record"]
    .filter(Boolean).map((need) => ` and ${need}`).join("");
  async function query() {
    if (file.files.length) return readQuery(await file.files[0].text());
    if (!takesIds) throw new Error("choose a query file: it holds what this model needs beside a text");
    const records = readIds(ids.value);
    if (!sure.checked) throw new Error("tick that the ids were privatized; the service takes your word for it");
    if (!card && !(Number(eta.value) > 0)) throw new Error("give the η that the ids were privatized with, above 0");
    const own = card ? card.mechanism : { name: mechanism.value, parameters: { eta: Number(eta.value) } };
    return { manifest: manifestFor({ model: base, vocabularyHash, mechanism: own }), records };
  }

  async function run() {
    const { manifest, records } = await query();
    const own = records.slice(0, writes ? MOST_WRITTEN : MOST_CHOSEN);
    stop = new AbortController();
    stopping.hidden = false;
    try {
      await (writes ? write(await seal({ manifest, records: own })) : choose(manifest, own));
    } finally {
      stopping.hidden = true;
    }
    const left = records.length - own.length;
    say(`Answered ${plural(own.length, "text")}${left ? `; the first ${own.length} of ${records.length}` : ""}.`);
  }

  async function choose(manifest, records) {
    let names = [];
    const rows = [];
    for (let from = 0; from < records.length; from += AT_ONCE) {
      if (from) say(`Answered ${rows.length} of ${plural(records.length, "text")}…`);
      const body = { model: model.id, ...await seal({ manifest, records: records.slice(from, from + AT_ONCE) }) };
      const found = await ask(ROUTES.classify, { body, signal: stop.signal });
      names = found.labels;
      rows.push(...found.predictions.map(({ probabilities }) => probabilities));
    }
    const lengths = records.map((record) => record.token_ids.length + (record.second_token_ids?.length ?? 0));
    answers.replaceChildren(rows.length > 1 ? predictionTable(names, rows, { lengths }) : labels(names, rows[0], 0, records));
  }

  async function write({ manifest, records }) {
    const places = records.map((record, place) => answer(place, record, el("p", { class: "written" })));
    answers.replaceChildren(...places);
    const rest = records.map(({ token_ids, ...others }) => others);
    const body = {
      model: model.id, prompt: records.map((record) => record.token_ids), stream: true,
      max_tokens: Number(most.value), temperature: Number(heat.value), rapt: { manifest, records: rest },
    };
    for await (const { choices } of streamed(ROUTES.complete, { body, signal: stop.signal })) {
      for (const { index, text } of choices) places[index].querySelector(".written").append(text);
    }
  }

  return el("form", { class: "panel", onsubmit: guarded(run) },
    takesIds
      ? [field("Privatized token ids", ids, "One text a line, numbers only."),
        card ? "" : el("div", { class: "fields" }, field("Mechanism", mechanism), field("η, per embedding distance", eta)),
        tick(sure, `These ids were privatized on this vocabulary with ${stated}.`),
        field("or a privatized query file", file, "Labels in it are not sent.")]
      : field("Privatized query file", file,
        `Made with ${stated}${needs}, as the training text was. Labels in it are not sent.`),
    writes ? el("div", { class: "fields" }, field("Most tokens to write", most), field("Temperature", heat)) : "",
    el("div", { class: "buttons" }, el("button", { type: "submit", class: "primary" }, writes ? "Write" : "Predict"), stopping),
    answers);
}

function labels(names, probabilities, place, records) {
  const order = names.map((name, index) => [name, probabilities[index]]).sort((one, other) => other[1] - one[1]);
  const rows = order.map(([name, share], rank) => bar({ name, value: percent(share), share, other: rank > 0 }));
  return answer(place, records[place], el("div", { class: "bars" }, rows));
}

const answer = (place, record, body) => el("div", { class: "answer" },
  el("p", { class: "note" }, `text ${place + 1}, ${plural(record.token_ids.length, "token")}`), body);
