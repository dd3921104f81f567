// A file that is dropped: its columns, then a privatized file of two of them, which the ledger counts.

import { bytes, count, el, field, facts, plural } from "./elements.js";
import { ROUTES, ask } from "./gateway.js";
import { statement } from "./measured.js";
import { guarded, say } from "./status.js";

const NONE = "none: the records are questions";

/** The section of a file. */
export function showFile(place, setting, signal) {
  const input = el("input", { type: "file", class: "file-choice", accept: ".csv,.jsonl,text/csv,application/jsonl" });
  const drop = el("div", { class: "drop" },
    field("A CSV or JSONL file of your texts", input, `Drop it here or choose it; at most ${bytes(setting.most_bytes)}. It goes to the gateway on this machine and no further.`));
  const columns = el("div", { "aria-live": "polite" });
  const result = el("div", { "aria-live": "polite" });
  let file = null;

  const head = (chosen) => JSON.stringify({ kind: file.name.toLowerCase().endsWith(".csv") ? "csv" : "jsonl", ...chosen });
  const send = (chosen) => ask(ROUTES.file, {
    form: new Blob([head(chosen), "\n", file], { type: "application/octet-stream" }), signal,
  });

  async function take(found) {
    result.replaceChildren();
    columns.replaceChildren();
    file = found;
    if (!file) return;
    if (file.size > setting.most_bytes) throw new Error(`the file must have at most ${bytes(setting.most_bytes)}; larger ones go by \`rapt privatize\``);
    const known = await send({});
    columns.replaceChildren(choose(known));
    say(`${plural(known.records, "record")}; say which column is the text.`);
  }

  function choose({ columns: names, records }) {
    const guess = (...wanted) => names.find((name) => wanted.includes(name.toLowerCase()));
    const options = (all, chosen) => all.map((name) => el("option", { selected: name === chosen }, name));
    const text = el("select", {}, options(names, guess("text", "review", "sentence", "message", "prompt") ?? names[0]));
    const label = el("select", {}, el("option", { value: "" }, NONE), options(names, guess("label", "class", "category", "sentiment", "stars", "rating")));
    const way = setting.label_epsilon == null ? "Labels and their names leave in clear." : `Labels leave by randomized response at ε = ${setting.label_epsilon}.`;
    return el("form", {
      class: "panel", onsubmit: guarded(async () => {
        const chosen = { text_column: text.value, ...(label.value ? { label_column: label.value } : {}) };
        say("Privatizing.");
        const found = await send(chosen);
        result.replaceChildren(...show(found, file.name));
        say(`Privatized ${plural(found.records, "record")}; the ledger has counted those that were new.`);
      }),
    },
    el("div", { class: "fields" }, field("Column of the texts", text), field("Column of the labels", label, way)),
    el("p", { class: "note" }, `All other columns stay here. ${plural(records, "text")} will be counted in the ledger, each once: one that was released before leaves as it did.`),
    el("div", { class: "buttons" }, el("button", { type: "submit", class: "primary" }, "Privatize")));
  }

  input.addEventListener("change", guarded(() => take(input.files[0])));
  for (const kind of ["dragenter", "dragover"]) {
    drop.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
  }
  for (const kind of ["dragleave", "drop"]) drop.addEventListener(kind, () => drop.classList.remove("over"));
  drop.addEventListener("drop", guarded((event) => take(event.dataTransfer.files[0])));
  place.append(drop, columns, result);
}

function show(found, name) {
  const stem = name.replace(/\.[^.]*$/, "");
  return [
    el("div", { class: "buttons" },
      save(found.file, `${stem}.rapt.jsonl`, "Save the privatized file"),
      save(found.statement.page, `${stem}.statement.txt`, "Save its statement")),
    el("h2", {}, "What leaves"),
    found.remark ? el("p", { class: found.remark.startsWith("warning") ? "warning" : "" }, `${found.remark}.`) : "",
    facts({ Records: count(found.records), Ids: count(found.tokens), Labels: found.labels.join(", ") }),
    el("ol", { class: "preview" }, found.preview.map(({ ids, words, label }) =>
      el("li", {}, el("span", { class: "drawn" }, words ?? `codeword ${ids.join(", ")}`), label == null ? "" : el("small", {}, ` label ${label}`)))),
    el("h2", {}, "Its statement"), statement(found.statement),
  ];
}

/** A link that saves a text; it is made in this tab and goes nowhere. */
function save(content, name, words) {
  return el("a", { class: "button", download: name, href: URL.createObjectURL(new Blob([content], { type: "text/plain" })) }, words);
}
