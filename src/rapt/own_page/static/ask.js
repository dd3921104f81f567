// A question to a model: with a release of it, through the service, or at home, where nothing of it leaves.

import { bar, el, facts, field, item, percent, plural } from "./elements.js";
import { ROUTES, ask } from "./gateway.js";
import { named } from "./measured.js";
import { guarded, say } from "./status.js";

/** The section of questions. */
export async function showAsk(place, setting, signal) {
  const models = (await ask(ROUTES.models, { signal })).data.filter((model) => model.rapt?.vocabulary_hash === setting.vocabulary)
    .sort((one, other) => (one.rapt.base === one.id) - (other.rapt.base === other.id));  // tuned ones first
  if (!models.length) {
    place.append(el("p", { class: "empty" }, "The service has no model that reads what this gateway sends."));
    return;
  }
  const model = el("select", {}, models.map(({ id, rapt }) => el("option", { value: id }, rapt.base === id ? `${id} (not tuned)` : id)));
  const text = el("textarea", { maxlength: 2000, autocomplete: "off", spellcheck: "false", required: true });
  const [served, home] = ["With a release, by the service", "At home, on this machine"].map((title) =>
    el("section", { class: "answer", "aria-label": title, "aria-live": "polite" }, el("h3", {}, title), el("div", {})));
  const body = () => {
    if (!text.reportValidity()) throw new Error("there must be a question");
    return { text: text.value, model: model.value };
  };
  const answering = (route, into, show) => guarded(async () => {
    const asked = body();
    say("Asking.");
    into.lastChild.replaceChildren(...show(await ask(route, { body: asked, signal })));
    say("");
  });
  place.append(
    el("form", { class: "panel", onsubmit: answering(ROUTES.ask, served, privately) },
      el("div", { class: "fields" }, field("Model", model)),
      field("Your question", text, `Asked of the service it leaves privatized, at ${named(setting.unit, setting.strength)}, and the ledger counts it once.`),
      el("div", { class: "buttons" },
        el("button", { type: "submit", class: "primary" }, "Ask the service"),
        el("button", { type: "button", onclick: answering(ROUTES.askAtHome, home, atHome) }, "Ask at home"))),
    el("div", { class: "answers" }, served, home));
}

function privately({ left, answer }) {
  const { manifest } = left;
  return [
    ...write(answer),
    el("p", { class: "went plain" }, el("strong", {}, "What left: "),
      `${plural(left.ids.length, left.words == null ? "codeword" : "token id")}${left.plain_tokens ? `, ${plural(left.plain_tokens, "public plain token")}` : ""} and a manifest.`),
    el("p", { class: "drawn" }, left.words ?? `codeword ${left.ids.join(", ")}`),
    item({ name: "The manifest", detail: "what the service is told of it", inside: () =>
      facts({ Mechanism: manifest.mechanism.name, ...manifest.mechanism.parameters, Model: manifest.model, Randomness: manifest.randomness.source }) }),
  ];
}

function atHome({ answer }) {
  return [
    ...write(answer),
    el("p", { class: "went good" }, el("strong", {}, "What left: "), "nothing of the question. ",
      answer.fetched ? "The model was fetched by its name, once." : "The model was here already."),
  ];
}

function write({ labels, probabilities, text }) {
  if (text != null) return [el("p", { class: "written" }, text)];
  const order = labels.map((name, at) => [name, probabilities[at]]).sort((one, other) => other[1] - one[1]);
  return [el("div", { class: "bars" }, order.map(([name, share], rank) => bar({ name, value: percent(share), share, other: rank > 0 })))];
}
