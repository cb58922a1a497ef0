"""Has quotes signed by a quotesign gateway, and verifies signed ones.

Made to be taken over into a pricing service. `Gateway.sign` sends one quote until it is signed, refused for good, or out of
time; `Sequence.issue` numbers quotes and has them signed, `Sequence.issue_all` many at once over a stream; `Verifier` checks a
JWS as the operator would. It needs grpcio, grpcio-status, PyJWT and what protoc makes of proto/quotesign/v1. What each refusal asks for is in docs/clients.md.
"""

import json
import logging
import math
import os
import random
import ssl
import threading
import time
import urllib.request
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

import grpc
import jwt
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from quotesign.v1 import quote_signing_pb2 as pb
from quotesign.v1 import quote_signing_pb2_grpc as rpc

log = logging.getLogger("quotesign")

DOMAIN = "quotesign.v1"

# The same bytes may be sent again.
RETRY = frozenset(
    "RATE_LIMITED OVERLOADED SIGNER_UNAVAILABLE LEDGER_UNAVAILABLE CLOCK_UNTRUSTED AUDIT_LAG SIGNING_HALTED"
    " STREAM_ENDED DEADLINE_EXCEEDED INTERNAL".split()
)
# Ask where the sequence stands and give the quote another number.
RENUMBER = frozenset(["SEQUENCE_NOT_MONOTONIC"])
# Price again: a new quote with a new id and number.
REISSUE = frozenset(["QUOTE_EXPIRED", "KEY_REVOKED"])
# A mistake in this service.
MEND = frozenset(["INVALID_REQUEST", "MALFORMED_JSON", "SCHEMA_VIOLATION", "QUOTE_CONFLICT"])
# Nothing that a program can do about it.
ASK = frozenset(
    "CALLER_UNIDENTIFIED CALLER_SUSPENDED POLICY_DENIED NO_ACTIVE_KEY SEQUENCE_SCOPE_UNKNOWN SIGNATURE_MISMATCH"
    " ENVIRONMENT_MISMATCH NOT_FOUND".split()
)
# Without a reason nobody knows whether the gateway got the quote; that is no answer, and the same bytes are sent again.
NO_ANSWER = frozenset(
    [
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    ]
)

CODES = {code.value[0]: code for code in grpc.StatusCode}

ATTEMPTS_MAX = 8
ATTEMPT_S = 5.0
# No stream is kept longer: one that stands still must not hold up the rest for ever.
STREAM_S = 15.0
RETRY_AFTER_MAX_S = 86_400.0
BACKOFF_S, BACKOFF_MAX_S = 0.2, 5.0
RENUMBERED_MAX = 3

# How long a key set is kept, how long after a fetch it is not fetched again, and how long a fetch and how large a set may be.
KEYS_S, KEYS_AGAIN_S, KEYS_FETCH_S, KEYS_BYTES_MAX = 300.0, 10.0, 5.0, 1 << 20


@dataclass
class Refused(Exception):
    """The quote was not signed. `action` is one of retry, renumber, reissue, mend, ask; `retry` means that time ran out."""

    code: str
    reason: str
    message: str
    action: str
    retry_after_s: float | None = None
    violations: list[tuple[str, str]] = field(default_factory=list)
    quotas: list[str] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    attempts: int = 0
    correlation_id: str = ""

    def __str__(self):
        return f"{self.code} {self.reason}: {self.message} ({self.correlation_id})"


def refusal(error: grpc.RpcError) -> Refused:
    """What an error of gRPC says."""
    try:
        status = rpc_status.from_call(error)
    except (ValueError, DecodeError):  # the details belong to another status, or cannot be read
        status = None
    return told(error.code(), error.details() or "", status.details if status else ())


def told(code: grpc.StatusCode, message: str, details) -> Refused:
    """What a status says: the reason is what counts, the code only where there is none."""
    refused = Refused(code.name, "", message, "ask")
    for detail in details:
        try:
            read(refused, detail)
        except (DecodeError, OverflowError, ValueError):
            pass  # what cannot be read says nothing
    refused.action = action(refused, code)
    return refused


