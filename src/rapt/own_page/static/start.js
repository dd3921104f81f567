// The sections of the page on the user's machine.

import { showAsk } from "./ask.js";
import { showFile } from "./file.js";
import { ROUTES, ask } from "./gateway.js";
import { showLedger } from "./ledger.js";
import { showText } from "./look.js";
import { named } from "./measured.js";
import { startPage } from "./sections.js";

let setting = null;
const withSetting = (show) => (place, signal) => show(place, setting, signal);

const SECTIONS = {
  text: { title: "What would leave of a text", show: withSetting(showText) },
  file: { title: "A privatized file", show: withSetting(showFile) },
  ask: { title: "Ask a model", show: withSetting(showAsk) },
  ledger: { title: "What was spent, and what is left", show: withSetting(showLedger) },
};

async function enter() {
  setting = await ask(ROUTES.setting);
  const what = setting.unit === "text" ? "Whole texts as codes" : "Each token by itself";
  return `${what}: ${setting.mechanism} at ${named(setting.unit, setting.strength)}, on ${setting.model}${setting.policy ? `; ${setting.policy}` : ""}`;
}

startPage({
  name: "rapt on this machine", about: "What would leave, what did, and what can be read of it", sections: SECTIONS, enter,
});
