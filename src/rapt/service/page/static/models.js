// Models: what each was tuned on and how its queries must be privatized, and a box to try it.

import { confirmed, el, facts, item, list, moment, percent, shortHash, strength } from "./elements.js";
import { askAtHome, command, firstSteps } from "./first_steps.js";
import { searchable } from "./search.js";
import { ROUTES, all, ask } from "./service.js";
import { guarded, say } from "./status.js";
import { tryIt } from "./try_it.js";

/** The section of models. */
export async function showModels(place) {
  const models = await all(ROUTES.models);
  const isBase = (model) => model.id === model.rapt.base;
  const bases = models.filter(isBase);
  const tuned = models.filter((model) => !isBase(model));
  const again = () => showModels(place);
  place.replaceChildren(
    tuned.length
      ? searchable(list(tuned.map((model, rank) => tunedItem(model, again, rank === 0))), "models").element
      : el("div", {}, el("p", {}, "No tuned models yet. A job that succeeds makes one."), firstSteps("tune", { bases })),
    el("h2", {}, "Base models"),
    el("div", {}, bases.map(baseItem)));
}

function tunedItem(model, again, open) {
  const name = model.id.split(":");
  return item({
    name: name[3] ?? model.id, detail: model.id, value: el("small", {}, moment(model.created)), open,
    inside: () => {
      const box = el("div", {}, el("p", { class: "note" }, "Reading its card…"));
      guarded(async () => {
        const whole = await ask(ROUTES.model, { where: { model_id: model.id } });
        box.replaceChildren(...cardWords(whole), deleteButton(model, again));
      })();
      return box;
    },
  });
}

function cardWords(model) {
  const { card } = model.rapt;
  const writes = card.task === "generation";
  const { train_mean_token_accuracy: accuracy, train_loss: loss } = card.metrics;
  return [
    el("h3", {}, "Try it"),
    tryIt(model, { writes }),
    ...(writes ? [] : [el("h3", {}, "Ask at home"), command(askAtHome(model.id))]),
    el("h3", {}, "Card"),
    facts({
      Task: card.task.replaceAll("_", " "), Labels: card.labels.join(", "), Method: card.method.replaceAll("_", " "),
      "Base model": card.model, "Queries must be privatized with": `${card.mechanism.name}, ${strength(card.mechanism.parameters)}`,
      "Plain tokens": card.plain_tokens || "none", "Prompt length": card.prompt_length || null,
      "Accuracy on its training text": accuracy == null ? null : percent(accuracy), "Training loss": loss?.toFixed(3),
      "Longest input": `${model.rapt.max_tokens} tokens`, Vocabulary: shortHash(card.vocabulary_hash), "Tuned by": card.created_by,
    })];
}

function deleteButton(model, again) {
  const remove = async () => {
    if (!await confirmed(`Delete ${model.id} and its weights?`, { yes: "Delete the model" })) return;
    await ask(ROUTES.deleteModel, { where: { model_id: model.id } });
    await again();
    say(`Deleted ${model.id}.`);
  };
  return el("div", { class: "buttons" }, el("button", { type: "button", class: "danger", onclick: guarded(remove) }, "Delete the model"));
}

function baseItem(model) {
  const writes = model.rapt.kind !== "encoder";
  return item({
    name: model.id, detail: writes ? "writes a text" : "answers once it is tuned",
    inside: () => [
      facts({ Kind: model.rapt.kind, "Longest input": `${model.rapt.max_tokens} tokens`, Vocabulary: shortHash(model.rapt.vocabulary_hash) }),
      writes ? tryIt(model, { writes }) : el("p", { class: "note" }, "It has no labels and writes no text by itself. Tune it on a file.")],
  });
}