def read(refused: Refused, detail):
    if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
        info = error_details_pb2.ErrorInfo()
        detail.Unpack(info)
        if info.domain == DOMAIN:
            refused.reason, refused.metadata = info.reason, dict(info.metadata)
    elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
        info = error_details_pb2.RetryInfo()
        detail.Unpack(info)
        refused.retry_after_s = min(max(info.retry_delay.ToTimedelta().total_seconds(), 0.0), RETRY_AFTER_MAX_S)
    elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
        info = error_details_pb2.BadRequest()
        detail.Unpack(info)
        refused.violations = [(violation.field, violation.description) for violation in info.field_violations]
    elif detail.Is(error_details_pb2.QuotaFailure.DESCRIPTOR):
        info = error_details_pb2.QuotaFailure()
        detail.Unpack(info)
        refused.quotas = [violation.subject for violation in info.violations]


def action(refused: Refused, code: grpc.StatusCode) -> str:
    for name, reasons in (("retry", RETRY), ("renumber", RENUMBER), ("reissue", REISSUE), ("mend", MEND), ("ask", ASK)):
        if refused.reason in reasons:
            return name
    if not refused.reason:
        return "retry" if code in NO_ANSWER else "ask"
    # A reason of a later gateway: RetryInfo says that the same quote may be sent again.
    return "ask" if refused.retry_after_s is None else "retry"


@dataclass(frozen=True)
class Signed:
    jws: str
    kid: str
    sequence: int
    replayed: bool
    attempts: int
    correlation_id: str


class Gateway:
    """A connection to a gateway over mutual TLS. Safe to share between threads."""

    def __init__(self, address, ca, certificate, key, service_config, environment):
        """`ca`, `certificate` and `key` are PEM files, `service_config` is the text of clients/service-config.json."""
        self._address, self._ca, self._identity = address, Path(ca).read_bytes(), (certificate, key)
        self._options = [
            ("grpc.service_config", service_config),
            ("grpc.enable_retries", 1),
            # A gateway that was restarted is found again soon, and a connection that died is noticed while a quote has time left.
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 5000),
            ("grpc.keepalive_time_ms", 10_000),
            ("grpc.keepalive_timeout_ms", 5000),
            # That of its other pings, which keepalive waits for.
            ("grpc.http2.ping_timeout_ms", 5000),
        ]
        self._lock, self._read, self._channel = threading.Lock(), None, None
        self._connected()
        self.environment = environment

    def _connected(self) -> rpc.QuoteSigningServiceStub:
        """Makes calls with the certificate that is on disk now: a channel keeps the one it began with, so another takes its place."""
        with self._lock:
            try:
                written = [os.stat(file).st_mtime_ns for file in self._identity]
                if written != self._read:
                    # A channel takes whatever it is given, and fails with it.
                    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(*self._identity)
                    certificate, key = (Path(file).read_bytes() for file in self._identity)
                    credentials = grpc.ssl_channel_credentials(self._ca, key, certificate)
                    # The one before ends with its last call.
                    self._channel = grpc.secure_channel(self._address, credentials, self._options)
                    self._stub = rpc.QuoteSigningServiceStub(self._channel)
                    self._read = written
            except OSError:  # ssl.SSLError is one
                if self._channel is None:
                    raise
                # They are being exchanged at this moment: the next call finds them.
            return self._stub

    def close(self):
        self._channel.close()

    def sign(self, payload: bytes, deadline_s: float = 30.0) -> Signed:
        """Has these bytes signed. Whatever happens, no others are sent, so that the answer is always the same JWS."""
        request = pb.SignQuoteRequest(environment=self.environment, payload=payload)
        answer, attempts, correlation_id = self._call("SignQuote", request, time_left(payload, deadline_s))
        return Signed(answer.jws, answer.kid, answer.sequence, answer.replayed, attempts, correlation_id)

    def last_number(self, partner: str, corridor: str = "", deadline_s: float = 30.0) -> int:
        """The last number taken in a sequence."""
        request = pb.GetSequenceRequest(partner=partner, corridor=corridor)
        answer, _, _ = self._call("GetSequence", request, deadline_s)
        return answer.last

    def sign_over_stream(self, payloads: dict[int, bytes], deadline_s: float, correlation_id: str):
        """Sends these bytes in their order over one stream. Gives what came back under each tag, `Signed` or `Refused`, and how
        the stream ended where not well: what has no answer then may be signed or not."""
        requests = (
            pb.SignQuotesRequest(tag=tag, quote=pb.SignQuoteRequest(environment=self.environment, payload=payload))
            for tag, payload in payloads.items()
        )
        metadata, answers = (("x-correlation-id", correlation_id),), {}
        timeout = min(deadline_s, STREAM_S)
        # The config's waiting and sending again are for single calls.
        stream = self._connected().SignQuotes(requests, timeout=timeout, metadata=metadata, wait_for_ready=True)
        try:
            for answer in stream:
                if answer.tag not in payloads or isinstance(answers.get(answer.tag), Signed):
                    continue
                own_id = f"{correlation_id}.{answer.tag}"
                if answer.HasField("signed"):
                    signed = answer.signed
                    answers[answer.tag] = Signed(signed.jws, signed.kid, signed.sequence, signed.replayed, 1, own_id)
                elif answer.HasField("refused"):
                    refused = answer.refused
                    code = CODES.get(refused.code, grpc.StatusCode.UNKNOWN)
                    answers[answer.tag] = told(code, refused.message, refused.details)
        except grpc.RpcError as error:
            return answers, refusal(error)
        finally:
            stream.cancel()
        return answers, None

    def _call(self, method, request, deadline_s):
        """Makes a call until it is answered, refused for good, out of attempts or out of time."""
        end = time.monotonic() + deadline_s
        correlation_id = str(uuid.uuid4())
        for attempt in range(1, ATTEMPTS_MAX + 1):
            # What has expired is sent once all the same, for the gateway to say so.
            left = max(end - time.monotonic(), 1.0 if attempt == 1 else 0.0)
            try:
                metadata = (("x-correlation-id", correlation_id),)
                answer = getattr(self._connected(), method)(request, timeout=min(left, ATTEMPT_S), metadata=metadata)
                log.info("%s", json.dumps({"correlation_id": correlation_id, "attempt": attempt, "code": "OK"}))
                return answer, attempt, correlation_id
            except grpc.RpcError as error:
                refused = refusal(error)
            refused.attempts, refused.correlation_id = attempt, correlation_id
            wait = pause(attempt, refused.retry_after_s)
            again = refused.action == "retry" and attempt < ATTEMPTS_MAX and time.monotonic() + wait < end
            line = {"correlation_id": correlation_id, "attempt": attempt, **said(refused)}
            log.warning("%s", json.dumps(line | {"action": refused.action, "wait_s": round(wait, 3) if again else None}))
            if not again:
                raise refused
            time.sleep(wait)
        raise AssertionError("the last attempt raises")


