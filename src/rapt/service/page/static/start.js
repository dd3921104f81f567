// Signing in and out, and which section is shown: the part of the address behind `#/`.

import { showAccount } from "./account.js";
import { showFiles } from "./files.js";
import { showJobs } from "./jobs.js";
import { showModels } from "./models.js";
import { showOperation } from "./operation.js";
import { ROUTES, ask, hasKey, useKey } from "./service.js";
import { complain, guarded, say } from "./status.js";
import { showTenants } from "./tenants.js";

const SECTIONS = {
  files: { title: "Files", show: showFiles },
  jobs: { title: "Jobs", show: showJobs },
  models: { title: "Models", show: showModels },
  account: { title: "Account", show: showAccount },
  tenants: { title: "Tenants", show: showTenants },
  operation: { title: "Operation", show: showOperation },
};
const $ = (id) => document.getElementById(id);
let signedIn = false;
let leaving = new AbortController();

async function open({ focus = true } = {}) {
  const wanted = location.hash.replace(/^#\/?/, "");
  if (!signedIn || (location.hash && !location.hash.startsWith("#/"))) return;
  const name = wanted in SECTIONS ? wanted : "files";
  leaving.abort();
  leaving = new AbortController();
  const { signal } = leaving;
  const { title, show } = SECTIONS[name];
  for (const link of $("sections").querySelectorAll("a")) {
    if (link.hash === `#/${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${title} · rapt service`;
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
  let usage;
  try {
    usage = await ask(ROUTES.usage);
  } catch (error) {
    signOut();
    if (!quiet || error.status !== 401) complain(error);
    return;
  }
  // A key does not say its role: only an admin's may list tenants.
  const isAdmin = await ask(ROUTES.tenants, { query: { limit: 1 } }).then(() => true, (error) => {
    if (error.status !== 403) throw error;
    return false;
  });
  signedIn = true;
  for (const link of document.querySelectorAll(".for-admin")) link.hidden = !isAdmin;
  $("sign-in").hidden = true;
  $("sections").hidden = false;
  $("sign-out").hidden = !hasKey();
  $("who").textContent = `Tenant ${usage.tenant}${isAdmin ? ", admin" : ""}${hasKey() ? "" : ", without a key on this machine"}`;
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
  $("who").textContent = "Tuning and prediction on privatized text";
  document.title = "rapt service";
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

ask(ROUTES.alive).then(({ version }) => { $("version").textContent = `Version ${version}.`; }, complain);
guarded(() => signIn({ quiet: true }))();
