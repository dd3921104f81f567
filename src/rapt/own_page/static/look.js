// A text, what could leave in its place at a strength, and what an attacker gets. Nothing here is sent on.

import { bar, count, el, field, percent } from "./elements.js";
import { ROUTES, ask } from "./gateway.js";
import { atMost, measured, named, of100, statement } from "./measured.js";
import { guarded } from "./status.js";

const SETTLED = 300; // ms after the last move of the slider
const STEPS = 200;

/** The section of a text. */
export function showText(place, setting, signal) {
  const isCode = setting.unit === "text";
  const letter = isCode ? "ε" : "η";
  const text = el("textarea", { maxlength: 2000, autocomplete: "off", spellcheck: "false", required: true });
  const exact = el("input", { type: "number", step: "any", min: 0, value: setting.strength, "aria-label": `${letter}, exactly` });
  const slide = el("input", { id: "slide", type: "range", min: 0, max: STEPS, step: 1, disabled: setting.lowest === setting.highest });
  const seen = el("div", { class: "seen" });
  const figures = el("div", {});
  const stated = el("div", {});
  let looking = false;
  let again = false;
  let settled = null;
  let chosen = 0;

  const strength = () => Number(exact.value);
  const ratio = Math.log(setting.highest / setting.lowest) || 1;
  const atSlide = () => Number((setting.lowest * Math.exp(ratio * slide.value / STEPS)).toPrecision(3));
  function follow() {
    slide.value = Math.round(STEPS * Math.log(strength() / setting.lowest) / ratio);
    slide.setAttribute("aria-valuetext", named(setting.unit, strength()));
  }

  /** One look at a time: what moves meanwhile is looked at after it, in its last place. */
  async function look() {
    again = true;
    if (looking) return;
    looking = true;
    try {
      while (again) {
        again = false;
        await lookOnce(strength());
      }
    } finally {
      looking = false;
      seen.removeAttribute("aria-busy");
    }
  }

  async function lookOnce(at) {
    if (!(at > 0)) throw new Error(`${letter} must be above 0`);
    figures.replaceChildren(measured(setting, at));
    if (text.value.trim()) {
      seen.setAttribute("aria-busy", "true");
      const found = await ask(ROUTES.look, { body: { text: text.value, strength: at }, signal });
      seen.replaceChildren(...(isCode ? codeLook(found, setting) : tokenLook(found, setting, chosen, (place) => { chosen = place; })));
      if (again) return;
      seen.removeAttribute("aria-busy");
    }
    const found = await ask(ROUTES.statement, { body: { strength: at }, signal });
    const bounds = !isCode || !seen.hasChildNodes(); // a look at a code has them already
    stated.replaceChildren(el("h2", {}, `What ${named(setting.unit, at)} promises`), statement(found, { bounds }));
  }

  function later() {
    clearTimeout(settled);
    settled = setTimeout(guarded(look), SETTLED);
  }
  signal.addEventListener("abort", () => clearTimeout(settled));
  slide.addEventListener("input", () => { exact.value = atSlide(); follow(); later(); });
  exact.addEventListener("input", () => { if (strength() > 0) { follow(); later(); } });
  const back = el("button", { type: "button", onclick: guarded(async () => { exact.value = setting.strength; follow(); await look(); }) },
    `Back to ${named(setting.unit, setting.strength)}`);

  follow();
  place.append(
    el("form", { class: "panel", onsubmit: guarded(async () => { chosen = 0; await look(); }) },
      field("Your text", text, "It goes to the gateway on this machine and no further."),
      el("div", {},
        el("label", { for: "slide" }, `${letter} of ${isCode ? "the whole text" : "each token"}: smaller is more private`),
        el("div", { class: "strength" }, slide, exact)),
      el("div", { class: "buttons" }, el("button", { type: "submit", class: "primary" }, "Show what would leave"), back)),
    seen,
    el("h2", {}, "What was measured"), figures, stated);
  text.focus();
  // What needs no text is there at once.
  return look();
}