def said(refused: Refused | None) -> dict:
    """What the log tells of it; without a reason, the message alone says why, such as that no connection came about."""
    if refused is None:
        return {"code": "OK"}
    line = {"code": refused.code, "reason": refused.reason}
    return line if refused.reason else line | {"message": refused.message}


def pause(attempt: int, retry_after_s: float | None) -> float:
    """As RetryInfo says and a little more, so that not all come back at once; else backing off with full jitter."""
    if retry_after_s is not None:
        return retry_after_s * (1 + random.uniform(0, 0.2))
    return random.uniform(0, min(BACKOFF_MAX_S, BACKOFF_S * 2**attempt))


def time_left(payload: bytes, deadline_s: float) -> float:
    """The deadline, or the time until the quote expires where that is shorter: then it is of no use to anybody."""
    try:
        left = instant(json.loads(payload)["expires_at"]).timestamp() - time.time()
    except (ValueError, KeyError, TypeError, AttributeError):
        return deadline_s  # the gateway says what is wrong with it
    return min(deadline_s, left)


def instant(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def time_to(end: float) -> float:
    """The time that is left, before a number is taken."""
    left = end - time.monotonic()
    if left <= 0:
        raise late()
    return left


def late() -> Refused:
    return Refused("DEADLINE_EXCEEDED", "", "the time was over before it was sent", "retry")


class Sequence:
    """The numbers of one sequence, handed out in one place and sent in their order."""

    def __init__(self, gateway: Gateway, partner: str, corridor: str = ""):
        self._gateway, self._partner, self._corridor = gateway, partner, corridor
        self._lock = threading.Lock()
        self.last = None

    def resume(self, deadline_s: float = 30.0) -> int:
        """Takes up the sequence where the gateway says that it stands: at the start, and when a number did not fit."""
        self.last = self._gateway.last_number(self._partner, self._corridor, deadline_s)
        return self.last

    def issue(self, quote, deadline_s: float = 30.0) -> Signed:
        """Has the bytes signed that `quote(number)` makes. A number that did not fit bound nothing, so the quote gets another."""
        end = time.monotonic() + deadline_s
        with self._turn(end):
            for renumbered in range(RENUMBERED_MAX + 1):
                left = time_to(end)
                if self.last is None:
                    self.resume(left)
                self.last += 1
                try:
                    return self._gateway.sign(quote(self.last), end - time.monotonic())
                except Refused as refused:
                    if refused.action != "renumber" or renumbered == RENUMBERED_MAX:
                        raise
                    self.last = None
        raise AssertionError("the last round raises")

    def issue_all(self, quotes, deadline_s: float = 30.0) -> list[Signed | Refused]:
        """Has many quotes signed over one stream, side by side: for each, in this order, what `issue` would come to.
        A quote is made again where its number did not fit: keep the bytes that `quote(number)` made last."""
        end, quotes = time.monotonic() + deadline_s, list(quotes)
        try:
            with self._turn(end):
                return Batch(self._gateway, self, quotes, end).issue()
        except Refused as refused:
            return [refused] * len(quotes)

    @contextmanager
    def _turn(self, end: float):
        """One caller at a time; none waits for that longer than it has time."""
        if not self._lock.acquire(timeout=max(end - time.monotonic(), 0.0)):
            raise late()
        try:
            yield
        finally:
            self._lock.release()


class Batch:
    """Quotes that go over one stream after the other until each is signed or refused for good."""

    def __init__(self, gateway: Gateway, sequence: Sequence, quotes, end: float):
        self._gateway, self._sequence, self._quotes, self._end = gateway, sequence, quotes, end
        # The number and the bytes of each: once they were sent they stay, unless the number did not fit.
        self._numbered = {}
        self._attempts, self._renumbered = [0] * len(self._quotes), [0] * len(self._quotes)
        self._answers = [None] * len(self._quotes)
        self._correlation_id = str(uuid.uuid4())

    def issue(self) -> list[Signed | Refused]:
        stream, in_vain = 0, 0
        while sent := self._number():
            stream += 1
            for at in sent:
                self._attempts[at] += 1
            left = max(self._end - time.monotonic(), 1.0)
            answers, ended = self._gateway.sign_over_stream(sent, left, self._correlation_id)
            again = self._take(sent, answers, ended)
            # Where the gateway says when to come again, the deadline alone bounds it.
            told = any(refused.retry_after_s is not None for refused in again.values())
            in_vain = 0 if told or len(again) < len(sent) else in_vain + 1
            wait = self._wait(again, in_vain)
            line = {"correlation_id": self._correlation_id, "attempt": stream, **said(ended)}
            line |= {"sent": len(sent), "open": self._answers.count(None), "wait_s": round(wait, 3)}
            log.info("%s", json.dumps(line))
            time.sleep(wait)
        return self._answers

    def _number(self) -> dict[int, bytes]:
        """What is to be sent, in its order. What has a number goes first, as it was; all others get one."""
        kept = sorted((number, at) for at, (number, _) in self._numbered.items() if self._answers[at] is None)
        order = [at for _, at in kept]
        for at, answer in enumerate(self._answers):
            if answer is not None or at in self._numbered:
                continue
            try:
                left = time_to(self._end)
                if self._sequence.last is None:
                    resumed = self._sequence.resume(left)
                    self._sequence.last = max(resumed, kept[-1][0] if kept else 0)
            except Refused as refused:  # nobody says where the sequence stands, or the time is over
                for other in range(at, len(self._quotes)):
                    if self._answers[other] is None and other not in self._numbered:
                        self._refuse(other, refused)
                break
            number = self._sequence.last + 1
            try:
                self._numbered[at] = number, self._quotes[at](number)
            except Exception as fault:
                said = f"the quote could not be made: {type(fault).__name__}: {fault}"
                self._refuse(at, Refused("INVALID_ARGUMENT", "", said, "mend"))
                continue
            self._sequence.last = number
            order.append(at)
        return {at: self._numbered[at][1] for at in order}

    def _take(self, sent, answers, ended) -> dict[int, Refused]:
        """Takes the answers in. Those quotes that are to be sent again as they were, each with what was said of it."""
        again = {}
        for at in sent:
            answer = answers.get(at)
            if isinstance(answer, Signed):
                self._answers[at] = replace(answer, attempts=self._attempts[at])
                continue
            refused = answer or ended or Refused("UNKNOWN", "", "the stream ended without an answer", "retry")
            # What is said of one quote alone is not said of one without an answer, which may be signed.
            is_open = answer is None and refused.action in ("renumber", "reissue")
            if is_open or refused.action == "retry":
                again[at] = refused
            elif refused.action == "renumber" and self._renumbered[at] < RENUMBERED_MAX:
                self._renumbered[at] += 1
                del self._numbered[at]
                self._sequence.last = None
            else:
                self._refuse(at, refused)
                if answer is None and refused.action == "mend":
                    # A message that the gateway could not take: that is the first one without an answer.
                    ended = Refused("UNKNOWN", "", "the stream ended with another's fault", "retry")
        return again

    def _wait(self, again: dict[int, Refused], in_vain: int) -> float:
        """How long those wait that are sent again. Whose own wait is too long is given up, and no other with it."""
        left, stay = self._end - time.monotonic(), {}
        for at, refused in again.items():
            if in_vain < ATTEMPTS_MAX and (refused.retry_after_s or 0.0) < left:
                stay[at] = refused
            else:
                self._refuse(at, refused)
        told = [refused.retry_after_s for refused in stay.values() if refused.retry_after_s is not None]
        wait = pause(in_vain + 1, max(told, default=None)) if stay else 0.0
        if wait < left:
            return wait
        for at, refused in stay.items():
            self._refuse(at, refused)
        return 0.0

    def _refuse(self, at: int, refused: Refused):
        own_id = f"{self._correlation_id}.{at}"
        self._answers[at] = replace(refused, attempts=self._attempts[at], correlation_id=own_id)


class Unverified(Exception):
    """The JWS is not a valid quote. The text says why."""


class KeysUnavailable(Exception):
    """The key set is not at hand, so nobody knows whether the JWS is a valid quote: try again."""


class NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None


class Verifier:
    """Checks signed quotes with the partner's published keys, as whoever receives them does."""

    def __init__(self, jwks_url: str, ca_file: str):
        https = urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=ca_file))
        self._url, self._opener = jwks_url, urllib.request.build_opener(https, NoRedirect)
        self._lock = threading.Lock()
        self._came, self._keys = -math.inf, {}
        self._asked, self._fault = -math.inf, None

    def verify(self, jws: str, now: datetime | None = None) -> dict:
        """The claims, where the signature is RS256 of the key that the header's kid names and the quote has not expired."""
        try:
            key = self._key(jwt.get_unverified_header(jws).get("kid"))
            # The algorithm is ours to say, never the header's.
            claims = jwt.decode(jws, key, algorithms=["RS256"])
            if instant(claims["expires_at"]) <= (now or datetime.now(timezone.utc)):
                raise Unverified("the quote has expired")
        except (jwt.PyJWTError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise Unverified(f"{type(error).__name__}: {error}") from error
        return claims

    def _key(self, kid: str | None):
        """Looks the kid up. The set is kept for a while, and fetched again where a kid is not in it, for keys are exchanged."""
        if not kid:
            raise Unverified("the header names no kid")
        if key := self._known(kid):
            return key
        begun = time.monotonic()
        with self._lock:  # whoever waits here finds what the fetch came to
            # Not for every made-up kid, though, nor at once where it failed.
            if time.monotonic() - self._asked > KEYS_AGAIN_S:
                self._asked = time.monotonic()
                try:
                    self._keys, self._fault = self._fetch(), None
                    self._came = self._asked
                except Exception as fault:
                    self._fault = fault
            if key := self._known(kid):
                return key
            if self._fault:
                raise KeysUnavailable(f"{type(self._fault).__name__}: {self._fault}") from self._fault
            if self._asked < begun:
                raise KeysUnavailable(f"a moment ago the key set had no key `{kid}`")
        raise Unverified(f"the key set has no key `{kid}`")

    def _known(self, kid: str):
        return self._keys.get(kid) if time.monotonic() - self._came < KEYS_S else None

    def _fetch(self) -> dict:
        end, text = time.monotonic() + KEYS_FETCH_S, b""
        with self._opener.open(self._url, timeout=KEYS_FETCH_S) as answer:
            while part := answer.read1():
                text += part
                if len(text) > KEYS_BYTES_MAX or time.monotonic() > end:
                    raise ValueError("the key set is too large or comes too slowly")
        keys = {}
        for key in json.loads(text)["keys"]:  # PyJWKSet would not take a set of none
            with suppress(jwt.PyJWTError):  # of another kind than this library knows
                keys[key.get("kid")] = jwt.PyJWK(key).key
        return keys
