"""Takes what the gateway ships over OTLP, decodes it with the published messages, and fails in the ways that a test
asks for. It shares nothing with the gateway.

Usage: otlp_sink.py --out FILE [--grpc PORT] [--http PORT] [--cert PEM --key PEM] [--need-header NAME=VALUE]...

Listens on 127.0.0.1; port 0, the default, is any free one. The first line of its output tells the ports:
{"grpc": 1, "http": 2, "control": 3}. With a certificate both OTLP listeners speak TLS; the control listener never does.
Each log record, span and metric that is accepted is a line of JSON at the end of FILE before its call is answered.

The control listener, plain HTTP:

  POST /fault   an object of `FAULT_FIELDS` that replaces the fault in force; {} heals. It meets logs, or the "signals"
                it names; with "count", only the next so many of their calls. Headers and messages that are wrong are
                refused before it. What it holds comes in this order: slow_ms, hang, status (with retry_info_ms),
                max_bytes (with oversize), poison (with poison_all), lose_answer, reject, warn. A call that hangs is
                never taken: it is dropped at the next POST /fault, or once its caller has gone, which only gRPC shows.
  GET /stats    {"calls", "accepted", "rejected", "refused", "largest_bytes", "largest_records"}, and the same for each
                of "logs", "traces", "metrics". accepted and rejected count records, spans and data points, the latter
                as the answers have it; refused, calls without success; the largest are those of requests that could be
                decoded, without compression.
"""

import argparse
import gzip
import json
import math
import ssl
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2
from otlp_messages import SIGNALS, Json, Signal, counted

HOST = "127.0.0.1"
PROTOBUF = "application/x-protobuf"
STANDARD_HEADERS = {"accept", "accept-encoding", "connection", "content-encoding", "content-length", "content-type",
                    "expect", "host", "te", "transfer-encoding", "user-agent"}
HTTP_STATUS = {"UNAVAILABLE": 503, "RESOURCE_EXHAUSTED": 429, "DEADLINE_EXCEEDED": 504, "INVALID_ARGUMENT": 400,
               "UNAUTHENTICATED": 401, "PERMISSION_DENIED": 403, "UNIMPLEMENTED": 404}  # Any other is 500.
FAULT_FIELDS = {"signals": list, "count": int, "slow_ms": int, "hang": bool, "status": str, "retry_info_ms": int,
                "max_bytes": int, "oversize": str, "poison": dict, "poison_all": bool, "lose_answer": bool,
                "reject": int, "warn": str}


class Refused(Exception):
    """A call that is answered with an error; over HTTP, where it is `unanswered`, not at all."""

    def __init__(self, code: str, why: str, retry_ms: int | None = None, http: int = 0, unanswered: bool = False):
        super().__init__(why)
        self.code, self.retry_ms, self.unanswered = code, retry_ms, unanswered
        self.http = http or HTTP_STATUS.get(code, 500)

    def status(self) -> bytes:
        status = status_pb2.Status(code=code_pb2.Code.Value(self.code), message=str(self))
        if self.retry_ms is not None:
            info = error_details_pb2.RetryInfo()
            info.retry_delay.FromMilliseconds(self.retry_ms)
            status.details.add().Pack(info)
        return status.SerializeToString()


def checked_fault(fault: Any) -> Json:
    """The fault as given, where this sink can do it."""
    if not isinstance(fault, dict) or any(type(value) is not FAULT_FIELDS.get(name) or type(value) is int and value < 0
                                          for name, value in fault.items()):
        raise ValueError(f"a fault is an object of {', '.join(FAULT_FIELDS)}, each of its type, none negative")
    if not {fault[name] for name in ("status", "oversize") if name in fault} <= set(code_pb2.Code.keys()) - {"OK"}:
        raise ValueError("status and oversize are names of errors of gRPC")
    if not set(fault.get("signals", [])) <= SIGNALS.keys():
        raise ValueError(f"signals are {', '.join(SIGNALS)}")
    if "poison" in fault and fault["poison"].keys() != {"attribute", "value"}:
        raise ValueError("poison is an attribute and its value, or a list of values")
    return fault


