"""Reads requests of OTLP with the published messages, for `otlp_sink.py`: each log record, span and metric as an
object of JSON. Ids are in hex, and so are bytes, as {"bytes": "00ff"}; numbers that JSON cannot hold are text;
enumerations go by short names in lower case. An attribute that stands twice is an error, which OTLP leaves to readers.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from google.protobuf.message import Message
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.proto.metrics.v1 import metrics_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

Json = dict[str, Any]


def plain(value: Message) -> Any:
    """An AnyValue in JSON."""
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    inner = getattr(value, kind)
    match kind:
        case "string_value" | "bool_value" | "int_value":
            return inner
        case "double_value":
            return number(inner)
        case "bytes_value":
            return {"bytes": inner.hex()}
        case "array_value":
            return [plain(each) for each in inner.values]
        case "kvlist_value":
            return members(inner.values)
    raise ValueError(f"{kind}, which only profiles have")


def number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def members(pairs: Iterable[Message]) -> Json:
    """Attributes, none of which may stand twice."""
    found: Json = {}
    for pair in pairs:
        if pair.key in found:
            raise ValueError(f"the attribute {pair.key!r} stands twice")
        found[pair.key] = plain(pair.value)
    return found


def fields(message: Message, *names: str) -> Json:
    """Fields as they are, ids in hex."""
    return {name: value.hex() if isinstance(value := getattr(message, name), bytes) else value for name in names}


def name_of(enum: Any, value: int, prefix: str) -> str:
    return enum.Name(value).removeprefix(prefix).lower()


def log(record: Message) -> Json:
    return fields(record, "event_name", "severity_number", "severity_text", "time_unix_nano", "observed_time_unix_nano",
                  "trace_id", "span_id", "flags") | {
        "attributes": members(record.attributes), "body": plain(record.body),
        "raw_sha256": hashlib.sha256(record.SerializeToString()).hexdigest()}


def span(span: Message) -> Json:
    return fields(span, "name", "trace_id", "span_id", "parent_span_id", "trace_state", "flags", "start_time_unix_nano",
                  "end_time_unix_nano") | {
        "kind": name_of(trace_pb2.Span.SpanKind, span.kind, "SPAN_KIND_"),
        "status_code": name_of(trace_pb2.Status.StatusCode, span.status.code, "STATUS_CODE_"),
        "status_message": span.status.message, "attributes": members(span.attributes),
        "events": [fields(event, "name", "time_unix_nano") | {"attributes": members(event.attributes)}
                   for event in span.events],
        "links": [fields(link, "trace_id", "span_id") | {"attributes": members(link.attributes)}
                  for link in span.links]}


def metric(metric: Message) -> Json:
    kind = metric.WhichOneof("data")
    if kind not in ("sum", "gauge", "histogram"):
        raise ValueError(f"the metric {metric.name!r} is of the kind {kind}, which is not read")
    data = getattr(metric, kind)
    return fields(metric, "name", "description", "unit") | {
        "type": kind, "monotonic": data.is_monotonic if kind == "sum" else None,
        "temporality": None if kind == "gauge" else name_of(
            metrics_pb2.AggregationTemporality, data.aggregation_temporality, "AGGREGATION_TEMPORALITY_"),
        "points": [point(each) for each in data.data_points]}


def point(data: Message) -> Json:
    if isinstance(data, metrics_pb2.HistogramDataPoint):
        values = {"count": data.count, "sum": number(data.sum) if data.HasField("sum") else None,
                  "buckets": list(data.bucket_counts), "bounds": [number(bound) for bound in data.explicit_bounds]}
    else:
        kind = data.WhichOneof("value")
        values = {"value": number(getattr(data, kind)) if kind else None}
    return fields(data, "start_time_unix_nano", "time_unix_nano") | {"attributes": members(data.attributes)} | values


class Signal(NamedTuple):
    """What is particular to a signal: messages, the fields that lead to its items, and how one of these is read."""

    module: Any
    name: str
    path: tuple[str, str, str]
    rejected: str
    read: Callable[[Message], Json]

    def message(self, direction: str) -> type[Message]:
        return getattr(self.module, f"Export{self.name}Service{direction}")

    def service(self) -> str:
        return self.module.DESCRIPTOR.services_by_name[f"{self.name}Service"].full_name

    def lines(self, raw: bytes) -> Iterator[Json]:
        of_resources, of_scopes, items = self.path
        for group in getattr(self.message("Request").FromString(raw), of_resources):
            for scoped in getattr(group, of_scopes):
                for item in getattr(scoped, items):
                    yield {"signal": self.read.__name__, "resource": members(group.resource.attributes),
                           "scope": fields(scoped.scope, "name", "version")} | self.read(item)


SIGNALS = {
    "logs": Signal(logs_service_pb2, "Logs", ("resource_logs", "scope_logs", "log_records"),
                   "rejected_log_records", log),
    "traces": Signal(trace_service_pb2, "Trace", ("resource_spans", "scope_spans", "spans"),
                     "rejected_spans", span),
    "metrics": Signal(metrics_service_pb2, "Metrics", ("resource_metrics", "scope_metrics", "metrics"),
                      "rejected_data_points", metric)}


def counted(line: Json) -> list[Json]:
    """What a partial success counts of an item, by attributes: the record or span, or each data point."""
    return [each["attributes"] for each in line.get("points", [line])]
