// Queries: privatized ids and the manifest that counts them, in the exact form that the service checks.

const KNOWN = ["rapt.privatized/1", "rapt.privatized/2"];
const CODES = "rapt.codes/1"; // codes of whole texts

/** What a query file holds: {manifest, records}, from JSON or from the lines of a privatized file. */
export function readQuery(text) {
  let query = null;
  try {
    const whole = JSON.parse(text);
    query = whole.schema ? { manifest: whole, records: [] } : { manifest: whole.manifest, records: whole.records };
  } catch {
    try {
      const [manifest, ...records] = text.split("\n").filter((line) => line.trim()).map((line) => JSON.parse(line));
      query = { manifest, records };
    } catch { /* it is said below */ }
  }
  if (![...KNOWN, CODES].includes(query?.manifest?.schema) || !Array.isArray(query.records) || !query.records.length) {
    throw new Error("this is no privatized query, so nothing was sent; make one with `rapt privatize --no-label`");
  }
  return query;
}

/** Texts of ids, one a line. Words are refused here: they would be no privatized text. */
export function readIds(text) {
  const texts = text.split("\n").map((line) => line.trim()).filter(Boolean);
  if (!texts.length) throw new Error("there must be at least one text of token ids");
  return texts.map((line, place) => {
    if (!/^[[\]\d\s,]+$/.test(line)) throw new Error(`line ${place + 1} must hold whole numbers only, so nothing was sent; words are not privatized`);
    return { token_ids: line.match(/\d+/g).map(Number) };
  });
}

/** The manifest of ids that stand by themselves: no labels, no plain tokens. */
export function manifestFor({ model, vocabularyHash, mechanism }) {
  const whole = mechanism.parameters.epsilon == null ? { schema: KNOWN[0] } : { schema: CODES, unit: "text", pairs: false, targets: null };
  return {
    ...whole, model, vocabulary_hash: vocabularyHash, mechanism,
    randomness: { source: "stated on the service's page", insecure_seed: null },
    plain_tokens: { count: 0, pool: [], fixed: null }, labels: null, label_privacy: null,
    records: 0, tokens: 0, records_sha256: "", created_by: "rapt service page",
  };
}

/** The query that is sent: without labels and targets, which no prediction needs, counted and digested anew. */
export async function seal({ manifest, records }) {
  const own = records.map(withoutAnswer);
  const { pairs, targets, ...rest } = manifest;
  const schema = rest.schema === CODES ? CODES : KNOWN[pairs ? 1 : 0];
  const sent = { ...rest, labels: null, label_privacy: null, schema };
  if (schema !== KNOWN[0]) Object.assign(sent, { pairs: Boolean(pairs), targets: null });
  sent.records = own.length;
  sent.tokens = own.reduce((sum, record) => sum + record.token_ids.length + (record.second_token_ids?.length ?? 0), 0);
  sent.records_sha256 = await digest(own.map((record) => `${JSON.stringify(record)}\n`).join(""));
  return { manifest: sent, records: own };
}

function withoutAnswer(record) {
  // The digest is over the fields in this order.
  const kept = { token_ids: record.token_ids };
  if (record.privatized_plain_tokens?.length) kept.privatized_plain_tokens = record.privatized_plain_tokens;
  if (record.plain_tokens) kept.plain_tokens = record.plain_tokens;
  if (record.second_token_ids) kept.second_token_ids = record.second_token_ids;
  return kept;
}

async function digest(text) {
  if (!crypto.subtle) throw new Error("browsers take digests over HTTPS or on localhost only; open the page there");
  const sum = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(text));
  return Array.from(new Uint8Array(sum), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
