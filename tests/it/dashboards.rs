//! The dashboard and the Collector's config that go with the gateway: Grafana's schema, Prometheus, and a Collector say what they think
//! of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    collector::Collector,
    harness::{done, failed},
};

const HERE: &str = env!("CARGO_MANIFEST_DIR");

/// Metrics that the dashboard need not show: each with the reason.
const NOT_SHOWN: [(&str, &str); 0] = [];

pub fn read(path: &str) -> String {
    fs::read_to_string(format!("{HERE}/{path}")).unwrap()
}

pub fn tool(name: &str) -> Command {
    let mut command = Command::new(format!("{HERE}/.tools/{name}/{name}"));
    command.current_dir(format!("{HERE}/deploy/observability"));
    command
}

fn dashboard() -> Value {
    serde_json::from_str(&read("deploy/observability/dashboard.json")).unwrap()
}

fn check(dashboard: &Value) -> Output {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("dashboard.json");
    fs::write(&file, dashboard.to_string()).unwrap();
    tool("dashboard-check").arg(file).output().unwrap()
}

#[test]
fn the_dashboard_is_of_grafanas_schema_and_a_broken_one_is_told() {
    done(check(&dashboard()));
    let panel =
        dashboard()["panels"].as_array().unwrap().iter().position(|panel| panel["type"] == "timeseries").unwrap();
    let at = |pointer: &str| pointer.replace("PANEL", &format!("/panels/{panel}"));
    let broken = [
        ("/colour", json!(1), "unexpected field 'colour'"),
        ("/title", json!(1), "title: json"),
        ("/uid", json!(null), "uid: missing"),
        ("PANEL/colour", json!(1), "unexpected field 'colour'"),
        ("PANEL/id", json!(1), "1 stands twice"),
        ("PANEL/type", json!("graphs"), "\"graphs\" is not known"),
        ("PANEL/description", json!(""), "description: missing"),
        ("PANEL/gridPos/w", json!(25), "gridPos.w"),
        ("PANEL/options/legend/colour", json!(1), "unexpected field 'colour'"),
        ("PANEL/fieldConfig/defaults/colour", json!(1), "unexpected field 'colour'"),
        ("PANEL/fieldConfig/defaults/custom/colour", json!(1), "unexpected field 'colour'"),
        ("PANEL/targets/0/colour", json!(1), "unexpected field 'colour'"),
        ("PANEL/targets/0/datasource/type", json!("graphite"), "targets[0]"),
        ("/templating/list/0/colour", json!(1), "unexpected field 'colour'"),
    ];
    for (pointer, value, told) in broken {
        let mut dashboard = dashboard();
        let pointer = at(pointer);
        let (holder, field) = pointer.rsplit_once('/').unwrap();
        dashboard.pointer_mut(holder).unwrap()[field] = value;
        let said = failed(check(&dashboard), 1);
        assert!(said.contains(told), "{pointer}: {said}");
    }
}

/// What follows `before`, to the end of the word.
fn words<'a>(text: &'a str, before: &str) -> BTreeSet<&'a str> {
    let rest = text.split(before).skip(1);
    rest.map(|rest| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap()).collect()
}

/// The metrics of the pages, with their labels. A name has no `quotesign_` before it.
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let mut metrics = BTreeMap::new();
    let page = read("docs/metrics.md");
    for row in page.lines().filter(|line| line.starts_with("| `quotesign_")) {
        let cells: Vec<_> = row.split('|').collect();
        let named = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
        let name = named(cells[1]).remove(0).trim_start_matches("quotesign_").to_owned();
        metrics.insert(name, named(cells[3]).into_iter().collect());
    }
    assert!(metrics.len() > 15);
    let page = read("docs/key-sets.md");
    for name in words(&page, "| `quotesign_").into_iter().filter(|name| name.starts_with("jwks_")) {
        metrics.insert(name.to_owned(), BTreeSet::new());
    }
    metrics
}

/// Each query of each panel: where it stands, the expression, and the legend.
fn queries() -> Vec<(String, String, String)> {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().unwrap();
    let within = panels.iter().flat_map(|row| row["panels"].as_array().into_iter().flatten());
    let all = panels.iter().chain(within).flat_map(|panel| {
        let targets = panel["targets"].as_array().into_iter().flatten();
        targets.map(|target| {
            let text = |field: &str| target[field].as_str().unwrap().to_owned();
            (panel["title"].as_str().unwrap().to_owned(), text("expr"), text("legendFormat"))
        })
    });
    all.collect()
}

