// Has quotes signed by a quotesign gateway, and verifies signed ones.
//
// Made to be taken over into a pricing service. `Gateway.sign` sends one quote until it is signed, refused for good, or out of
// time; `Sequence.issue` numbers quotes and has them signed, `Sequence.issueAll` many at once over a stream; `Verifier` checks a
// JWS as the operator would. It needs @grpc/grpc-js, @grpc/proto-loader, protobufjs, jose and the files of proto/. What each refusal asks for is in docs/clients.md.

import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { readFileSync, statSync } from "node:fs";
import https from "node:https";
import { setTimeout as sleep } from "node:timers/promises";

import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";
import { compactVerify } from "jose";
import protobuf from "protobufjs";

const DOMAIN = "quotesign.v1";

const reasons = (text) => new Set(text.split(" "));

// What each reason asks for.
const ACTIONS = {
  // The same bytes may be sent again.
  retry: reasons(
    "RATE_LIMITED OVERLOADED SIGNER_UNAVAILABLE LEDGER_UNAVAILABLE CLOCK_UNTRUSTED AUDIT_LAG SIGNING_HALTED" +
      " STREAM_ENDED DEADLINE_EXCEEDED INTERNAL",
  ),
  // Ask where the sequence stands and give the quote another number.
  renumber: reasons("SEQUENCE_NOT_MONOTONIC"),
  // Price again: a new quote with a new id and number.
  reissue: reasons("QUOTE_EXPIRED KEY_REVOKED"),
  // A mistake in this service.
  mend: reasons("INVALID_REQUEST MALFORMED_JSON SCHEMA_VIOLATION QUOTE_CONFLICT"),
  // Nothing that a program can do about it.
  ask: reasons(
    "CALLER_UNIDENTIFIED CALLER_SUSPENDED POLICY_DENIED NO_ACTIVE_KEY SEQUENCE_SCOPE_UNKNOWN SIGNATURE_MISMATCH" +
      " ENVIRONMENT_MISMATCH NOT_FOUND",
  ),
};

// Without a reason nobody knows whether the gateway got the quote; that is no answer, and the same bytes are sent again.
const NO_ANSWER = new Set([
  grpc.status.UNAVAILABLE,
  grpc.status.DEADLINE_EXCEEDED,
  grpc.status.CANCELLED,
  grpc.status.INTERNAL,
  grpc.status.UNKNOWN,
]);

const ATTEMPTS_MAX = 8;
const ATTEMPT_MS = 5000;
// No stream is kept longer: one that stands still must not hold up the rest for ever.
const STREAM_MS = 15_000;
const RETRY_AFTER_MAX_MS = 86_400_000;
const BACKOFF_MS = 200;
const BACKOFF_MAX_MS = 5000;
const RENUMBERED_MAX = 3;
const DEADLINE_MS = 30_000;
// A timer of more than this would end at once.
const TIMER_MS_MAX = 2 ** 31 - 1;

// How long a key set is kept, how long after a fetch it is not fetched again, and how long a fetch and how large a set may be.
const KEYS_MS = 300_000;
const KEYS_AGAIN_MS = 10_000;
const KEYS_FETCH_MS = 5000;
const KEYS_LENGTH_MAX = 1 << 20;

// Those messages of google.rpc that a refusal carries.
const google = protobuf.parse(
  `syntax = "proto3";
  package google.rpc;
  message Any { string type_url = 1; bytes value = 2; }
  message Duration { int64 seconds = 1; int32 nanos = 2; }
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message ErrorInfo { string reason = 1; string domain = 2; map<string, string> metadata = 3; }
  message RetryInfo { Duration retry_delay = 1; }
  message BadRequest {
    message FieldViolation { string field = 1; string description = 2; }
    repeated FieldViolation field_violations = 1;
  }
  message QuotaFailure {
    message Violation { string subject = 1; string description = 2; }
    repeated Violation violations = 1;
  }`,
  { keepCase: true },
).root;

