// Signing in and out, and which section is shown: the part of the address behind `#/`.

import { hasKey, useKey } from "./connection.js";
import { complain, guarded, say } from "./status.js";

const $ = (id) => document.getElementById(id);

/** Starts a page.
 *
 * `sections` has {title, show} by the names in the address; `name` is that of the page, `about` what it says before
 * somebody is in. `enter` asks whether the key is good, and returns who is in; it throws what was answered.
 */
export function startPage({ name, about, sections, enter }) {
  const first = Object.keys(sections)[0];
  let signedIn = false;
  let leaving = new AbortController();

  async function open({ focus = true } = {}) {
    const wanted = location.hash.replace(/^#\/?/, "");
    if (!signedIn || (location.hash && !location.hash.startsWith("#/"))) return;
    const chosen = wanted in sections ? wanted : first;
    leaving.abort();
    leaving = new AbortController();
    const { signal } = leaving;
    const { title, show } = sections[chosen];
    for (const link of $("sections").querySelectorAll("a")) {
      if (link.hash === `#/${chosen}`) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    document.title = `${title} · ${name}`;
    $("title").textContent = title;
    if (focus) $("content").focus({ preventScroll: true });
    const place = document.createElement("section");
    place.setAttribute("aria-labelledby", "title");
    place.setAttribute("aria-busy", "true");
    $("section").replaceChildren(place);
    try {
      await show(place, signal);
    } catch (error) {
      if (!signal.aborted) refuse(error);
    }
    place.removeAttribute("aria-busy");
  }

  function refuse(error) {
    if (error.status === 401) signOut();
    complain(error);
  }

  async function signIn({ quiet = false } = {}) {
    let who;
    try {
      who = await enter();
    } catch (error) {
      signOut();
      if (!quiet || error.status !== 401) complain(error);
      return;
    }
    signedIn = true;
    $("sign-in").hidden = true;
    $("sections").hidden = false;
    $("sign-out").hidden = !hasKey();
    $("who").textContent = who;
    say("");
    await open({ focus: !quiet });
  }

  function signOut() {
    signedIn = false;
    useKey("");
    leaving.abort();
    $("section").replaceChildren();
    $("sections").hidden = true;
    $("sign-out").hidden = true;
    $("sign-in").hidden = false;
    $("title").textContent = "Sign in";
    $("who").textContent = about;
    document.title = name;
    $("key").focus();
  }

  $("sign-in-form").addEventListener("submit", guarded(async () => {
    const key = $("key").value.trim();
    $("key").value = "";
    useKey(key, { keep: $("keep").checked });
    await signIn();
  }));
  $("sign-out").addEventListener("click", () => { signOut(); say("Signed out. This tab has forgotten the key."); });
  addEventListener("hashchange", guarded(() => open()));
  $("sections").addEventListener("click", () => say(""));
  guarded(() => signIn({ quiet: true }))();
}
