"""A pricing service that follows gRPC's usual retry policy and nothing more: the service config of the documentation, and no
code of its own that asks again. It calls several gateways at an even pace until its standard input ends, and tells in one line of
JSON what became of its calls.

Usage: rolling_client.py SERVICE_CONFIG TLS_DIR RATE PAYLOAD ADDRESS...
"""

import json
import pathlib
import sys
import threading
import time
import uuid

import grpc


def field(number, value):
    """A length-delimited field of a protocol buffer."""
    size, head = len(value), b""
    while size > 127:
        head, size = head + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + head + bytes([size]) + value


def text(at):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def main():
    config, tls, rate, payload, *addresses = sys.argv[1:]
    tls = pathlib.Path(tls)
    ca, key, certificate = ((tls / name).read_bytes() for name in ("ca.pem", "pricing.key", "pricing.pem"))
    channel = grpc.secure_channel(
        "ipv4:" + ",".join(addresses),
        grpc.ssl_channel_credentials(ca, key, certificate),
        options=[
            ("grpc.service_config", pathlib.Path(config).read_text()),
            ("grpc.ssl_target_name_override", "localhost"),
            # A gateway that comes back is found again soon.
            ("grpc.max_reconnect_backoff_ms", 1000),
        ],
    )
    sign = channel.unary_unary("/quotesign.v1.QuoteSigningService/SignQuote")
    quote = json.loads(pathlib.Path(payload).read_text())
    del quote["quote_sequence"]
    over = threading.Event()
    lock, told = threading.Lock(), {"calls": 0, "signed": 0, "failed": [], "slowest_ms": 0}

    def call():
        now = time.time()
        quote.update(quote_id=str(uuid.uuid4()), issued_at=text(now), expires_at=text(now + 600))
        request = field(1, b"development") + field(2, json.dumps(quote).encode())
        began = time.monotonic()

        def ended(answer):
            took = (time.monotonic() - began) * 1000
            with lock:
                told["slowest_ms"] = max(told["slowest_ms"], round(took))
                if answer.exception() is None:
                    told["signed"] += 1
                else:
                    told["failed"].append(f"{answer.code()}: {answer.details()}")

        told["calls"] += 1
        sign.future(request, timeout=10).add_done_callback(ended)

    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    began = time.monotonic()
    while not over.is_set():
        call()
        over.wait(max(0.0, began + told["calls"] / float(rate) - time.monotonic()))
    until = time.monotonic() + 15
    while told["signed"] + len(told["failed"]) < told["calls"] and time.monotonic() < until:
        time.sleep(0.05)
    with lock:
        print(json.dumps({**told, "lost": told["calls"] - told["signed"] - len(told["failed"])}), flush=True)


main()