/** The quote was not signed. `action` is one of retry, renumber, reissue, mend, ask; `retry` means that time ran out. */
export class Refused extends Error {
  constructor(code, message, details = []) {
    super(message);
    this.name = "Refused";
    this.code = grpc.status[code] ?? "UNKNOWN";
    this.reason = "";
    this.retryAfterMs = null;
    this.violations = [];
    this.quotas = [];
    this.metadata = {};
    for (const [type, detail] of known(details)) {
      if (type === "ErrorInfo" && detail.domain === DOMAIN) {
        this.reason = detail.reason;
        this.metadata = detail.metadata;
      } else if (type === "RetryInfo") {
        const told = Number(detail.retry_delay?.seconds ?? 0) * 1000 + (detail.retry_delay?.nanos ?? 0) / 1e6;
        this.retryAfterMs = Math.min(Math.max(told, 0), RETRY_AFTER_MAX_MS);
      } else if (type === "BadRequest") {
        this.violations = detail.field_violations.map(({ field, description }) => ({ field, description }));
      } else if (type === "QuotaFailure") {
        this.quotas = detail.violations.map(({ subject }) => subject);
      }
    }
    // The reason is what counts, the code only where there is none.
    this.action = actionOf(this, code);
  }
}

/** What an error of gRPC says. */
function refusal(error) {
  const [status] = error.metadata?.get("grpc-status-details-bin") ?? [];
  const { details } = (status && decoded("google.rpc.Status", status)) ?? { details: [] };
  return new Refused(error.code, error.details, details);
}

function* known(details) {
  for (const { type_url, value } of details) {
    const name = type_url.slice(type_url.lastIndexOf("/") + 1);
    if (/^google\.rpc\.(ErrorInfo|RetryInfo|BadRequest|QuotaFailure)$/.test(name)) {
      const detail = decoded(name, value);
      if (detail) yield [name.slice("google.rpc.".length), detail];
    }
  }
}

/** The message, or nothing: what cannot be read says nothing. */
function decoded(name, bytes) {
  try {
    return google.lookupType(name).decode(bytes);
  } catch {
    return null;
  }
}

function actionOf({ reason, retryAfterMs }, code) {
  for (const [action, reasons] of Object.entries(ACTIONS)) {
    if (reasons.has(reason)) return action;
  }
  if (reason === "") return NO_ANSWER.has(code) ? "retry" : "ask";
  // A reason of a later gateway: RetryInfo says that the same quote may be sent again.
  return retryAfterMs === null ? "ask" : "retry";
}

/** A connection to a gateway over mutual TLS. */
export class Gateway {
  #client;
  #connect;
  #files;
  #read;
  #log;

  /** `ca`, `certificate` and `key` are PEM files, `serviceConfig` is the text of clients/service-config.json. */
  constructor({ address, ca, certificate, key, serviceConfig, environment, protoDir, log = () => {} }) {
    const definition = protoLoader.loadSync("quotesign/v1/quote_signing.proto", { includeDirs: [protoDir], longs: Number, defaults: true });
    const { QuoteSigningService } = grpc.loadPackageDefinition(definition).quotesign.v1;
    const options = {
      "grpc.service_config": serviceConfig,
      "grpc.enable_retries": 1,
      // A gateway that was restarted is found again soon, and a connection that died is noticed while a quote has time left.
      "grpc.initial_reconnect_backoff_ms": 200,
      "grpc.max_reconnect_backoff_ms": 5000,
      "grpc.keepalive_time_ms": 10_000,
      "grpc.keepalive_timeout_ms": 5000,
    };
    const authority = readFileSync(ca);
    this.#connect = (certificate, key) =>
      new QuoteSigningService(address, grpc.credentials.createSsl(authority, key, certificate), options);
    this.#files = [certificate, key];
    this.#connected();
    this.environment = environment;
    this.#log = log;
  }