class Sink:
    """What was taken, and the fault in force."""

    def __init__(self, out: str, needed: dict[str, str]):
        self.out, self.needed = open(out, "ab"), needed
        self.state = threading.Condition()
        self.fault: Json = {}
        self.changes = 0
        names = ("calls", "accepted", "rejected", "refused", "largest_bytes", "largest_records")
        self.stats = {signal: dict.fromkeys(names, 0) for signal in SIGNALS}

    def set_fault(self, fault: Json) -> None:
        with self.state:
            self.fault = fault
            self.changes += 1
            self.state.notify_all()

    def totals(self) -> Json:
        with self.state:
            each = list(self.stats.values())
            return {name: (max if name.startswith("largest") else sum)(stats[name] for stats in each)
                    for name in each[0]} | self.stats

    def take(self, signal: str, raw: bytes, via: str, headers: dict[str, str], waits: Callable[[], bool]) -> bytes:
        """The answer to a call of Export, or `Refused`. `waits` says whether its caller does."""
        with self.state:
            self.stats[signal]["calls"] += 1
        try:
            return self.answer(SIGNALS[signal], self.stats[signal], signal, raw, via, headers, waits)
        except Refused:
            with self.state:
                self.stats[signal]["refused"] += 1
            raise

    def answer(self, signal: Signal, stats: dict[str, int], name: str, raw: bytes, via: str, headers: dict[str, str],
               waits: Callable[[], bool]) -> bytes:
        if any(headers.get(needed) != value for needed, value in self.needed.items()):
            raise Refused("UNAUTHENTICATED", f"{', '.join(self.needed)} must be as agreed")
        special = {key: value for key, value in headers.items()
                   if key not in STANDARD_HEADERS and not key.startswith("grpc-")}
        try:
            lines = [line | {"via": via, "metadata": special} for line in signal.lines(raw)]
        except (DecodeError, ValueError) as error:
            raise Refused("INVALID_ARGUMENT", f"cannot be read: {error}") from error
        records = sum(len(counted(line)) for line in lines)
        with self.state:
            stats["largest_bytes"] = max(stats["largest_bytes"], len(raw))
            stats["largest_records"] = max(stats["largest_records"], records)
            fault, changes = self.fault if name in self.fault.get("signals", ["logs"]) else {}, self.changes
            if "count" in fault:
                self.fault = fault | {"count": fault["count"] - 1} if fault["count"] > 1 else {}

        time.sleep(fault.get("slow_ms", 0) / 1000)
        if fault.get("hang"):
            with self.state:
                while self.changes == changes and waits():
                    self.state.wait(0.05)
            raise Refused("UNAVAILABLE", "hung until now", unanswered=True)
        if "status" in fault:
            raise Refused(fault["status"], "as the test has it", fault.get("retry_info_ms"))
        if len(raw) > fault.get("max_bytes", len(raw)):
            raise Refused(fault.get("oversize", "RESOURCE_EXHAUSTED"), f"over {fault['max_bytes']} bytes", http=413)
        taken = [line for line in lines if not is_poisoned(line, fault.get("poison"))]
        if fault.get("poison_all") and len(taken) < len(lines):
            raise Refused("INVALID_ARGUMENT", "a record is poisoned")

        accepted = sum(len(counted(line)) for line in taken)
        rejected = records - accepted + fault.get("reject", 0)
        with self.state:
            self.out.write("".join(json.dumps(line, allow_nan=False) + "\n" for line in taken).encode())
            self.out.flush()
            stats["accepted"] += accepted
            stats["rejected"] += rejected
        if fault.get("lose_answer"):
            raise Refused("UNAVAILABLE", "taken, and the answer is lost", unanswered=True)
        response = signal.message("Response")()
        if rejected or "warn" in fault:
            setattr(response.partial_success, signal.rejected, rejected)
            response.partial_success.error_message = fault.get("warn", "some are not taken")
        return response.SerializeToString()


def is_poisoned(line: Json, poison: Json | None) -> bool:
    if poison is None:
        return False
    found = [attributes.get(poison["attribute"]) for attributes in counted(line)]
    bad = poison["value"] if isinstance(poison["value"], list) else [poison["value"]]
    return any(type(value) is type(one) and value == one for value in found for one in bad)


def joined(headers: Iterable[tuple[str, str | bytes]]) -> dict[str, str]:
    """Headers by name in lower case, those of one name as one; binary ones in hex."""
    found: dict[str, list[str]] = {}
    for name, value in headers:
        found.setdefault(name.lower(), []).append(value.hex() if isinstance(value, bytes) else value)
    return {name: ", ".join(values) for name, values in found.items()}