#[test]
fn the_dashboard_shows_each_metric_and_asks_only_for_metrics_and_labels_that_there_are() {
    let (documented, queries) = (documented(), queries());
    let watched = read("src/cli/jwks/watch.rs");
    let watched = words(&watched, "\"");
    let known = |name: &str| {
        let of_watch = name.strip_prefix("jwks_").map(|name| name.trim_end_matches("_total"));
        documented.contains_key(name) || of_watch.is_some_and(|name| watched.contains(name))
    };
    let mut shown = BTreeSet::new();
    for (panel, expr, legend) in &queries {
        let names: Vec<_> =
            words(expr, "quotesign_").into_iter().map(|name| name.trim_end_matches("_bucket")).collect();
        assert_eq!(names.iter().find(|name| !known(name)), None, "{panel}");
        let of_metrics = names.iter().filter_map(|name| documented.get(*name)).flatten().map(String::as_str);
        let labels: BTreeSet<&str> = of_metrics.chain(["environment", "instance", "le"]).collect();
        let lists = expr.split("by (").skip(1).map(|rest| rest.split(')').next().unwrap());
        let grouped: BTreeSet<&str> = lists.flat_map(|list| list.split(", ")).collect();
        let selectors = expr.split('{').skip(1).map(|rest| rest.split('}').next().unwrap());
        let selected =
            selectors.flat_map(|selector| selector.split(", ")).map(|one| one.split(['=', '!']).next().unwrap());
        let unknown = selected.chain(grouped.iter().copied()).find(|label| !labels.contains(label));
        assert_eq!(unknown, None, "{panel}: {expr}");
        assert_eq!(words(legend, "{{").into_iter().find(|label| !grouped.contains(label)), None, "{panel}: {legend}");
        shown.extend(names.into_iter().map(str::to_owned));
    }
    let missing =
        documented.keys().filter(|name| !shown.contains(*name) && NOT_SHOWN.iter().all(|(not, _)| not != name));
    assert_eq!(missing.collect::<Vec<_>>(), Vec::<&String>::new(), "not on the dashboard");
    assert_eq!(NOT_SHOWN.iter().find(|(name, _)| shown.contains(*name)), None);
}

#[test]
fn prometheus_can_read_each_query_of_the_dashboard() {
    let rules: Vec<Value> = queries()
        .iter()
        .enumerate()
        .map(|(at, (_, expr, _))| {
            let expr = expr.replace("$__rate_interval", "5m").replace("$environment", ".*").replace("$instance", ".*");
            assert!(!expr.contains('$'), "{expr}");
            json!({ "record": format!("query:{at}"), "expr": expr })
        })
        .collect();
    assert!(rules.len() > 40);
    let dir = TempDir::new().unwrap();
    // JSON is YAML.
    let told = |rules: &[Value]| {
        let file = dir.path().join("rules.yaml");
        fs::write(&file, json!({ "groups": [{ "name": "dashboard", "rules": rules }] }).to_string()).unwrap();
        tool("promtool").args(["check", "rules"]).arg(file).output().unwrap()
    };
    assert!(done(told(&rules)).contains(&format!("SUCCESS: {} rules found", rules.len())));
    assert!(!told(&[json!({ "record": "query:1", "expr": "sum by kid (a)" })]).status.success());
}

#[test]
fn the_collectors_config_is_valid_and_a_broken_one_is_told() {
    let validate = |file: &Path| tool("otelcol").arg("validate").arg("--config").arg(file).output().unwrap();
    done(validate(Path::new("collector.yaml")));
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("collector.yaml");
    for (right, wrong) in [
        ("exporters: [file/audit]", "exporters: [file/other]"),
        ("max_backups: 0", "max_backup: 0"),
        ("storage: file_storage/audit", "storages: file_storage/audit"),
        ("fsync: true", "fsync: always"),
    ] {
        let config = read("deploy/observability/collector.yaml");
        assert!(config.contains(right), "{right}");
        fs::write(&file, config.replace(right, wrong)).unwrap();
        assert!(!validate(&file).status.success(), "{wrong}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_collector_said_ok_to_outlives_it() {
    let collector = Collector::serve(|config| config).await;
    assert_eq!(collector.sent("record-1"), "200");
    assert!(collector.killed_with("record-1"));

    // What the comments say of the other ways.
    let to = |exporter: &'static str| {
        move |config: String| config.replace("exporters: [file/audit]", &format!("exporters: [{exporter}]"))
    };
    let collector = Collector::serve(to("otlphttp/audit")).await;
    assert_eq!(collector.sent("record-2"), "503", "nobody has it");
    drop(collector);
    let queued = |config: String| {
        let config = to("otlphttp/audit_queued")(config);
        config.replace("extensions: [health_check]", "extensions: [health_check, file_storage/audit]")
    };
    let collector = Collector::serve(queued).await;
    assert_eq!(collector.sent("record-3"), "200", "it is in the queue on disk");
    assert!(collector.killed_with("record-3"));
    let buffered = |config: String| config.replacen("    rotation: { max_megabytes: 100, max_backups: 0 }\n", "", 1);
    let collector =
        Collector::serve(|config| buffered(config).replace("audit.jsonl", "audit.jsonl\n    flush_interval: 1h")).await;
    assert_eq!(collector.sent("record-4"), "200");
    assert!(!collector.killed_with("record-4"), "it was in memory alone");
}
