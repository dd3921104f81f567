// The routes of the gateway that the page asks; `connection.js` asks them.

export { ask, hasKey } from "./connection.js";

export const ROUTES = {
  setting: "GET /own/setting",
  ledger: "GET /own/ledger",
  look: "POST /own/look",
  statement: "POST /own/statement",
  file: "POST /own/file",
  ask: "POST /own/ask",
  askAtHome: "POST /own/ask-at-home",
  models: "GET /v1/models",
};