  /** Makes calls with the certificate that is on disk now: a client keeps the one it began with, so another takes its place. */
  #connected() {
    try {
      const written = this.#files.map((file) => statSync(file).mtimeMs).join();
      if (written !== this.#read) {
        const client = this.#connect(...this.#files.map((file) => readFileSync(file)));
        // The one before ends with its last call.
        this.#client?.close();
        [this.#client, this.#read] = [client, written];
      }
    } catch (fault) {
      // They are being exchanged at this moment: the next call finds them.
      if (!this.#client) throw fault;
    }
    return this.#client;
  }

  close() {
    this.#client.close();
  }

  /** Has these bytes signed. Whatever happens, no others are sent, so that the answer is always the same JWS. */
  async sign(payload, deadlineMs = DEADLINE_MS) {
    const { environment } = this;
    return this.#call("SignQuote", { environment, payload }, timeLeft(payload, deadlineMs));
  }

  /** The last number taken in a sequence. */
  async lastNumber(partner, corridor = "", deadlineMs = DEADLINE_MS) {
    return (await this.#call("GetSequence", { partner, corridor }, deadlineMs)).last;
  }

  /** Makes a call until it is answered, refused for good, out of attempts or out of time. */
  async #call(method, request, deadlineMs) {
    const end = performance.now() + deadlineMs;
    const correlationId = randomUUID();
    for (let attempt = 1; ; attempt++) {
      // What has expired is sent once all the same, for the gateway to say so.
      const left = Math.max(end - performance.now(), attempt === 1 ? 1000 : 0);
      try {
        const answer = await this.#once(method, request, Math.min(left, ATTEMPT_MS), correlationId);
        this.#log({ correlation_id: correlationId, attempt, code: "OK" });
        return { ...answer, attempts: attempt, correlationId };
      } catch (error) {
        if (error.code === undefined) throw error; // not of gRPC: a mistake here
        const refused = refusal(error);
        const wait = pause(attempt, refused.retryAfterMs);
        const again = refused.action === "retry" && attempt < ATTEMPTS_MAX && performance.now() + wait < end;
        const wait_s = again ? wait / 1000 : null;
        this.#log({ correlation_id: correlationId, attempt, ...said(refused), action: refused.action, wait_s });
        if (!again) throw Object.assign(refused, { attempts: attempt, correlationId });
        await sleep(wait);
      }
    }
  }

  /**
   * Sends these bytes, a map from their tags, in their order over one stream. Gives what came back under each tag, a signed quote
   * or `Refused`, and how the stream ended where not well: what has no answer then may be signed or not.
   */
  signOverStream(payloads, deadlineMs, correlationId) {
    const { environment } = this;
    const answers = new Map();
    return new Promise((resolve, reject) => {
      const deadline = Date.now() + Math.min(deadlineMs, STREAM_MS);
      const stream = this.#connected().SignQuotes(metadataOf(correlationId), { deadline });
      stream.on("data", ({ tag, signed, refused }) => {
        // What it did not ask for, or cannot read, is no answer; and none takes a signed quote away.
        const before = answers.get(tag);
        if (!payloads.has(tag) || !(signed || refused) || (before && !(before instanceof Refused))) return;
        answers.set(tag, signed ?? new Refused(refused.code, refused.message, refused.details));
      });
      stream.on("end", () => resolve({ answers, ended: null }));
      stream.on("error", (error) => (error.code === undefined ? reject(error) : resolve({ answers, ended: refusal(error) })));
      for (const [tag, payload] of payloads) stream.write({ tag, quote: { environment, payload } });
      stream.end();
    });
  }

  /** Writes a line of the log. */
  noted(line) {
    this.#log(line);
  }

  #once(method, request, deadlineMs, correlationId) {
    return new Promise((resolve, reject) => {
      const options = { deadline: Date.now() + deadlineMs };
      const done = (error, answer) => (error ? reject(error) : resolve(answer));
      this.#connected()[method](request, metadataOf(correlationId), options, done);
    });
  }
}

/** The metadata of a call, which waits for a connection: this library does not take waitForReady from the service config. */
function metadataOf(correlationId) {
  const metadata = new grpc.Metadata({ waitForReady: true });
  metadata.set("x-correlation-id", correlationId);
  return metadata;
}

