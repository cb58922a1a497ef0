//! Traces and metrics as a collector gets them.

use std::{collections::BTreeMap, time::Duration};

use quotesign::proto::SignQuoteRequest;
use serde_json::{Value, json};

use crate::{
    harness::{Quote, Site, until},
    shipping::{Sink, ship_to},
};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

fn spans(sink: &Sink) -> Vec<Value> {
    sink.lines("span").into_iter().filter(|span| span["name"] != "grpc.health.v1.Health/Check").collect()
}

async fn spans_of(sink: &Sink, correlation_id: &str) -> Vec<Value> {
    let mut found = Vec::new();
    until("its spans", async || {
        let all = spans(sink);
        let root = all.iter().find(|span| span["attributes"]["quotesign.correlation_id"] == correlation_id);
        found = root.map_or(Vec::new(), |root| {
            let of_root =
                |span: &&Value| span["parent_span_id"] == root["span_id"] && span["trace_id"] == root["trace_id"];
            std::iter::once(root).chain(all.iter().filter(of_root)).cloned().collect()
        });
        !found.is_empty()
    })
    .await;
    found
}

fn request(quote: &Quote, headers: &[(&'static str, &str)]) -> tonic::Request<SignQuoteRequest> {
    let request = SignQuoteRequest {
        environment: "development".to_owned(),
        payload: quote.bytes(),
        ..SignQuoteRequest::default()
    };
    let mut request = tonic::Request::new(request);
    for (name, value) in headers {
        request.metadata_mut().insert(*name, value.parse().unwrap());
    }
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_a_span_in_its_callers_trace_with_a_child_for_what_it_waited_for() {
    let site = Site::new();
    let sink = Sink::running(&site, &[]);
    ship_to(&site, &format!("http://127.0.0.1:{}", sink.ports["grpc"]), "trace_ratio = 0.000001");
    let gateway = site.serve().await;
    let mut quotes = gateway.quotes("pricing").await.0;
    let parent = format!("00-{TRACE}-00f067aa0ba902b7-01");
    let quote = Quote::number(1);
    let headers = [("traceparent", parent.as_str()), ("x-correlation-id", "trace-1")];
    let answer = quotes.sign_quote(request(&quote, &headers)).await.unwrap();
    let spans = spans_of(&sink, "trace-1").await;
    let root = &spans[0];
    let told = format!("00-{TRACE}-{}-01", root["span_id"].as_str().unwrap());
    assert_eq!(answer.metadata().get("traceresponse").unwrap(), told.as_str());
    assert_eq!((&root["trace_id"], &root["parent_span_id"]), (&TRACE.into(), &"00f067aa0ba902b7".into()));
    assert_eq!(
        (&root["name"], &root["kind"]),
        (&"quotesign.v1.QuoteSigningService/SignQuote".into(), &"server".into())
    );
    let attributes = root["attributes"].as_object().unwrap();
    assert_eq!(attributes["rpc.response.status_code"], "OK");
    assert_eq!(attributes["quotesign.quote_id"], quote.0["quote_id"]);
    for stage in ["parse", "validate", "authorize", "canonicalise", "select", "admit", "verify"] {
        assert!(attributes[&format!("quotesign.stage.{stage}_ns")].as_u64().unwrap() > 0, "{stage}");
    }
    let names: Vec<_> = spans[1..].iter().map(|span| span["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["reserve", "sign", "commit"]);
    let at = |span: &Value, end: &str| span[end].as_u64().unwrap();
    let in_order =
        spans[1..].windows(2).all(|pair| at(&pair[0], "end_time_unix_nano") <= at(&pair[1], "start_time_unix_nano"));
    assert!(in_order && spans[1..].iter().all(|span| at(span, "end_time_unix_nano") <= at(root, "end_time_unix_nano")));

    // Its records and its log line say where it belongs, and so does what is shipped of them.
    let of_quote = |record: &&Value| record["context"]["quote_id"] == quote.0["quote_id"];
    let journal = site.journal();
    assert!(
        journal
            .iter()
            .filter(of_quote)
            .all(|record| record["context"]["trace_id"] == TRACE && record["context"]["span_id"] == root["span_id"])
    );
    until("its records", async || {
        let logs = sink.lines("log");
        logs.iter().filter(|log| log["trace_id"] == TRACE && log["span_id"] == root["span_id"]).count() == 2
    })
    .await;
    gateway.logged(TRACE).await;

    // A refusal is no error of the server, and says why.
    let headers = [("traceparent", parent.as_str()), ("x-correlation-id", "trace-2")];
    quotes.sign_quote(request(&Quote::number(0), &headers)).await.unwrap_err();
    let refused = spans_of(&sink, "trace-2").await.remove(0);
    assert_eq!(
        (&refused["attributes"]["error.type"], &refused["status_code"]),
        (&"SCHEMA_VIOLATION".into(), &"unset".into())
    );
    // A trace that its caller does not record is told on, and not recorded.
    let quiet = parent.replace("-01", "-00");
    let headers = [("traceparent", quiet.as_str()), ("x-correlation-id", "trace-3")];
    let answer = quotes.sign_quote(request(&Quote::number(3), &headers)).await.unwrap();
    let told = answer.metadata().get("traceresponse").unwrap().to_str().unwrap();
    assert!(told.starts_with(&format!("00-{TRACE}-")) && told.ends_with("-00"), "{told}");
    // What is no traceparent is none.
    let answer = quotes.sign_quote(request(&Quote::number(4), &[("traceparent", "00-nonsense")])).await.unwrap();
    assert!(answer.metadata().get("traceresponse").is_none());
    assert!(gateway.stop().success());
    assert!(sink.lines("span").iter().all(|span| span["attributes"]["quotesign.correlation_id"] != "trace-3"));
}

#[tokio::test(flavor = "multi_thread")]
async fn all_calls_are_recorded_where_the_config_says_so_and_a_collector_that_is_away_costs_none() {
    let site = Site::new();
    let mut sink = Sink::absent(&site, &[]);
    ship_to(&site, &format!("http://127.0.0.1:{}", sink.ports["grpc"]), "trace_ratio = 1.0, metrics_interval_s = 1");
    let gateway = site.serve().await;
    let quotes = gateway.quotes("pricing").await;
    for number in 1..=5 {
        quotes.sign(&Quote::number(number)).await.unwrap();
    }
    until("they are dropped and counted", async || {
        let text = gateway.operations("/metrics").await.1;
        let dropped = text.lines().find_map(|line| line.strip_prefix("quotesign_traces_dropped_total "));
        dropped.unwrap().parse::<u64>().unwrap() >= 5
    })
    .await;
    sink.start();
    quotes.sign(&Quote::number(6)).await.unwrap();
    until("a whole trace", async || spans(&sink).iter().filter(|span| span["name"] == "commit").count() == 1).await;

    // The metrics, by the names of `/metrics`.
    let mut points = BTreeMap::new();
    until("the metrics have come", async || {
        points = sink
            .lines("metric")
            .into_iter()
            .map(|metric| (metric["name"].as_str().unwrap().to_owned(), metric))
            .collect();
        let calls = points.get("quotesign_calls_total").and_then(|calls: &Value| calls["points"].as_array().cloned());
        calls.unwrap_or_default().iter().any(|point| {
            point["attributes"]["method"] == "quotesign.v1.QuoteSigningService/SignQuote"
                && point["value"] == json!(6.0)
        })
    })
    .await;
    let text = gateway.operations("/metrics").await.1;
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        let name = if kind == "counter" { format!("{name}_total") } else { name.to_owned() };
        let has_samples = text.lines().any(|line| {
            line.starts_with(&format!("{name}{{"))
                || line.starts_with(&format!("{name} "))
                || line.starts_with(&format!("{name}_sum"))
        });
        if has_samples {
            let expected = match kind {
                "counter" => "sum",
                kind => kind,
            };
            assert_eq!(points.get(&name).map(|metric| &metric["type"]), Some(&expected.into()), "{name}");
        }
    }
    let stages = points["quotesign_stage_duration_seconds"]["points"].as_array().unwrap();
    let sign = stages.iter().find(|point| point["attributes"]["stage"] == "sign").unwrap();
    assert!(
        sign["count"].as_u64().unwrap() >= 6
            && sign["buckets"].as_array().unwrap().len() == sign["bounds"].as_array().unwrap().len() + 1
    );
    assert!(gateway.stop().success());
    tokio::time::sleep(Duration::from_millis(1)).await;
}
