"""Shows `quotesign_client` at work against a gateway: one JSON line per step. README.md says how to run it."""

import argparse
import base64
import hashlib
import json
import logging
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path

from quotesign_client import Gateway, KeysUnavailable, Refused, Sequence, Unverified, Verifier

STEPS = "resume,sign,replay,conflict,schema,sequence,denied,expired,verify"


class Scenario:
    def __init__(self, arguments):
        self.count, self.deadline_s = arguments.count, arguments.deadline
        self.template = json.loads(arguments.payload.read_text())
        identity, config = (arguments.ca, arguments.cert, arguments.key), arguments.service_config.read_text()
        self.gateway = Gateway(arguments.address, *identity, config, arguments.environment)
        self.sequence = Sequence(self.gateway, self.template["partner_id"])
        self.verifier = Verifier(arguments.jwks, str(arguments.ca))
        self.sent, self.signed = None, None

    def quote(self, **changes):
        """Makes a quote of the template: a function from its number to its bytes."""
        now = datetime.now(timezone.utc)
        claims = self.template | {"quote_id": str(uuid.uuid4()), "issued_at": stamp(now)}
        claims |= {"expires_at": stamp(now + timedelta(minutes=10))} | changes

        def numbered(number):
            self.sent = json.dumps(claims | {"quote_sequence": number}).encode()
            return self.sent

        return numbered

    def try_to(self, step, call):
        """Prints what a call came to."""
        return tell_answer(step, came_to(call))

    def issue(self, step, **changes):
        return self.try_to(step, lambda: self.sequence.issue(self.quote(**changes), self.deadline_s))

    def resume(self):
        tell("resume", last=self.sequence.resume())

    def sign(self):
        self.signed = self.issue("sign")
        self.kept = self.sent  # a service keeps the bytes with its quote

    def replay(self):
        self.try_to("replay", lambda: self.gateway.sign(self.kept, self.deadline_s))

    def conflict(self):
        other = json.loads(self.kept) | {"subscription_id": "sub_other"}
        self.try_to("conflict", lambda: self.gateway.sign(json.dumps(other).encode(), self.deadline_s))

    def schema(self):
        self.issue("schema", corridor="gb-in", total_customer_cost="1.00")

    def sequence_too_low(self):
        number = json.loads(self.kept)["quote_sequence"]
        low = self.quote()(number)
        self.try_to("sequence", lambda: self.gateway.sign(low, self.deadline_s))
        # One who has lost count: the first number is refused, the next one fits.
        self.sequence.last = number - 1
        self.issue("sequence-resumed")

    def denied(self):
        self.issue("denied", corridor="GB-KP")

    def expired(self):
        now = datetime.now(timezone.utc)
        times = {"issued_at": stamp(now - timedelta(minutes=5)), "expires_at": stamp(now - timedelta(seconds=1))}
        self.issue("expired", **times)

    def verify(self):
        jws = self.signed.jws
        head, payload, signature = jws.split(".")
        claims = base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
        cheaper = claims.replace(b'"partner_fee":"1.', b'"partner_fee":"0.')
        other = base64.urlsafe_b64encode(cheaper).rstrip(b"=").decode()
        later = datetime.now(timezone.utc) + timedelta(hours=1)
        for step, text, now in (
            ("verify", jws, None),
            ("verify-changed", f"{head}.{other}.{signature}", None),
            ("verify-expired", jws, later),
        ):
            try:
                tell(step, valid=True, quote_id=self.verifier.verify(text, now)["quote_id"])
            except Unverified as why:
                tell(step, valid=False, why=str(why))
            except KeysUnavailable as why:
                tell(step, keys_unavailable=str(why))

    def burst(self):
        for _ in range(self.count):
            self.issue("burst")

    def crowd(self):
        def issue(deadline_s):
            return came_to(lambda: self.sequence.issue(self.quote(), deadline_s))

        with ThreadPoolExecutor(self.count) as crowd:
            issued = [crowd.submit(issue, self.deadline_s)]
            time.sleep(0.5)
            issued += [crowd.submit(issue, self.deadline_s / 2) for _ in range(1, self.count)]
            for one in issued:
                tell_answer("crowd", one.result())

    def stream(self):
        quotes = [self.quote() for _ in range(self.count)]
        for answer in self.sequence.issue_all(quotes, self.deadline_s):
            tell_answer("stream", answer)


def stamp(at):
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def came_to(call):
    try:
        return call()
    except Refused as refused:
        return refused


def tell_answer(step, answer):
    """Prints it, and gives it back where it is a signed quote."""
    refused = isinstance(answer, Refused)
    names = ["code", "reason", "action", "quotas"] if refused else ["sequence", "kid", "replayed"]
    facts = {name: getattr(answer, name) for name in [*names, "attempts", "correlation_id"]}
    if refused:
        facts["violations"] = [field for field, _ in answer.violations]
    else:
        facts["jws_sha256"] = hashlib.sha256(answer.jws.encode()).hexdigest()
    tell(step, **facts)
    return None if refused else answer


def tell(step, **facts):
    print(json.dumps({"step": step} | facts), flush=True)


def main():
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True, help="host:port of the gateway's grpc listener")
    for name, what in (("ca", "the CA of the gateway"), ("cert", "our certificate"), ("key", "its private key")):
        parser.add_argument(f"--{name}", required=True, type=Path, help=f"{what}, PEM")
    parser.add_argument("--jwks", required=True, help="the https URL of the partner's key set")
    parser.add_argument("--payload", required=True, type=Path, help="the quote to begin from, such as examples/quote.json")
    parser.add_argument("--environment", default="development")
    parser.add_argument("--service-config", type=Path, default=here.parent / "service-config.json")
    parser.add_argument("--steps", default=STEPS, help=f"{STEPS}, burst, crowd and stream")
    parser.add_argument("--count", type=int, default=10, help="how many quotes a burst, a crowd or a stream has")
    parser.add_argument("--deadline", type=float, default=30.0, help="seconds for a quote or a stream, retries and all")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    scenario = Scenario(arguments)
    methods = {"sequence": scenario.sequence_too_low}
    for step in arguments.steps.split(","):
        methods.get(step, getattr(scenario, step, None))()
    scenario.gateway.close()


if __name__ == "__main__":
    main()