/** What the log tells of it; without a reason, the message alone says why, such as that no connection came about. */
function said(refused) {
  if (!refused) return { code: "OK" };
  const { code, reason, message } = refused;
  return reason === "" ? { code, reason, message } : { code, reason };
}

/** As RetryInfo says and a little more, so that not all come back at once; else backing off with full jitter. */
function pause(attempt, retryAfterMs) {
  if (retryAfterMs !== null) return retryAfterMs * (1 + Math.random() * 0.2);
  return Math.random() * Math.min(BACKOFF_MAX_MS, BACKOFF_MS * 2 ** attempt);
}

/** The deadline, or the time until the quote expires where that is shorter: then it is of no use to anybody. */
function timeLeft(payload, deadlineMs) {
  try {
    const left = Date.parse(JSON.parse(payload).expires_at) - Date.now();
    return Number.isNaN(left) ? deadlineMs : Math.min(deadlineMs, left);
  } catch {
    return deadlineMs; // the gateway says what is wrong with it
  }
}

/** The time that is left, before a number is taken. */
function timeTo(end) {
  const left = end - performance.now();
  if (left > 0) return left;
  throw late();
}

function late() {
  const refused = new Refused(grpc.status.DEADLINE_EXCEEDED, "the time was over before it was sent");
  return Object.assign(refused, { attempts: 0, correlationId: "" });
}

/** The numbers of one sequence, handed out in one place and sent in their order. */
export class Sequence {
  #gateway;
  #partner;
  #corridor;
  #turn = Promise.resolve();

  constructor(gateway, partner, corridor = "") {
    this.#gateway = gateway;
    this.#partner = partner;
    this.#corridor = corridor;
    this.last = null;
  }

  /** Takes up the sequence where the gateway says that it stands: at the start, and when a number did not fit. */
  async resume(deadlineMs = DEADLINE_MS) {
    this.last = await this.#gateway.lastNumber(this.#partner, this.#corridor, deadlineMs);
    return this.last;
  }

  /** Has the bytes signed that `quote(number)` makes, after those asked for before. */
  issue(quote, deadlineMs = DEADLINE_MS) {
    const end = performance.now() + deadlineMs;
    return this.#inTurn(end, () => this.#issue(quote, end));
  }

  /** Has many quotes signed over one stream, side by side: for each, in this order, what `issue` would come to, `Refused` and all.
   * A quote is made again where its number did not fit: keep the bytes that `quote(number)` made last. */
  async issueAll(quotes, deadlineMs = DEADLINE_MS) {
    const end = performance.now() + deadlineMs;
    try {
      return await this.#inTurn(end, () => new Batch(this.#gateway, this, quotes, end).issue());
    } catch (refused) {
      if (!(refused instanceof Refused)) throw refused;
      return quotes.map(() => refused);
    }
  }

  /** One after the other; none waits for its turn longer than it has time. */
  #inTurn(end, act) {
    return new Promise((resolve, reject) => {
      let waits = true;
      const timer = setTimeout(() => {
        waits = false;
        reject(late());
      }, Math.min(end - performance.now(), TIMER_MS_MAX));
      this.#turn = this.#turn.then(() => {
        clearTimeout(timer);
        // What it throws is its caller's: those who come after have their turns.
        if (waits) return Promise.resolve().then(act).then(resolve, reject);
      });
    });
  }

  /** A number that did not fit bound nothing, so the quote gets another. */
  async #issue(quote, end) {
    for (let renumbered = 0; ; renumbered++) {
      const left = timeTo(end);
      if (this.last === null) await this.resume(left);
      this.last += 1;
      try {
        return await this.#gateway.sign(quote(this.last), end - performance.now());
      } catch (refused) {
        if (refused.action !== "renumber" || renumbered === RENUMBERED_MAX) throw refused;
        this.last = null;
      }
    }
  }
}

/** Quotes that go over one stream after the other until each is signed or refused for good. */
class Batch {
  #gateway;
  #sequence;
  #end;
  #correlationId = randomUUID();
  #quotes;
  #open;