function tokenLook(found, setting, chosen, choose) {
  const detail = el("div", { class: "detail", "aria-live": "polite" });
  const chips = found.tokens.map((token, at) => el("button", {
    type: "button", class: `token ${token.kept.severity}`, "aria-pressed": "false",
    "aria-label": `${token.token}, stays in ${percent(token.kept.value)} of draws`,
    onclick: () => { choose(at); pick(at); },
  }, el("span", {}, token.token), el("small", {}, `${Math.round(100 * token.kept.value)}`)));
  function pick(at) {
    chips.forEach((chip, place) => chip.setAttribute("aria-pressed", String(place === at)));
    const { token, kept, others } = found.tokens[at];
    const rest = 1 - kept.value - others.reduce((sum, [, share]) => sum + share, 0);
    detail.replaceChildren(
      el("h3", {}, "What leaves for ", el("em", {}, token)),
      el("div", { class: "bars" },
        bar({ name: [`stays ${token}`, el("small", {}, `${percent(kept.low)} to ${percent(kept.high)}`)], value: percent(kept.value), share: kept.value, tone: kept.severity }),
        others.map(([other, share]) => bar({ name: other, value: percent(share), share, other: true })),
        rest > 1e-9 ? bar({ name: "another token", value: percent(rest), share: rest, other: true }) : ""));
  }
  const left = found.left_out ? ` The first ${found.tokens.length} of ${found.tokens.length + found.left_out} tokens are shown.` : "";
  pick(Math.min(chosen, chips.length - 1));
  const example = found.example.flatMap((token, at) => {
    const stayed = token === found.tokens[at].token;
    return [el("span", { class: stayed ? "stayed" : "changed" }, token, stayed ? "" : el("span", { class: "unseen" }, " (changed)")), " "];
  });
  return [
    el("div", { class: `statement ${found.own.severity}` },
      el("p", { class: "grade" }, setting.severities[found.own.severity]),
      el("p", { class: "headline" }, `At ${named("token", found.eta)}, ${of100(found.own.value)} tokens of this text stay as they are.`),
      el("p", {}, `Whoever sees them reads those without any attack, and more with one. Of running public text ${of100(found.running.value)} stay.`)),
    el("div", { class: "example" },
      el("p", { class: "badge" }, "Example, not sent"),
      el("p", { class: "drawn" }, example),
      el("p", { class: "note" }, "One draw for your eyes. It is thrown away and not counted; what is released is drawn anew, once.")),
    el("h3", {}, "Each token, and in how many of 100 draws it stays"),
    el("div", { class: "tokens" }, chips),
    el("p", { class: "note" }, `Counted in ${count(found.draws)} draws of the mechanism itself.${left} Choose a token to see what could stand in its place.`),
    detail,
  ];
}

function codeLook(found, setting) {
  const thousand = found.guesses.find(({ among }) => among === 1000);
  const words = found.example.map((id) => `codeword ${count(id)}`).join(", ");
  const ranks = found.ranks.map((rank) => count(rank)).join(", ");
  return [
    el("div", { class: `statement ${found.severity}` },
      el("p", { class: "grade" }, setting.severities[found.severity]),
      el("p", { class: "headline" }, `At ${named("text", found.epsilon)}, nobody picks this text among 1,000 more often than ${atMost(thousand.right)}.`),
      el("p", {}, `The text leaves as ${found.example.length === 1 ? "one number" : `${found.example.length} numbers`} below ${count(found.codewords)}. Its words, their order and their number do not leave.`)),
    el("div", { class: "example" },
      el("p", { class: "badge" }, "Example, not sent"),
      el("p", { class: "drawn" }, words),
      el("p", { class: "note" }, `By nearness to the text's own code it is number ${ranks} of ${count(found.codewords)}. One draw for your eyes; it is thrown away and not counted.`)),
    el("h3", {}, "What an attacker reads from the code"),
    el("p", {}, `That the code of the text may be near this codeword: the ${count(found.preferred)} nearest codewords leave ${found.odds < 1000 ? found.odds.toFixed(1) : found.odds.toExponential(1)} times as often as each other one, which makes ${percent(found.near)} of all draws. What leaves and the text's code agree by ${found.likeness.toFixed(2)} on average, where 1 is the same and 0 says nothing.`),
    el("div", { class: "bars" }, found.guesses.map(({ among, blind, right, severity }) =>
      bar({ name: [`picks the text among ${count(among)}, at most`, el("small", {}, `blindly 1 in ${count(among)}; holds for every attack`)],
        value: atMost(right), share: right, tone: severity }))),
  ];
}