def grpc_handler(sink: Sink, signal: str) -> grpc.GenericRpcHandler:
    def export(raw: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            return sink.take(signal, raw, "grpc", joined(context.invocation_metadata()), context.is_active)
        except Refused as refused:
            if refused.retry_ms is not None:
                context.set_trailing_metadata((("grpc-status-details-bin", refused.status()),))
            context.abort(grpc.StatusCode[refused.code], str(refused))

    # Without a deserializer it is given the bytes as they came.
    handlers = {"Export": grpc.unary_unary_rpc_method_handler(export)}
    return grpc.method_handlers_generic_handler(SIGNALS[signal].service(), handlers)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    sink: Sink

    def send(self, status: int, kind: str, body: bytes, headers: Json | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": len(body), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def log_message(self, *_: Any) -> None:
        """Standard error is kept for what goes wrong in here."""


class Otlp(Handler):
    def do_POST(self) -> None:
        body = self.body()
        try:
            answer = self.taken(body)
        except Refused as refused:
            if refused.unanswered:
                self.close_connection = True
                return
            retry = {} if refused.retry_ms is None else {"Retry-After": math.ceil(refused.retry_ms / 1000)}
            self.send(refused.http, PROTOBUF, refused.status(), retry)
        else:
            self.send(200, PROTOBUF, answer)

    def taken(self, body: bytes) -> bytes:
        signal = self.path.removeprefix("/v1/")
        if self.path != f"/v1/{signal}" or signal not in SIGNALS:
            raise Refused("UNIMPLEMENTED", f"nothing is at {self.path}")
        if "Content-Length" not in self.headers:
            self.close_connection = True
            raise Refused("INVALID_ARGUMENT", "without a length", http=411)
        if self.headers.get("Content-Type") != PROTOBUF:
            raise Refused("INVALID_ARGUMENT", f"not {PROTOBUF}", http=415)
        if self.headers.get("Content-Encoding") == "gzip":
            try:
                body = gzip.decompress(body)
            except (OSError, EOFError, zlib.error) as error:
                raise Refused("INVALID_ARGUMENT", f"not gzip: {error}") from error
        return self.sink.take(signal, body, "http", joined(self.headers.items()), lambda: True)


class Control(Handler):
    def do_POST(self) -> None:
        body = self.body()
        if self.path != "/fault":
            return self.send(404, "text/plain", b"only /fault is posted to\n")
        try:
            self.sink.set_fault(checked_fault(json.loads(body)))
        except (TypeError, ValueError) as error:
            return self.send(400, "text/plain", f"{error}\n".encode())
        self.send(200, "application/json", b"{}")

    def do_GET(self) -> None:
        if self.path != "/stats":
            return self.send(404, "text/plain", b"only /stats is there to get\n")
        self.send(200, "application/json", json.dumps(self.sink.totals()).encode())


class Listener(ThreadingHTTPServer):
    request_queue_size = 128

    def handle_error(self, *_: Any) -> None:
        print("otlp_sink:", repr(sys.exc_info()[1]), file=sys.stderr)


def listen(handler: type[Handler], port: int, tls: ssl.SSLContext | None = None) -> int:
    listener = Listener((HOST, port), handler)
    if tls:  # The handshake is left to the connection's own thread.
        listener.socket = tls.wrap_socket(listener.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    return listener.server_port


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    parser.add_argument("--grpc", type=int, default=0)
    parser.add_argument("--http", type=int, default=0)
    parser.add_argument("--cert")
    parser.add_argument("--key")
    parser.add_argument("--need-header", action="append", default=[])
    options = parser.parse_args()
    needed = (header.partition("=") for header in options.need_header)
    sink = Handler.sink = Sink(options.out, {name.lower(): value for name, _, value in needed})

    server = grpc.server(ThreadPoolExecutor(max_workers=64),
                         options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers([grpc_handler(sink, signal) for signal in SIGNALS])
    address, tls = f"{HOST}:{options.grpc}", None
    if options.cert:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(options.cert, options.key)
        with open(options.cert, "rb") as cert, open(options.key, "rb") as key:
            port = server.add_secure_port(address, grpc.ssl_server_credentials([(key.read(), cert.read())]))
    else:
        port = server.add_insecure_port(address)
    server.start()
    ports = {"grpc": port, "http": listen(Otlp, options.http, tls), "control": listen(Control, 0)}
    print(json.dumps(ports), flush=True)
    server.wait_for_termination()


main()