  constructor(gateway, sequence, quotes, end) {
    this.#gateway = gateway;
    this.#sequence = sequence;
    this.#end = end;
    // Once its bytes were sent they stay, unless the number did not fit.
    this.#quotes = quotes.map((of, at) => ({ at, of, number: null, payload: null, attempts: 0, renumbered: 0, answer: null }));
    this.#open = [...this.#quotes];
  }

  async issue() {
    let inVain = 0;
    for (let attempt = 1; ; attempt++) {
      await this.#number();
      if (this.#open.length === 0) return this.#quotes.map(({ answer }) => answer);
      for (const quote of this.#open) quote.attempts++;
      const sent = this.#open.length;
      const left = Math.max(this.#end - performance.now(), 1000);
      const payloads = new Map(this.#open.map(({ at, payload }) => [at, payload]));
      const { answers, ended } = await this.#gateway.signOverStream(payloads, left, this.#correlationId);
      const again = this.#take(answers, ended);
      // Where the gateway says when to come again, the deadline alone bounds it.
      const told = again.some(({ refused }) => refused.retryAfterMs !== null);
      inVain = told || again.length < sent ? 0 : inVain + 1;
      const wait = this.#wait(again, inVain);
      this.#open = this.#open.filter(({ answer }) => answer === null);
      const line = { correlation_id: this.#correlationId, attempt, ...said(ended) };
      this.#gateway.noted({ ...line, sent, open: this.#open.length, wait_s: wait / 1000 });
      await sleep(wait);
    }
  }

  /** How long those wait that are sent again. Whose own wait is too long is given up, and no other with it. */
  #wait(again, inVain) {
    const left = this.#end - performance.now();
    const fits = ({ refused }) => inVain < ATTEMPTS_MAX && (refused.retryAfterMs ?? 0) < left;
    const stay = again.filter(fits);
    for (const one of again) if (!fits(one)) this.#close(one.quote, one.refused);
    if (stay.length === 0) return 0;
    const told = stay.map(({ refused }) => refused.retryAfterMs).filter((wait) => wait !== null);
    const wait = pause(inVain + 1, told.length > 0 ? Math.max(...told) : null);
    if (wait < left) return wait;
    for (const { quote, refused } of stay) this.#close(quote, refused);
    return 0;
  }

  /** Numbers what has no number: what has one goes first, as it was. */
  async #number() {
    const kept = this.#open.filter(({ payload }) => payload !== null).sort((one, other) => one.number - other.number);
    const fresh = this.#open.filter(({ payload }) => payload === null).sort((one, other) => one.at - other.at);
    let unknown = null;
    for (const quote of fresh) {
      try {
        if (unknown) throw unknown;
        const left = timeTo(this.#end);
        if (this.#sequence.last === null) {
          await this.#sequence.resume(left);
          this.#sequence.last = kept.reduce((most, { number }) => Math.max(most, number), this.#sequence.last);
        }
        const number = this.#sequence.last + 1;
        [quote.payload, quote.number] = [quote.of(number), number];
        this.#sequence.last = number;
      } catch (fault) {
        // Nobody says where the sequence stands, or the time is over, or this one cannot be made.
        if (fault instanceof Refused) unknown = fault;
        const said = `the quote could not be made: ${fault.message}`;
        const own = Object.assign(new Refused(grpc.status.INVALID_ARGUMENT, said), { action: "mend" });
        this.#close(quote, unknown ?? own);
      }
    }
    this.#open = [...kept, ...fresh].filter(({ answer }) => answer === null);
  }

  /** Takes the answers in. Those quotes that are to be sent again as they were, each with what was said of it. */
  #take(answers, ended) {
    const again = [];
    for (const quote of this.#open) {
      const answer = answers.get(quote.at);
      if (answer && !(answer instanceof Refused)) {
        this.#close(quote, answer);
        continue;
      }
      const refused = answer ?? ended ?? new Refused(grpc.status.UNKNOWN, "the stream ended without an answer");
      // What is said of one quote alone is not said of this one, which may be signed.
      const isOpen = !answer && ["renumber", "reissue"].includes(refused.action);
      if (isOpen || refused.action === "retry") {
        again.push({ quote, refused });
      } else if (refused.action === "renumber" && quote.renumbered < RENUMBERED_MAX) {
        quote.renumbered++;
        quote.payload = null;
        this.#sequence.last = null;
      } else {
        this.#close(quote, refused);
        if (!answer && refused.action === "mend") {
          // A message that the gateway could not take: that is the first one without an answer.
          ended = new Refused(grpc.status.UNKNOWN, "the stream ended with another's fault");
        }
      }
    }
    this.#open = this.#open.filter(({ answer }) => answer === null);
    return again;
  }

  #close(quote, answer) {
    const own = { attempts: quote.attempts, correlationId: `${this.#correlationId}.${quote.at}` };
    // What ended the stream is said to several: each has its own.
    const { message, stack } = answer;
    const mine = answer instanceof Refused ? Object.assign(Object.create(Refused.prototype), answer, { message, stack }) : answer;
    quote.answer = Object.assign(mine, own);
  }
}

/** The key set is not at hand, so nobody knows whether the JWS is a valid quote: try again. */
export class KeysUnavailable extends Error {}

/** Checks signed quotes with the partner's published keys, as whoever receives them does. */
export class Verifier {
  #url;
  #agent;
  #keys = new Map();
  #came = -Infinity;
  #asked = -Infinity;
  #fetch;

  constructor(jwksUrl, ca) {
    this.#url = new URL(jwksUrl);
    this.#agent = new https.Agent({ ca });
  }

  /** The claims, where the signature is RS256 of the key that the header's kid names and the quote has not expired; else it throws. */
  async verify(jws, now = new Date()) {
    // The algorithm is ours to say, never the header's.
    const { payload } = await compactVerify(jws, ({ kid }) => this.#key(kid), { algorithms: ["RS256"] });
    const claims = JSON.parse(new TextDecoder().decode(payload));
    if (!(Date.parse(claims.expires_at) > now.getTime())) throw new Error("the quote has expired");
    return claims;
  }

  /** Looks the kid up. The set is kept for a while, and fetched again where a kid is not in it, for keys are exchanged. */
  async #key(kid) {
    if (!kid) throw new Error("the header names no kid");
    const known = () => (performance.now() - this.#came < KEYS_MS ? this.#keys.get(kid) : undefined);
    if (known()) return known();
    const begun = performance.now();
    // Not for every made-up kid, though, nor at once where it failed. All who ask meanwhile wait for the same fetch.
    if (performance.now() - this.#asked > KEYS_AGAIN_MS) {
      this.#asked = performance.now();
      this.#fetch = this.#fetched();
    }
    const fault = await this.#fetch;
    if (known()) return known();
    if (fault) throw new KeysUnavailable(fault.message, { cause: fault });
    if (this.#asked < begun) throw new KeysUnavailable(`a moment ago the key set had no key \`${kid}\``);
    throw new Error(`the key set has no key \`${kid}\``);
  }

  /** Takes the set in; what was in the way where it could not. */
  async #fetched() {
    const begun = performance.now();
    const request = https.get(this.#url, { agent: this.#agent, signal: AbortSignal.timeout(KEYS_FETCH_MS) });
    request.on("error", () => {}); // it is told below, also once the answer has begun
    try {
      const [answer] = await once(request, "response");
      if (answer.statusCode !== 200) throw new Error(`the key set's answer is ${answer.statusCode}`);
      let text = "";
      for await (const part of answer.setEncoding("utf8")) {
        text += part;
        if (text.length > KEYS_LENGTH_MAX) throw new Error("the key set is too large");
      }
      this.#keys = new Map(JSON.parse(text).keys.map((key) => [key.kid, key]));
      this.#came = begun;
      return null;
    } catch (fault) {
      return fault;
    } finally {
      request.destroy();
    }
  }
}
