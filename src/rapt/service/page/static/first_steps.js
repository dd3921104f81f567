// The way from nothing to a first answer, as commands to copy; and one command by itself.

import { copyButton, el } from "./elements.js";

const SERVICE = new URL(".", location.href).href.replace(/\/$/, "");

/** A command with a button that copies it; it breaks between words alone, so that no option is torn from its dashes. */
export const command = (line) => el("div", { class: "command" },
  el("code", {}, line.split(" ").flatMap((word, place) => [place ? " " : "", el("span", {}, word)])), copyButton(line));

/** What asks a tuned model from home, where the texts stay. */
export const askAtHome = (model) => `rapt predict queries.csv --local --model ${model} --service ${SERVICE} > answers.jsonl`;

const STEPS = {
  privatize: {
    title: "Privatize at home",
    words: "Each text becomes a code, or each word another word. The texts stay on your machine; what comes out may leave.",
    lines: (codes) => (codes
      ? ["rapt privatize reviews.csv reviews.rapt.jsonl --epsilon 4", "rapt statement reviews.rapt.jsonl"]
      : ["rapt privatize reviews.csv reviews.rapt.jsonl --eta 75", "rapt statement reviews.rapt.jsonl"]),
  },
  audit: {
    title: "Attack it before you send it",
    words: "An audit says in numbers what an attacker reads from the file.",
    lines: () => ["rapt audit reviews.rapt.jsonl --original reviews.csv --quick --out audit"],
  },
  tune: {
    title: "Tune a model on it",
    words: "It uploads the file and starts a job, as the form on Files does.",
    lines: () => [`rapt tune reviews.rapt.jsonl --service ${SERVICE}`],
  },
  ask: {
    title: "Ask at home",
    words: "The tuned model comes to your machine, and your questions stay there.",
    lines: () => [askAtHome("MODEL")],
  },
};

/** Cards from one step on, for a section that has nothing yet; `bases` are the base models of the service. */
export function firstSteps(from, { bases }) {
  const names = Object.keys(STEPS);
  const codes = bases.some((base) => base.rapt.unit === "text");
  return el("section", { "aria-label": "First steps" },
    el("ol", { class: "steps", start: names.indexOf(from) + 1 }, names.slice(names.indexOf(from)).map((name) => {
      const { title, words, lines } = STEPS[name];
      return el("li", {}, el("h3", {}, `${names.indexOf(name) + 1}. ${title}`), el("p", { class: "note" }, words), lines(codes).map(command));
    })),
    el("p", { class: "note" }, "With a key of this service, say it first: ", el("code", {}, "export RAPT_API_KEY=..."), "."));
}
