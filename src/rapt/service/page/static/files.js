// Files: what each says of how it was privatized, a new one, and a job on one.

import { bytes, confirmed, count, el, facts, field, item, list, moment, percent, plural, shortHash, strength, wide } from "./elements.js";
import { firstSteps } from "./first_steps.js";
import { searchable } from "./search.js";
import { ROUTES, all, ask, lines, send } from "./service.js";
import { guarded, say } from "./status.js";

/** The section of files. */
export async function showFiles(place) {
  const [files, models] = await Promise.all([all(ROUTES.files), all(ROUTES.models)]);
  const bases = models.filter((model) => model.id === model.rapt.base);
  const again = () => showFiles(place);
  place.replaceChildren(uploadForm(again), files.length
    ? searchable(list(files.map((file) => fileItem(file, bases, again))), "files").element
    : firstSteps("privatize", { bases }));
}

function uploadForm(again) {
  const input = el("input", { type: "file", class: "file-choice", accept: ".jsonl", required: true });
  return el("form", {
    class: "panel",
    onsubmit: guarded(async () => {
      const file = input.files[0];
      await refusePlainText(file);
      const form = new FormData();
      form.append("purpose", "fine-tune");
      form.append("file", file);
      const made = await ask(ROUTES.uploadFile, { form });
      await again();
      say(`Uploaded ${made.filename}: ${plural(made.rapt.records, "record")}.`);
    }),
  }, field("Upload a privatized file", input, "Anything that does not begin as one is refused here, before it leaves this machine."),
  el("div", { class: "buttons" }, el("button", { type: "submit" }, "Upload")));
}

/** Reads the first line where it is: a file of plain text must not leave the machine by mistake. */
async function refusePlainText(file) {
  let first = "";
  for await (first of lines(file.slice(0, 1 << 20).stream())) break;
  let manifest = null;
  try { manifest = JSON.parse(first); } catch { /* it is no manifest, which is said below */ }
  if (!/^rapt\.(privatized|codes)\//.test(manifest?.schema)) {
    throw new Error("this is no privatized file, so nothing was sent; make one with `rapt privatize`");
  }
}

function fileItem(file, bases, again) {
  const told = file.rapt;
  return item({
    name: file.filename,
    detail: `${told.mechanism.name}, ${strength(told.mechanism.parameters)} · ${plural(told.records, "record")}`,
    value: told.insecure_seed ? el("span", { class: "warning" }, "not protected") : el("small", {}, bytes(file.bytes)),
    inside: () => {
      const rest = el("div", {}, el("p", { class: "note" }, "Reading the manifest…"));
      guarded(async () => rest.replaceChildren(manifestWords(await manifestOf(file))))();
      return [statement(file), facts({
        Records: count(told.records),
        Tokens: `${count(told.tokens)}, ${(told.tokens / told.records).toFixed(1)} a record`,
        "Plain tokens": told.plain_tokens || "none",
        Labels: told.labels || "none",
        Vocabulary: vocabularyName(told, bases),
        Size: bytes(file.bytes),
        Uploaded: moment(file.created_at),
        Id: wide(el("code", {}, file.id)),
      }), rest, tuneForm(file, bases), el("div", { class: "buttons" }, el("button", {
        type: "button", class: "danger",
        onclick: guarded(async () => {
          if (!await confirmed(`Delete ${file.filename}, its bytes too?`, { yes: "Delete the file" })) return;
          await ask(ROUTES.deleteFile, { where: { file_id: file.id } });
          await again();
          say(`Deleted ${file.filename}.`);
        }),
      }, "Delete the file"))];
    },
  });
}

function statement({ rapt: { mechanism, insecure_seed } }) {
  const { eta, epsilon, ...others } = mechanism.parameters;
  const unit = epsilon == null ? "per embedding distance" : "for each whole text";
  const rest = Object.entries(others).map(([name, value]) => `, ${name} = ${value}`).join("");
  return el("div", { class: `statement ${insecure_seed ? "bad" : "plain"}` },
    el("p", { class: "headline" }, `Privatized with ${mechanism.name}, ${strength({ epsilon, eta })} ${unit}${rest}`),
    insecure_seed ? el("p", { class: "warning" }, "The noise came from a seed: anybody can replay it, and it protects nothing.") : "",
    mechanism.name === "laplace" ? el("p", {}, "If the embeddings of two tokens are a distance d apart, any output is at most ",
      el("span", { class: "ids" }, "exp(η·d)"), " times as likely from one as from the other.") : "",
    epsilon == null ? "" : el("p", {}, "Any output is at most ", el("span", { class: "ids" }, "exp(ε)"),
      " times as likely from one text as from any other, of any length."),
    el("p", { class: "note" }, "This is what the file states; the service cannot check it. ", el("code", {}, "rapt statement"),
      " on the file says in numbers what it protects and what not."));
}

/** The first line of a file as it was uploaded; the rest is not downloaded. */
async function manifestOf(file) {
  const answer = await send(ROUTES.fileContent, { where: { file_id: file.id } });
  for await (const line of lines(answer.body)) return JSON.parse(line);
  throw new Error("the file has no manifest");
}

function manifestWords(manifest) {
  const { labels, label_privacy: hidden, randomness, pairs, targets } = manifest;
  const kept = hidden && Math.exp(hidden.epsilon) / (Math.exp(hidden.epsilon) + labels.length - 1);
  return facts({
    "Label names": labels?.join(", "),
    "Labels were sent": labels && (hidden ? `by randomized response, ε = ${hidden.epsilon}: ${percent(kept)} are true` : "in clear"),
    "Second texts": pairs ? "privatized as the first" : null,
    Targets: targets && (targets === "public" ? "in clear, declared public" : "privatized"),
    "Noise from": randomness.source,
    "Written by": manifest.created_by,
  });
}

function vocabularyName(told, bases) {
  const of = bases.filter((base) => base.rapt.vocabulary_hash === told.vocabulary_hash).map((base) => base.id);
  return `${of.length ? `${of.join(", ")} · ` : ""}${shortHash(told.vocabulary_hash)}`;
}

function tuneForm(file, bases) {
  const fitting = bases.filter((base) => base.rapt.vocabulary_hash === file.rapt.vocabulary_hash);
  if (!fitting.length) return el("p", { class: "note" }, "No base model here has this vocabulary, so it cannot be tuned on.");
  const model = el("select", {}, fitting.map((base) => el("option", {}, base.id)));
  const methods = { auto: "auto", ...fitting[0].rapt.methods };  // the first is the default, as in `rapt tune`
  const method = el("select", {}, Object.entries(methods).map(([value, name]) => el("option", { value }, name)));
  const epochs = el("input", { type: "number", min: 1, max: 1000, placeholder: "auto" });
  const suffix = el("input", { pattern: "[A-Za-z0-9._\\-]{1,64}", placeholder: "rapt", autocomplete: "off" });
  return el("form", {
    class: "panel",
    onsubmit: guarded(async () => {
      const hyperparameters = epochs.value ? { n_epochs: Number(epochs.value) } : {};
      if (!file.rapt.labels) hyperparameters.task = "generation";
      const body = {
        model: model.value, training_file: file.id, suffix: suffix.value || null,
        method: { type: method.value, [method.value]: { hyperparameters } },
      };
      const job = await ask(ROUTES.createJob, { body });
      location.hash = "#/jobs";
      say(`Queued ${job.id}.`);
    }),
  }, el("div", { class: "fields" }, field("Base model", model), field("Method", method), field("Epochs", epochs), field("Name", suffix)),
  el("div", { class: "buttons" }, el("button", { type: "submit" }, "Tune on this file")));
}
