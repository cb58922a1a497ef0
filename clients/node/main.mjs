// Shows `quotesign-client.mjs` at work against a gateway: one JSON line per step. README.md says how to run it.

import { createHash, randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

import { Gateway, KeysUnavailable, Refused, Sequence, Verifier } from "./quotesign-client.mjs";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const text = (by) => ({ type: "string", default: by });
const { values: args } = parseArgs({
  options: {
    address: text(), // host:port of the gateway's grpc listener
    ca: text(), // the CA of the gateway, PEM
    cert: text(), // our certificate, PEM
    key: text(), // its private key, PEM
    jwks: text(), // the https URL of the partner's key set
    payload: text(), // the quote to begin from, such as examples/quote.json
    environment: text("development"),
    proto: text(here("../../proto")),
    "service-config": text(here("../service-config.json")),
    steps: text("resume,sign,replay,conflict,schema,sequence,denied,expired,verify"), // burst, crowd and stream
    count: text("10"), // how many quotes a burst, a crowd or a stream has
    deadline: text("30"), // seconds for a quote or a stream, retries and all
  },
});
const missing = ["address", "ca", "cert", "key", "jwks", "payload"].filter((name) => args[name] === undefined);
if (missing.length > 0) {
  console.error(`missing: ${missing.map((name) => `--${name}`).join(" ")}`);
  process.exit(2);
}

const template = JSON.parse(readFileSync(args.payload));
const deadlineMs = Number(args.deadline) * 1000;
const gateway = new Gateway({
  address: args.address,
  ca: args.ca,
  certificate: args.cert,
  key: args.key,
  serviceConfig: readFileSync(args["service-config"], "utf8"),
  environment: args.environment,
  protoDir: args.proto,
  log: (line) => console.error(JSON.stringify(line)),
});
const sequence = new Sequence(gateway, template.partner_id);
const verifier = new Verifier(args.jwks, readFileSync(args.ca));

const tell = (step, facts) => console.log(JSON.stringify({ step, ...facts }));
const inSeconds = (seconds) => new Date(Date.now() + seconds * 1000).toISOString().replace(/\.\d+Z$/, "Z");

let sent; // the bytes of the quote made last
let kept; // those of the one signed first: a service keeps them with its quote
let signed;

/** Makes a quote of the template: a function from its number to its bytes. */
function quote(changes = {}) {
  const times = { issued_at: inSeconds(0), expires_at: inSeconds(600) };
  const claims = { ...template, quote_id: randomUUID(), ...times, ...changes };
  return (number) => (sent = Buffer.from(JSON.stringify({ ...claims, quote_sequence: number })));
}

/** Prints what a call came to. */
async function tryTo(step, call) {
  return tellAnswer(step, await call().catch(refusedAlone));
}

function refusedAlone(refused) {
  if (!(refused instanceof Refused)) throw refused;
  return refused;
}

/** Prints it, and gives the JWS where it is a signed quote. */
function tellAnswer(step, answer) {
  const { attempts, correlationId: correlation_id } = answer;
  if (answer instanceof Refused) {
    const { code, reason, action, quotas } = answer;
    const violations = answer.violations.map(({ field }) => field);
    return tell(step, { code, reason, action, attempts, correlation_id, violations, quotas });
  }
  const { jws, kid, sequence, replayed } = answer;
  const jws_sha256 = createHash("sha256").update(jws).digest("hex");
  tell(step, { sequence, kid, replayed, attempts, correlation_id, jws_sha256 });
  return jws;
}

const issue = (step, changes) => tryTo(step, () => sequence.issue(quote(changes), deadlineMs));

const quotes = () => Array.from({ length: Number(args.count) }, () => quote());

const steps = {
  resume: async () => tell("resume", { last: await sequence.resume() }),
  sign: async () => {
    signed = await issue("sign");
    kept = sent;
  },
  replay: () => tryTo("replay", () => gateway.sign(kept, deadlineMs)),
  conflict: () => {
    const other = { ...JSON.parse(kept), subscription_id: "sub_other" };
    return tryTo("conflict", () => gateway.sign(Buffer.from(JSON.stringify(other)), deadlineMs));
  },
  schema: () => issue("schema", { corridor: "gb-in", total_customer_cost: "1.00" }),
  sequence: async () => {
    const number = JSON.parse(kept).quote_sequence;
    const low = quote()(number);
    await tryTo("sequence", () => gateway.sign(low, deadlineMs));
    // One who has lost count: the first number is refused, the next one fits.
    sequence.last = number - 1;
    await issue("sequence-resumed");
  },
  denied: () => issue("denied", { corridor: "GB-KP" }),
  expired: () => issue("expired", { issued_at: inSeconds(-300), expires_at: inSeconds(-1) }),
  verify: async () => {
    const [head, payload, signature] = signed.split(".");
    const claims = Buffer.from(payload, "base64url").toString();
    const cheaper = claims.replace('"partner_fee":"1.', '"partner_fee":"0.');
    const changed = [head, Buffer.from(cheaper).toString("base64url"), signature].join(".");
    const later = new Date(Date.now() + 3600_000);
    for (const [step, jws, now] of [["verify", signed], ["verify-changed", changed], ["verify-expired", signed, later]]) {
      try {
        tell(step, { valid: true, quote_id: (await verifier.verify(jws, now)).quote_id });
      } catch (error) {
        tell(step, error instanceof KeysUnavailable ? { keys_unavailable: error.message } : { valid: false, why: error.message });
      }
    }
  },
  burst: async () => {
    for (let at = 0; at < Number(args.count); at++) await issue("burst");
  },
  crowd: async () => {
    const crowd = quotes().map((one, at) => sequence.issue(one, at === 0 ? deadlineMs : deadlineMs / 2).catch(refusedAlone));
    for (const answer of await Promise.all(crowd)) tellAnswer("crowd", answer);
  },
  stream: async () => {
    for (const answer of await sequence.issueAll(quotes(), deadlineMs)) tellAnswer("stream", answer);
  },
};

for (const step of args.steps.split(",")) await steps[step]();
gateway.close();
