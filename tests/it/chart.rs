//! The Helm chart, rendered by the real helm for each set of values of `helm/quotesign/ci`: what Kubernetes, the projects whose resources it
//! makes, and the gateway itself say of it, and what it refuses.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write as _,
    os::unix::{
        fs::{PermissionsExt as _, symlink},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use quotesign::proto::{HaltReach, HaltRequest, halt_reach::To};
use rcgen::CertificateParams;
use rustix::process::geteuid;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    harness::{Authority, PARTNER, Site, done, failed, quotesign, toml, until},
    server::{Cluster, Database},
};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/helm/quotesign");

/// The name of a set of values, and its file.
fn sets() -> BTreeMap<String, PathBuf> {
    let files = fs::read_dir(format!("{CHART}/ci")).unwrap().map(|entry| entry.unwrap().path());
    let named = files.map(|file| {
        let name = file.file_name().unwrap().to_str().unwrap().strip_suffix("-values.yaml").unwrap().to_owned();
        (name, file)
    });
    let sets: BTreeMap<_, _> = named.collect();
    assert!(sets.len() >= 8, "{sets:?}");
    sets
}

/// helm's answer to a command on the chart, for a set of values and further values over it.
fn helm(command: &[&str], set: &str, over: &Value) -> Output {
    helm_on(CHART, command, set, over)
}

fn helm_on(chart: &str, command: &[&str], set: &str, over: &Value) -> Output {
    let home = TempDir::new().unwrap();
    let over_file = home.path().join("over.json");
    fs::write(&over_file, over.to_string()).unwrap();
    let mut helm = Command::new(format!("{ROOT}/.tools/helm/helm"));
    helm.args(command).args([chart, "--namespace", "pay"]);
    helm.arg("--values").arg(format!("{CHART}/ci/{set}-values.yaml"));
    if set == "sqlite-softhsm-dev" {
        // As docs/deployment.md has it: the bundle's files come from the bundle.
        let bundle = home.path().join("bundle.json");
        let values = Command::new(format!("{ROOT}/scripts/policy-values"));
        fs::write(&bundle, done(with_argument(values, &format!("{ROOT}/examples/policy-development")))).unwrap();
        helm.arg("--values").arg(bundle);
    }
    // Nothing of whoever runs the test is read or written.
    helm.arg("--values").arg(over_file).env("HOME", home.path()).env_remove("KUBECONFIG");
    for folder in ["CACHE", "CONFIG", "DATA"] {
        helm.env(format!("HELM_{folder}_HOME"), home.path().join(folder));
    }
    helm.output().unwrap()
}

fn with_argument(mut command: Command, argument: &str) -> Output {
    command.arg(argument).output().unwrap()
}

fn rendered(set: &str, over: &Value) -> String {
    done(helm(&["template", "gw"], set, over))
}

/// What chart-check says of manifests: all of them, where each holds.
fn checked(manifests: &str) -> Output {
    let mut check = Command::new(format!("{ROOT}/.tools/chart-check/chart-check"));
    check.arg(format!("{ROOT}/.tools/chart-check/definitions"));
    let mut check = check.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // They fit the pipe's buffer or are read before anything is printed.
    check.stdin.take().unwrap().write_all(manifests.as_bytes()).unwrap();
    check.wait_with_output().unwrap()
}

fn documents(set: &str, over: &Value) -> Vec<Value> {
    serde_json::from_str(&done(checked(&rendered(set, over)))).unwrap()
}

/// The documents of this kind.
fn of_kind<'d>(documents: &'d [Value], kind: &str) -> Vec<&'d Value> {
    documents.iter().filter(|document| document["kind"] == kind).collect()
}

fn named<'d>(documents: &'d [Value], kind: &str, name: &str) -> &'d Value {
    let found = of_kind(documents, kind).into_iter().find(|document| document["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind} {name}"))
}

/// The template of the gateway's pods.
fn pod(documents: &[Value]) -> &Value {
    let kinds = ["StatefulSet", "Deployment"].map(|kind| of_kind(documents, kind));
    let [workload] = kinds.concat()[..] else { panic!("one workload is rendered") };
    &workload["spec"]["template"]
}

/// Every pod's spec of the documents, with the kind of what makes it.
fn pods(documents: &[Value]) -> Vec<(&str, &Value)> {
    let spec = |document: &'_ Value| match document["kind"].as_str()? {
        "Pod" => Some("/spec"),
        "StatefulSet" | "Deployment" | "Job" => Some("/spec/template/spec"),
        _ => None,
    };
    let found =
        documents.iter().filter_map(|document| Some((document["kind"].as_str()?, document.pointer(spec(document)?)?)));
    found.collect()
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn containers(spec: &Value) -> impl Iterator<Item = &Value> {
    items(&spec["initContainers"]).chain(items(&spec["containers"]))
}

/// What kubernetes-validate says of built-in kinds, each in a file of its own.
fn validated(documents: &[Value]) -> Output {
    let home = TempDir::new().unwrap();
    let mut validate = Command::new(format!("{ROOT}/.tools/py/bin/kubernetes-validate"));
    validate.args(["--strict", "--quiet"]);
    let built_in = documents.iter().filter(|document| {
        let version = document["apiVersion"].as_str().unwrap();
        !version.starts_with("monitoring.coreos.com/") && !version.starts_with("gateway.networking.k8s.io/")
    });
    for (at, document) in built_in.enumerate() {
        let file = home.path().join(format!("{at}.yaml"));
        fs::write(&file, document.to_string()).unwrap();
        validate.arg(file);
    }
    validate.output().unwrap()
}

#[test]
fn each_set_of_values_passes_helm_kubernetes_and_the_projects_whose_resources_it_makes() {
    let mut kinds = BTreeSet::new();
    let mut all = Vec::new();
    for set in sets().keys() {
        let linted = done(helm(&["lint", "--strict"], set, &json!({})));
        assert!(linted.contains("0 chart(s) failed") && !linted.contains("[WARNING]"), "{set}: {linted}");
        let documents = documents(set, &json!({}));
        kinds.extend(documents.iter().map(|document| document["kind"].as_str().unwrap().to_owned()));
        all.extend(documents);
    }
    done(validated(&all));
    let wanted = "BackendTLSPolicy ConfigMap Deployment HTTPRoute HorizontalPodAutoscaler Ingress Job NetworkPolicy Pod \
                  PodDisruptionBudget PrometheusRule Service ServiceAccount ServiceMonitor StatefulSet TLSRoute";
    assert_eq!(kinds.into_iter().collect::<Vec<_>>().join(" "), wanted);
}

#[test]
fn what_judges_the_manifests_sees_a_field_that_is_not_known_wrong_or_missing() {
    let documents = documents("postgres-kms-irsa", &json!({}));
    for (kind, pointer, value, told) in [
        ("ServiceMonitor", "/spec/endpoints/0/intervall", json!("15s"), "intervall: not known"),
        ("ServiceMonitor", "/spec/endpoints/0/interval", json!("often"), "spec.endpoints[0].interval"),
        ("PrometheusRule", "/spec/groups/0/rules/0/for", json!(5), "for"),
    ] {
        let broken = with(of_kind(&documents, kind)[0], pointer, value);
        let said = failed(checked(&broken.to_string()), 1);
        assert!(said.contains(told), "{said}");
    }
    let routes = self::documents("gateway-http", &json!({}));
    let broken = with(of_kind(&routes, "HTTPRoute")[0], "/spec/rules/0/matches/0/path/value", json!("jwks.json"));
    let said = failed(checked(&broken.to_string()), 1);
    assert!(said.contains("must be an absolute path"), "{said}");
    let unknown = failed(checked("{apiVersion: monitoring.coreos.com/v1, kind: PodMonitor}"), 1);
    assert!(unknown.contains("no definition of it"), "{unknown}");
    for (pointer, value) in [
        ("/spec/template/spec/containers/0/livenessprobe", json!({})),
        ("/spec/replicas", json!("three")),
        ("/spec/selector", json!(null)),
    ] {
        let broken = with(of_kind(&documents, "StatefulSet")[0], pointer, value);
        let output = validated(&[broken]);
        assert!(!output.status.success(), "{pointer}");
    }
}

/// A copy in which the value at `pointer` is another one, or is missing where that is null.
fn with(document: &Value, pointer: &str, value: Value) -> Value {
    let mut document = document.clone();
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    let parent = document.pointer_mut(parent).unwrap().as_object_mut().unwrap();
    if value.is_null() {
        parent.remove(name)
    } else {
        parent.insert(name.to_owned(), value)
    };
    document
}

/// What the chart takes as given: Secrets and such, claims and images.
struct Given {
    authority: Authority,
    home: TempDir,
}

impl Given {
    fn new() -> Self {
        let (authority, home) = (Authority::new(), TempDir::new().unwrap());
        let names = ["localhost", "127.0.0.1"].map(str::to_owned);
        authority.issue(home.path(), "server", CertificateParams::new(names).unwrap());
        Self { authority, home }
    }

    /// The value of a key of a Secret, or of a config map, that the chart does not make.
    fn value(&self, object: &str, key: &str) -> Vec<u8> {
        let read = |name: &str| fs::read(self.home.path().join(name)).unwrap();
        match (object, key) {
            (_, "tls.crt") => read("server.pem"),
            (_, "tls.key") => read("server.key"),
            (_, "ca.crt" | "bundle.pem") => self.authority.pem.clone().into(),
            ("quotesign-reference-key", "key") => vec![7; 32],
            ("quotesign-collector-headers", "headers") => b"authorization: none\n".into(),
            ("quotesign-pin", "pin" | "pin-b") | ("quotesign-ledger", "password" | "postgres-password") => {
                b"none\n".into()
            }
            ("quotesign-policy", "quote-v1.schema.json") => self.policy("production", "schemas/quote-v1.schema.json"),
            ("quotesign-policy", key) if key.ends_with(".jwk.json") => {
                self.policy("production", &format!("keys/{key}"))
            }
            ("quotesign-policy", key) => self.policy("production", key),
            ("softhsm-conf", "softhsm2.conf") => b"directories.tokendir = /var/lib/softhsm\n".into(),
            other => panic!("the chart asks for {other:?}"),
        }
    }

    /// A file of a bundle of this kind.
    fn policy(&self, kind: &str, path: &str) -> Vec<u8> {
        fs::read(self.bundle(kind).join(path)).unwrap()
    }

    /// The bundle of an environment; `kms` is production's with all of its keys in AWS KMS.
    fn bundle(&self, kind: &str) -> PathBuf {
        let home = self.home.path().join(kind);
        if home.exists() {
            return home;
        }
        let from = if kind == "production" || kind == "kms" { "policy" } else { "examples/policy-development" };
        done(Command::new("cp").arg("-r").arg(format!("{ROOT}/{from}")).arg(&home).output().unwrap());
        let file = home.join("policy.toml");
        let mut policy: toml_edit::DocumentMut = fs::read_to_string(&file).unwrap().parse().unwrap();
        if kind == "sandbox" {
            policy["environment"] = toml("'sandbox'");
            policy["publication"]["propagation_s"] = toml("300");
            policy["two_callers"]["acts"] = toml("[]");
        }
        if kind == "kms" {
            for (at, key) in policy["keys"].as_array_of_tables_mut().unwrap().iter_mut().enumerate() {
                key["signer"] = toml("'kms-eu'");
                let id = format!("0000000{at}-12ab-34cd-56ef-1234567890ab");
                key["locator"] = toml(&format!("'arn:aws:kms:eu-central-1:111122223333:key/{id}'"));
            }
        }
        fs::write(&file, policy.to_string()).unwrap();
        done(quotesign().args(["policy", "digest", "--write"]).arg(&home).output().unwrap());
        home
    }

    /// Makes the files that a container would see, as the kubelet would, below `root`.
    fn lay_out(&self, root: &Path, documents: &[Value], spec: &Value, kind: &str) {
        for mount in items(&spec["containers"][0]["volumeMounts"]) {
            assert_eq!(mount["subPath"], json!(null), "the kubelet never renews a single file");
            let name = &mount["name"];
            let place = root.join(mount["mountPath"].as_str().unwrap().trim_start_matches('/'));
            fs::create_dir_all(&place).unwrap();
            let Some(volume) = items(&spec["volumes"]).find(|volume| volume["name"] == *name) else {
                assert!(*name == "ledger" || *name == "anchor", "{name} is a claim of the workload");
                continue;
            };
            let object = volume.pointer("/configMap/name").or_else(|| volume.pointer("/secret/secretName"));
            let Some(object) = object.and_then(Value::as_str) else {
                if *name == "policy" {
                    let path = if volume.get("image").is_some() { place.join("policy") } else { place };
                    done(Command::new("cp").arg("-rT").arg(self.bundle(kind)).arg(path).output().unwrap());
                }
                continue;
            };
            let own = of_kind(documents, "ConfigMap").into_iter().find(|map| map["metadata"]["name"] == object);
            let value = |key: &str| match own {
                Some(own) => own["data"][key].as_str().unwrap_or_else(|| panic!("{object} has no {key}")).into(),
                None => self.value(object, key),
            };
            let chosen = volume.pointer("/configMap/items").or_else(|| volume.pointer("/secret/items"));
            let files: Vec<(String, Vec<u8>)> = match (chosen, own) {
                (Some(chosen), _) => items(chosen)
                    .map(|item| (item["path"].as_str().unwrap().into(), value(item["key"].as_str().unwrap())))
                    .collect(),
                (None, Some(own)) => {
                    own["data"].as_object().unwrap().keys().map(|key| (key.clone(), value(key))).collect()
                }
                (None, None) => vec![("softhsm2.conf".to_owned(), value("softhsm2.conf"))],
            };
            for (path, bytes) in files {
                let file = place.join(path);
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(file, bytes).unwrap();
            }
        }
    }
}

/// A server that speaks TLS with a certificate of `given`'s CA, and an empty database of it.
fn database(given: &Given) -> (Cluster, Database) {
    let mut cluster = Cluster::new(&[]);
    let put = |name: &str, from: &str| cluster.put(name, &fs::read_to_string(given.home.path().join(from)).unwrap());
    let settings =
        [("ssl_cert_file", put("server.pem", "server.pem")), ("ssl_key_file", put("server.key", "server.key"))];
    cluster.crash();
    let settings = settings.map(|(name, file)| format!("{name}={}", file.display()));
    cluster.start(&["ssl=on", &settings[0], &settings[1]]);
    let database = cluster.empty();
    (cluster, database)
}

#[test]
fn what_the_chart_writes_is_a_config_that_the_gateway_takes() {
    let given = Given::new();
    let (cluster, _) = database(&given);
    for set in sets().keys() {
        let documents = documents(set, &json!({}));
        let (root, other) = (TempDir::new().unwrap(), TempDir::new_in("/dev/shm").unwrap());
        let database = cluster.empty();
        let spec = &pod(&documents)["spec"];
        let config = named(&documents, "ConfigMap", "gw-quotesign")["data"]["quotesign.toml"].as_str().unwrap();
        let environment = config.lines().next().unwrap().split('"').nth(1).unwrap();
        // Another volume, which production wants.
        fs::create_dir_all(root.path().join("var/lib/quotesign")).unwrap();
        symlink(other.path(), root.path().join("var/lib/quotesign/anchor")).unwrap();
        let kind = if config.contains("[[signers]]") { environment } else { "kms" };
        given.lay_out(root.path(), &documents, spec, kind);
        let file = root.path().join("etc/quotesign/config/quotesign.toml");
        let here = |text: &str| {
            let at = |folder: &str| format!("\"{}{folder}", root.path().display());
            text.replace("\"/etc/quotesign/", &at("/etc/quotesign/")).replace("\"/var/lib/", &at("/var/lib/"))
        };
        let moved = here(&fs::read_to_string(&file).unwrap());
        assert!(moved.matches(root.path().to_str().unwrap()).count() >= 9, "{moved}");
        fs::write(&file, moved).unwrap();
        let run = |args: &[&str]| {
            let mut command = quotesign();
            if config.contains("[ledger.postgres]") {
                let address = format!("postgresql://postgres@127.0.0.1:{}/{}", database.port, database.name);
                command.env("QUOTESIGN__LEDGER__POSTGRES__ADDRESS", address);
                command.env("QUOTESIGN__LEDGER__POSTGRES__HIGH_AVAILABILITY", "false");
            }
            command.args(args).arg("--config").arg(&file).output().unwrap()
        };
        // A ledger that is not there is the last thing that is found.
        let told = failed(run(&["config", "check"]), 2);
        assert!(told.contains("quotesign ledger migrate"), "{set}: {told}");
        done(run(&["ledger", "migrate"]));
        let told = done(run(&["config", "check"]));
        assert!(told.contains("quotesign.toml: good"), "{set}: {told}");
        // And with what new pods run before, again and again.
        let adopts = items(&spec["initContainers"]).find(|container| container["name"] == "adopt-anchor");
        assert_eq!(adopts.is_some(), set.starts_with("postgres-kms") || set.starts_with("postgres-pkcs11"), "{set}");
        for _ in 0..adopts.map_or(0, |_| 2) {
            done(run(&["ledger", "anchor", "adopt", "--if-missing", "--reason", "a test"]));
            assert!(other.path().join("ledger.anchor").exists());
        }
    }
}

#[test]
fn a_bundle_that_must_be_signed_and_a_key_of_checkpoints_are_where_the_config_says() {
    let jwk = fs::read_to_string(format!("{ROOT}/policy/keys/acme-quotes-2026-06.jwk.json")).unwrap();
    let given = Given::new();
    let over = json!({
        "policy": { "key": jwk },
        "audit": { "checkpoint": {
            "signer": "hsm-primary", "locator": "pkcs11:object=checkpoints", "publicKey": jwk, "earlierKeys": [jwk], "interval_s": 30,
        } },
    });
    let documents = documents("pkcs11-init-image", &over);
    let root = TempDir::new().unwrap();
    given.lay_out(root.path(), &documents, &pod(&documents)["spec"], "sandbox");
    let file = root.path().join("etc/quotesign/config/quotesign.toml");
    let text = fs::read_to_string(&file).unwrap();
    for name in ["policy-key", "checkpoint", "checkpoint-earlier-0"] {
        assert!(text.contains(&format!("/etc/quotesign/config/{name}.jwk.json")), "{text}");
        assert_eq!(fs::read_to_string(file.with_file_name(format!("{name}.jwk.json"))).unwrap(), jwk);
    }
    assert!(text.contains("[audit.checkpoint]") && text.contains("interval_s = 30"), "{text}");
    fs::write(&file, text.replace("\"/etc/quotesign/", &format!("\"{}/etc/quotesign/", root.path().display())))
        .unwrap();
    let told = failed(quotesign().args(["config", "check", "--config"]).arg(&file).output().unwrap(), 2);
    assert!(told.contains("bundle.jws"), "{told}");
}

#[test]
fn every_pod_runs_without_privileges_and_writes_only_where_it_must() {
    for set in sets().keys() {
        let documents = documents(set, &json!({}));
        for (kind, spec) in pods(&documents) {
            let context = &spec["securityContext"];
            assert_eq!(context["runAsNonRoot"], true, "{set} {kind}");
            assert_eq!(context["seccompProfile"]["type"], "RuntimeDefault", "{set} {kind}");
            assert_eq!(spec["automountServiceAccountToken"], false, "{set} {kind}");
            assert!(containers(spec).count() > 0);
            for container in containers(spec) {
                let (name, context) = (&container["name"], &container["securityContext"]);
                assert_eq!(context["allowPrivilegeEscalation"], false, "{set} {name}");
                assert_eq!(context["privileged"], false, "{set} {name}");
                assert_eq!(context["readOnlyRootFilesystem"], true, "{set} {name}");
                assert_eq!(context["capabilities"], json!({ "drop": ["ALL"] }), "{set} {name}");
                assert!(container["resources"]["limits"]["memory"].is_string(), "{set} {name}");
                for mount in items(&container["volumeMounts"]) {
                    assert_eq!(mount["subPath"], json!(null), "{set} {name}");
                    let is_file = mount["mountPath"].as_str().unwrap().starts_with("/etc/");
                    assert!(!is_file || mount["readOnly"] == true, "{set} {name}: {mount}");
                }
            }
            // A Secret by value would be in the release's own Secret, and in whoever's values file.
            assert!(of_kind(&documents, "Secret").is_empty());
        }
    }
}

#[test]
fn a_pod_is_given_the_time_it_needs_and_is_asked_what_its_callers_need_to_know() {
    let grace =
        |over: &Value| pod(&documents("postgres-kms-irsa", over))["spec"]["terminationGracePeriodSeconds"].clone();
    assert_eq!(grace(&json!({})), 58);
    assert_eq!(
        grace(&json!({ "drain": { "grace_ms": 500, "timeout_ms": 60001 }, "limits": { "deadline_ms_max": 2000 } })),
        83
    );
    assert_eq!(grace(&json!({ "terminationGracePeriodSeconds": 120 })), 120);
    let documents = documents("postgres-kms-irsa", &json!({}));
    let gateway = &pod(&documents)["spec"]["containers"][0];
    assert_eq!(gateway["readinessProbe"]["httpGet"], json!({ "path": "/readyz?for=signing", "port": "operations" }));
    assert_eq!(gateway["livenessProbe"]["httpGet"]["path"], "/livez");
    // Key sets and operators need a gateway also where it cannot sign; callers do not.
    let of_key_sets = self::documents("postgres-kms-irsa", &json!({ "readiness": "jwks" }));
    for (service, always, by_key_sets) in [
        ("grpc", false, false),
        ("peers", false, false),
        ("admin", true, true),
        ("admin-peers", true, true),
        ("jwks", true, false),
        ("operations", true, true),
    ] {
        let name = format!("gw-quotesign-{service}");
        let service = named(&documents, "Service", &name);
        assert_eq!(service["spec"]["publishNotReadyAddresses"] == true, always, "{service}");
        // What readiness is about is served by pods that are ready alone: others would refuse.
        let service = named(&of_key_sets, "Service", &name);
        assert_eq!(service["spec"]["publishNotReadyAddresses"] == true, by_key_sets, "{service}");
        let ports: BTreeSet<_> = items(&gateway["ports"]).map(|port| port["name"].as_str().unwrap()).collect();
        assert!(ports.contains(service["spec"]["ports"][0]["targetPort"].as_str().unwrap()), "{service}");
    }
    let config = named(&documents, "ConfigMap", "gw-quotesign")["data"]["quotesign.toml"].as_str().unwrap();
    for (name, number) in [("grpc", 8443), ("admin", 8444), ("jwks", 8445), ("operations", 9464)] {
        assert!(items(&gateway["ports"]).any(|port| port["name"] == name && port["containerPort"] == number));
        let section = config.split_once(&format!("[{name}]\n")).unwrap().1;
        assert!(section.starts_with(&format!("listen = \"0.0.0.0:{number}\"")), "{section}");
    }
    // Each gateway has a name by which operators reach it and no other, whose certificate the page asks for.
    let by_name = named(&documents, "Service", "gw-quotesign-admin-peers");
    assert_eq!(by_name["spec"]["clusterIP"], "None");
    assert_eq!(of_kind(&documents, "StatefulSet")[0]["spec"]["serviceName"], by_name["metadata"]["name"]);
    let page = fs::read_to_string(format!("{ROOT}/docs/deployment.md")).unwrap();
    for service in ["grpc", "peers", "jwks", "admin"] {
        assert!(page.split_once("dnsNames:").unwrap().1.contains(&format!("gw-quotesign-{service}.pay.svc")));
    }
    assert!(page.contains("\"*.gw-quotesign-admin-peers.pay.svc\"]"));
    let listens = pod_config(&json!({ "listenAddress": "::" }));
    assert!(listens.contains("listen = \"[::]:8443\""), "{listens}");
}

fn pod_config(over: &Value) -> String {
    let documents = documents("minimal", over);
    named(&documents, "ConfigMap", "gw-quotesign")["data"]["quotesign.toml"].as_str().unwrap().to_owned()
}

/// Of each address so many connections are taken: behind a node's, many clients would be one.
#[test]
fn a_balancer_keeps_the_addresses_of_clients_unless_it_is_told_otherwise() {
    let policy = |over: &Value, service: &str| {
        let documents = documents("postgres-kms-irsa", over);
        named(&documents, "Service", &format!("gw-quotesign-{service}"))["spec"]["externalTrafficPolicy"].clone()
    };
    assert_eq!([policy(&json!({}), "jwks"), policy(&json!({}), "grpc")], [json!("Local"), json!(null)]);
    let over = json!({ "grpc": { "service": { "type": "LoadBalancer", "externalTrafficPolicy": "Cluster" } } });
    assert_eq!([policy(&over, "jwks"), policy(&over, "grpc")], [json!("Local"), json!("Cluster")]);
}

#[test]
fn a_ledger_in_a_file_has_one_gateway_and_its_anchor_is_on_another_volume() {
    let documents = documents("minimal", &json!({}));
    let workload = of_kind(&documents, "StatefulSet")[0];
    assert_eq!(workload["spec"]["replicas"], 1);
    let claims = workload["spec"]["volumeClaimTemplates"].as_array().unwrap();
    let claim = |at: usize| (claims[at]["metadata"]["name"].clone(), claims[at]["spec"]["accessModes"].clone());
    assert_eq!(claim(0), (json!("ledger"), json!(["ReadWriteOncePod"])));
    assert_eq!(claim(1), (json!("anchor"), json!(["ReadWriteOnce"])));
    assert_eq!(workload["spec"]["persistentVolumeClaimRetentionPolicy"]["whenDeleted"], "Retain");
    // A claim of the pod's own cannot be had by a hook: the pod migrates it before it serves.
    assert!(of_kind(&documents, "Job").is_empty());
    let migrate = &pod(&documents)["spec"]["initContainers"][0];
    assert_eq!(migrate["args"], json!(["ledger", "migrate", "--config", "/etc/quotesign/config/quotesign.toml"]));
    // What it sorts has a place that can be written, and is as large as the ledger asks for.
    assert_eq!(migrate["env"], json!([{"name": "SQLITE_TMPDIR", "value": "/var/lib/quotesign/ledger"}]));
    assert!(items(&migrate["volumeMounts"]).any(|mount| mount["mountPath"] == migrate["env"][0]["value"]));
    assert!(items(&migrate["volumeMounts"]).any(|mount| mount["name"] == "ledger"));
}

#[test]
fn a_shared_ledger_is_migrated_by_a_hook_with_what_it_needs_and_nothing_else() {
    let given = Given::new();
    let documents = documents("postgres-pkcs11-sidecar", &json!({}));
    let job = named(&documents, "Job", "gw-quotesign-migrate");
    for (object, weight) in [(job, 0), (named(&documents, "ConfigMap", "gw-quotesign-migrate"), -5)] {
        let annotations = &object["metadata"]["annotations"];
        assert_eq!(annotations["helm.sh/hook"], "pre-install,pre-upgrade");
        assert_eq!(annotations["helm.sh/hook-weight"], weight.to_string());
    }
    let spec = &job["spec"]["template"]["spec"];
    // The service account comes with the chart, after its hooks.
    assert_eq!(spec["serviceAccountName"], json!(null));
    let root = TempDir::new().unwrap();
    given.lay_out(root.path(), &documents, spec, "production");
    let mut mounted: Vec<_> = items(&spec["volumes"]).map(|volume| volume["name"].as_str().unwrap()).collect();
    mounted.sort_unstable();
    assert_eq!(mounted, ["ca-postgres", "config", "tls-postgres"]);
    let (cluster, database) = database(&given);
    let file = root.path().join("etc/quotesign/config/quotesign.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("\"/etc/quotesign/", &format!("\"{}/etc/quotesign/", root.path().display())))
        .unwrap();
    let mut migrate = quotesign();
    let address = format!("postgresql://postgres@127.0.0.1:{}/{}", cluster.port, database.name);
    migrate.env("QUOTESIGN__LEDGER__POSTGRES__ADDRESS", address);
    let told = done(migrate.args(["ledger", "migrate", "--config"]).arg(&file).output().unwrap());
    assert!(told.contains("ready for production"), "{told}");
}

#[test]
fn modules_come_by_image_volume_or_sidecar_and_the_module_s_path_is_on_what_is_mounted() {
    for (set, module, how) in [
        ("sqlite-softhsm-dev", "softhsm", "persistentVolumeClaim"),
        ("pkcs11-init-image", "cloudhsm", "emptyDir"),
        ("postgres-deployment", "luna", "csi"),
    ] {
        let documents = documents(set, &json!({}));
        let spec = &pod(&documents)["spec"];
        let name = format!("module-{module}");
        let volume = items(&spec["volumes"]).find(|volume| volume["name"] == name).unwrap();
        assert!(volume.get(how).is_some(), "{volume}");
        let mount = items(&spec["containers"][0]["volumeMounts"]).find(|mount| mount["name"] == name).unwrap();
        assert_eq!(mount["readOnly"], true);
        let config = named(&documents, "ConfigMap", "gw-quotesign")["data"]["quotesign.toml"].as_str().unwrap();
        assert!(config.contains(&format!("module = \"{}/", mount["mountPath"].as_str().unwrap())), "{config}");
        let copies = items(&spec["initContainers"]).any(|container| container["name"] == name);
        assert_eq!(copies, how == "emptyDir", "{set}");
    }
    for set in ["pkcs11-init-image", "postgres-pkcs11-sidecar"] {
        let documents = documents(set, &json!({}));
        let spec = &pod(&documents)["spec"];
        let copies = items(&spec["initContainers"]).find(|one| one["command"][0] == "/bin/cp").unwrap();
        copied_as_the_pod_s_user(spec, copies);
    }
    let documents = documents("postgres-pkcs11-sidecar", &json!({}));
    let daemon = items(&pod(&documents)["spec"]["initContainers"]).find(|one| one["name"] == "vendor-daemon").unwrap();
    assert_eq!(daemon["restartPolicy"], "Always", "it begins before the gateway and ends after it");
}

/// Runs a command that copies a module, as the pod's user, into a directory as the kubelet makes it: root's, and anybody may write
/// there. Only root can try that; anybody sees whether it would keep the owner or the times, which that user may not set there.
fn copied_as_the_pod_s_user(spec: &Value, container: &Value) {
    let keeps = |option: &&str| match option.strip_prefix("--") {
        Some(long) => long == "archive" || long.starts_with("preserve"),
        None => option.starts_with('-') && option.contains(['a', 'p']),
    };
    let options = items(&container["command"]).map(|argument| argument.as_str().unwrap());
    assert_eq!(options.filter(keeps).collect::<Vec<_>>(), [""; 0]);
    if !geteuid().is_root() {
        println!("not root: that the module is copied is not tried");
        return;
    }
    let home = TempDir::new().unwrap();
    let (from, to) = (home.path().join("client"), home.path().join("module"));
    fs::create_dir_all(from.join("lib")).unwrap();
    fs::create_dir(&to).unwrap();
    fs::write(from.join("lib/module.so.1"), "code").unwrap();
    symlink("module.so.1", from.join("lib/module.so")).unwrap();
    for (path, mode) in [(home.path(), 0o755), (&from, 0o755), (&to, 0o2777)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let place = container["volumeMounts"][0]["mountPath"].as_str().unwrap();
    let here = |argument: &Value| {
        let argument = argument.as_str().unwrap();
        let path = argument.strip_prefix("/client").map(|rest| format!("{}{rest}", from.display()));
        path.or_else(|| argument.strip_prefix(place).map(|rest| format!("{}{rest}", to.display())))
            .unwrap_or_else(|| argument.to_owned())
    };
    let command: Vec<String> = items(&container["command"]).map(here).collect();
    let user = u32::try_from(spec["securityContext"]["runAsUser"].as_u64().unwrap()).unwrap();
    done(Command::new(&command[0]).args(&command[1..]).uid(user).gid(user).output().unwrap());
    assert_eq!(fs::read_to_string(to.join("lib/module.so")).unwrap(), "code");
    assert!(to.join("lib/module.so").is_symlink());
}

#[test]
fn identity_scaling_and_who_may_connect_are_as_the_values_say() {
    let documents = documents("postgres-kms-irsa", &json!({}));
    let account = of_kind(&documents, "ServiceAccount")[0];
    let role = "arn:aws:iam::111122223333:role/quotesign";
    assert_eq!(account["metadata"]["annotations"], json!({ "eks.amazonaws.com/role-arn": role }));
    assert_eq!(pod(&documents)["spec"]["serviceAccountName"], account["metadata"]["name"]);
    let policy = &of_kind(&documents, "NetworkPolicy")[0]["spec"];
    assert_eq!(policy["policyTypes"], json!(["Ingress", "Egress"]));
    let from = |port: &str| {
        let rule = items(&policy["ingress"]).find(|rule| rule["ports"][0]["port"] == port).unwrap();
        rule.pointer("/from/0/namespaceSelector/matchLabels/kubernetes.io~1metadata.name").cloned()
    };
    assert_eq!(
        [from("grpc"), from("admin"), from("operations")],
        ["pricing", "operations", "observability"].map(|name| Some(json!(name)))
    );
    assert_eq!(from("jwks"), None, "key sets are public");
    // Whoever may connect besides, the pod of `helm test` may.
    let labels = &named(&documents, "Pod", "gw-quotesign-test")["metadata"]["labels"];
    let is_of_the_test = |rule: &&Value| rule["from"][0]["podSelector"]["matchLabels"] == *labels;
    let ports = |policy: &Value| -> Vec<Value> {
        let rule = items(&policy["ingress"]).find(is_of_the_test).unwrap();
        items(&rule["ports"]).map(|port| port["port"].clone()).collect()
    };
    assert_eq!(ports(policy), ["jwks", "grpc"]);
    let over = json!({ "tests": { "client": null }, "networkPolicy": { "jwks": [{ "podSelector": {} }] } });
    let without = self::documents("postgres-kms-irsa", &over);
    assert_eq!(ports(&of_kind(&without, "NetworkPolicy")[0]["spec"]), ["jwks"]);
    assert_eq!(of_kind(&documents, "PodDisruptionBudget")[0]["spec"]["maxUnavailable"], 1);
    let spread = items(&pod(&documents)["spec"]["topologySpreadConstraints"]).map(|one| one["topologyKey"].clone());
    assert_eq!(spread.collect::<Vec<_>>(), ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]);
    let scaled = self::documents("postgres-pkcs11-sidecar", &json!({}));
    let scaler = &of_kind(&scaled, "HorizontalPodAutoscaler")[0]["spec"];
    assert_eq!(
        scaler["scaleTargetRef"],
        json!({ "apiVersion": "apps/v1", "kind": "StatefulSet", "name": "gw-quotesign" })
    );
    assert_eq!(of_kind(&scaled, "StatefulSet")[0]["spec"]["replicas"], json!(null), "two would set it");
    for (set, kind) in [("ingress", "Ingress"), ("gateway-http", "HTTPRoute"), ("gateway-tls", "TLSRoute")] {
        let text = of_kind(&self::documents(set, &json!({})), kind)[0]["spec"].to_string();
        assert!(text.contains("gw-quotesign-jwks") && !text.contains("-grpc") && !text.contains("-admin"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_helm_test_runs_tells_a_gateway_that_signs_from_one_that_does_not() {
    let site = Site::new();
    let gateway = site.serve().await;
    let set = format!("https://{}/partners/{PARTNER}/.well-known/jwks.json", gateway.address("jwks"));
    let ca = json!({ "secretName": "public-ca", "key": "public.crt" });
    let documents = documents("sqlite-softhsm-dev", &json!({ "tests": { "jwksUrl": set, "jwksCA": ca } }));
    let home = TempDir::new().unwrap();
    let place = |path: &str| home.path().join("etc/quotesign").join(path);
    for (file, from) in [
        ("ca/test/ca.crt", "ca.pem"),
        ("ca/test-jwks/public.crt", "ca.pem"),
        ("tls/test/tls.crt", "operator.pem"),
        ("tls/test/tls.key", "operator.key"),
    ] {
        fs::create_dir_all(place(file).parent().unwrap()).unwrap();
        fs::copy(site.path("tls").join(from), place(file)).unwrap();
    }
    let here = |text: &str| text.replace("/etc/quotesign", place("").to_str().unwrap().trim_end_matches('/'));
    let config = named(&documents, "ConfigMap", "gw-quotesign-test")["data"]["client.toml"].as_str().unwrap();
    let service = "https://gw-quotesign-grpc.pay.svc:8443";
    assert!(config.contains(service), "{config}");
    let config = config.replace(service, &format!("https://{}", gateway.address("grpc")));
    fs::create_dir_all(place("config")).unwrap();
    fs::write(place("config/client.toml"), here(&config)).unwrap();
    let pod = named(&documents, "Pod", "gw-quotesign-test");
    assert_eq!(pod["metadata"]["annotations"]["helm.sh/hook"], "test");
    let run = |name: &str| {
        let container = containers(&pod["spec"]).find(|container| container["name"] == name).unwrap();
        let args: Vec<String> = items(&container["args"]).map(|argument| here(argument.as_str().unwrap())).collect();
        quotesign().args(args).output().unwrap()
    };
    until("the gateway can sign", async || gateway.can_sign().await).await;
    done(run("jwks"));
    assert_eq!(done(run("health")), "SERVING\n");
    let reach = Some(HaltReach { to: Some(To::Partner(PARTNER.to_owned())) });
    gateway.admin("operator").await.halt(HaltRequest { reach, reason: "a test".to_owned() }).await.unwrap();
    until("health says so", async || !gateway.can_sign().await).await;
    failed(run("health"), 1);
    done(run("jwks"));
}

/// A key set's certificate is from elsewhere than the listener's for callers, more often than not.
#[test]
fn helm_test_holds_the_key_set_against_the_cas_that_its_url_is_for() {
    let asked = |set: &str, tests: Value| {
        let documents = documents(set, &json!({ "tests": tests }));
        let spec = &named(&documents, "Pod", "gw-quotesign-test")["spec"];
        let container = containers(spec).find(|container| container["name"] == "jwks").unwrap();
        let args: Vec<&str> = items(&container["args"]).skip(2).map(|argument| argument.as_str().unwrap()).collect();
        let volume = items(&spec["volumes"]).find(|volume| volume["name"] == "ca-test-jwks");
        (args.join(" "), volume.map(|volume| volume["secret"]["secretName"].clone()))
    };
    let service = "https://gw-quotesign-jwks.pay.svc:443/partners/acme-remit/.well-known/jwks.json";
    let own = Some(json!("quotesign-server"));
    assert_eq!(
        asked("sqlite-softhsm-dev", json!({})),
        (format!("{service} --ca /etc/quotesign/ca/test-jwks/ca.crt"), own),
        "one certificate for all"
    );
    let public = "https://quotes.acme-remit.example/partners/acme-remit/.well-known/jwks.json";
    assert_eq!(asked("postgres-kms-irsa", json!({})), (public.to_owned(), None), "the CAs of the public");
    let ca = json!({ "secretName": "x", "key": "x.crt" });
    let given = json!({ "jwksUrl": "", "partner": "acme-remit", "jwksCA": ca });
    let (args, volume) = asked("postgres-kms-irsa", given);
    assert_eq!(args, format!("{service} --ca /etc/quotesign/ca/test-jwks/x.crt"));
    assert_eq!(volume, Some(json!("x")));
}

/// What promtool says of a file of tests beside the rules, in a directory of its own.
fn promtool(rules: &Value, tests: &Value) -> Output {
    let home = TempDir::new().unwrap();
    fs::write(home.path().join("rules.yaml"), rules.to_string()).unwrap();
    fs::write(home.path().join("tests.yaml"), tests.to_string()).unwrap();
    let mut promtool = Command::new(format!("{ROOT}/.tools/promtool/promtool"));
    promtool.args(["test", "rules", "tests.yaml"]).current_dir(home.path()).output().unwrap()
}

#[test]
fn the_alerts_of_one_environment_say_nothing_of_another_s_gateways() {
    let documents = documents("postgres-kms-irsa", &json!({}));
    let rules = &of_kind(&documents, "PrometheusRule")[0]["spec"];
    // What is seen from outside is of no namespace; what a gateway answers is its own.
    let is_watched =
        |name: &str| name.starts_with("quotesign_jwks_") && !name.starts_with("quotesign_jwks_requests_total");
    let read = fs::read_to_string(format!("{ROOT}/deploy/observability/alerts.yaml")).unwrap();
    for rule in items(&rules["groups"]).flat_map(|group| items(&group["rules"])) {
        let (alert, expr) = (&rule["alert"], rule["expr"].as_str().unwrap());
        // But for what is put into it, it is what is tried.
        let plain = expr.replace("{namespace=\"pay\"}", "").replace("namespace=\"pay\",", "");
        let of_text = |text: &str| text.split_whitespace().collect::<String>();
        assert!(of_text(&read).contains(&of_text(&plain)), "{alert}: {expr}");
        for (at, _) in expr.match_indices("quotesign_") {
            let name_ends = expr[at..].find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(expr.len() - at);
            let is_scoped = expr[at + name_ends..].starts_with("{namespace=\"pay\"");
            assert_eq!(is_scoped, !is_watched(&expr[at..]), "{alert}: {expr}");
        }
        let watched = expr.match_indices("quotesign_").any(|(at, _)| is_watched(&expr[at..]));
        assert_eq!(rule["labels"]["namespace"] == "pay", !watched, "{alert}");
    }
    let series = |series: &str, values: &str| json!({ "series": series, "values": values });
    let fires = "group by (alertname, namespace) (ALERTS{alertstate=\"firing\"})";
    let tests = json!({
        "rule_files": ["rules.yaml"],
        "evaluation_interval": "1m",
        "tests": [{
            "interval": "1m",
            "input_series": [
                series("quotesign_component_serving{component=\"signing\",namespace=\"sandbox\"}", "1x30"),
                series("quotesign_component_serving{component=\"ledger\",namespace=\"sandbox\"}", "0x30"),
                series("quotesign_policy_serial{digest=\"aa\",namespace=\"pay\"}", "1x30"),
                series("quotesign_policy_serial{digest=\"bb\",namespace=\"sandbox\"}", "1x30"),
                series("up{job=\"gateways\",namespace=\"sandbox\"}", "0x30"),
                series("quotesign_clock_timestamp_seconds{job=\"gateways\",namespace=\"pay\"}", "0+60x30"),
                series("quotesign_jwks_up{instance=\"outside\"}", "0x30"),
            ],
            "promql_expr_test": [{
                "expr": fires,
                "eval_time": "25m",
                "exp_samples": [
                    { "labels": "{alertname=\"QuotesignAbsent\",namespace=\"pay\"}", "value": 1 },
                    { "labels": "{alertname=\"QuotesignJwksDown\"}", "value": 1 },
                ],
            }],
        }],
    });
    done(promtool(rules, &tests));
}

#[test]
fn the_alerts_of_the_chart_are_those_that_are_tried() {
    let alerts = fs::read_to_string(format!("{ROOT}/deploy/observability/alerts.yaml")).unwrap();
    assert_eq!(
        fs::read_to_string(format!("{CHART}/files/alerts.yaml")).unwrap(),
        alerts,
        "copy the one over the other"
    );
    let documents = documents("postgres-kms-irsa", &json!({}));
    let rules = &of_kind(&documents, "PrometheusRule")[0]["spec"]["groups"];
    let rendered = items(rules).flat_map(|group| items(&group["rules"])).count();
    assert_eq!(rendered, alerts.matches("- alert: ").count());
    assert!(rules.to_string().contains("{{ $labels.component }}"), "what Prometheus fills in is left alone");
}

#[test]
fn a_bundle_of_values_has_the_digest_that_the_gateway_tells_and_announces_it() {
    let bundle = format!("{ROOT}/examples/policy-development");
    let digest = done(with_argument(quotesign_with(&["policy", "digest"]), &bundle)).trim().to_owned();
    let documents = documents("sqlite-softhsm-dev", &json!({ "policy": { "digest": digest } }));
    let map = named(&documents, "ConfigMap", "gw-quotesign-policy");
    assert_eq!(map["data"]["bundle.digest"], format!("{digest}\n"));
    for object in [map, of_kind(&documents, "StatefulSet")[0]] {
        assert_eq!(object["metadata"]["annotations"]["quotesign/policy-digest"], json!(digest));
    }
    // A gateway takes it over while it runs: it must not be a reason to exchange pods.
    assert!(!pod(&documents).to_string().contains(&digest));
}

fn quotesign_with(args: &[&str]) -> Command {
    let mut command = quotesign();
    command.args(args);
    command
}

/// A set of values, what is set over it, and what is said of that.
type Refusal = (&'static str, Value, &'static str);

/// A token with these variables.
fn signer(environment: &Value) -> Value {
    let pin = json!({ "secretName": "p" });
    json!([{ "name": "hsm-a", "module": "/opt/module.so", "token": "t", "pin": pin, "environment": environment }])
}

/// What the schema refuses.
fn refused_by_the_schema() -> Vec<Refusal> {
    let inline = json!([{ "name": "hsm-a", "module": "/opt/module.so", "token": "t", "pin": "inline" }]);
    vec![
        ("minimal", json!({ "replica": 1 }), "Additional property replica is not allowed"),
        ("minimal", json!({ "grpc": { "clientCA": null } }), "clientCA"),
        ("minimal", json!({ "admin": { "clientCA": { "secretName": null } } }), "admin.clientCA"),
        ("minimal", json!({ "grpc": { "tls": { "key": "x" } } }), "grpc.tls"),
        ("minimal", json!({ "signers": inline }), "signers.0.pin"),
        ("minimal", json!({ "signers": signer(&json!({ "A": 1 })) }), "environment"),
        ("minimal", json!({ "environment": "staging" }), "environment"),
        ("minimal", json!({ "ledger": { "engine": "redis" } }), "ledger.engine"),
        ("minimal", json!({ "limits": { "streams_maximum": 1 } }), "Additional property streams_maximum"),
        ("minimal", json!({ "limits": { "payload_bytes_max": 100_000 } }), "payload_bytes_max"),
        ("minimal", json!({ "policy": { "files": { "../policy.toml": "x" } } }), "policy.files"),
        ("minimal", json!({ "image": { "digest": "latest" } }), "image.digest"),
        ("minimal", json!({ "admin": { "service": { "type": "LoadBalancer" } } }), "Additional property type"),
        ("postgres-kms-irsa", json!({ "ledger": { "postgres": { "ca": null } } }), "ledger.postgres"),
        (
            "postgres-kms-irsa",
            json!({ "ledger": { "postgres": { "password": "inline" } } }),
            "ledger.postgres.password",
        ),
        (
            "postgres-kms-irsa",
            json!({ "ledger": { "postgres": { "address": "postgresql://u:p@h/d" } } }),
            "ledger.postgres.address",
        ),
        ("postgres-kms-irsa", json!({ "otlp": { "headers": { "authorization": "x" } } }), "otlp.headers"),
        (
            "pkcs11-init-image",
            json!({ "pkcs11": { "modules": [{ "name": "m", "mountPath": "/m", "image": "i" }] } }),
            "pkcs11.modules",
        ),
    ]
}

/// What production refuses of a sidecar's context, or of its image.
fn sidecar(context: &Value, told: &'static str) -> Refusal {
    let sidecar = json!({ "name": "x", "image": "x", "securityContext": context });
    ("minimal", json!({ "pkcs11": { "sidecars": [sidecar] } }), told)
}

/// What the chart's rules refuse.
fn refused_by_the_rules() -> Vec<Refusal> {
    vec![
        ("minimal", json!({ "replicas": 2 }), "a ledger in SQLite has exactly one gateway; set it to 1"),
        (
            "minimal",
            json!({ "autoscaling": { "enabled": true } }),
            "autoscaling: a ledger in SQLite has exactly one gateway",
        ),
        ("minimal", json!({ "ledger": { "postgres": { "address": "postgresql://u@h/d" } } }), "the engine is sqlite"),
        ("minimal", json!({ "image": { "digest": "" } }), "image.digest: production runs one image"),
        ("minimal", json!({ "policy": { "digest": "" } }), "policy.digest: production names the bundle"),
        ("minimal", json!({ "ledger": { "anchor": { "enabled": false } } }), "production needs an anchor, which tells"),
        ("minimal", json!({ "signers": [], "awsKms": [] }), "name at least one device"),
        ("minimal", json!({ "awsKms": [{ "name": "hsm-a", "region": "eu-west-1" }] }), "`hsm-a` stands there twice"),
        (
            "minimal",
            json!({ "awsKms": [{ "name": "k", "region": "eu-west-1", "endpoint": "http://kms" }] }),
            "`k` is not https://",
        ),
        ("minimal", json!({ "policy": { "volume": null } }), "give the bundle by one of"),
        (
            "minimal",
            json!({ "policy": { "configMap": { "name": "x", "items": [{ "key": "a", "path": "a" }] } } }),
            "give the bundle by one of",
        ),
        ("minimal", json!({ "terminationGracePeriodSeconds": 30 }), "the gateway needs 58 to drain"),
        ("minimal", json!({ "otlp": { "settings": { "endpoint": "http://collector:4317" } } }), "over TLS alone"),
        (
            "minimal",
            json!({ "otlp": { "settings": { "endpoint": "https://collector:4317" } } }),
            "otlp.ca: give the CA",
        ),
        ("minimal", json!({ "otlp": { "ca": { "secretName": "c" } } }), "name the collector"),
        ("postgres-deployment", json!({ "otlp": { "ca": { "secretName": "c" } } }), "are for an https:// endpoint"),
        (
            "minimal",
            json!({ "audit": { "checkpoint": { "signer": "x", "locator": "l", "publicKey": "{}" } } }),
            "`x` is neither in signers",
        ),
        (
            "minimal",
            json!({ "extraEnv": [{ "name": "QUOTESIGN__POLICY", "value": "x" }] }),
            "would override what the chart writes",
        ),
        ("minimal", json!({ "extraEnv": [{ "name": "AWS_SECRET_ACCESS_KEY", "value": "x" }] }), "may be a secret"),
        ("minimal", json!({ "signers": signer(&json!({ "TOKEN_PIN": "x" })) }), "may be a secret"),
        (
            "minimal",
            json!({ "pkcs11": { "sidecars": [{ "name": "x", "image": "x", "securityContext": { "privileged": true } }] } }),
            "no container with privileges",
        ),
        sidecar(&json!({ "runAsUser": 0 }), "leave out `runAsUser`"),
        sidecar(&json!({ "capabilities": { "add": ["SYS_ADMIN"] } }), "leave out `capabilities`"),
        sidecar(&json!({ "seccompProfile": { "type": "Unconfined" } }), "leave out `seccompProfile`"),
        sidecar(&json!({ "readOnlyRootFilesystem": false }), "leave out `readOnlyRootFilesystem`"),
        sidecar(&json!({ "runAsUser": 1000 }), "pkcs11.sidecars: production runs no tag that moves"),
        (
            "minimal",
            json!({ "pkcs11": { "modules": [{ "name": "x", "mountPath": "/m", "image": "x:1", "command": ["cp"] }] } }),
            "give the image of `x` with its @sha256",
        ),
        (
            "minimal",
            json!({ "extraVolumes": [{ "name": "x", "hostPath": { "path": "/" } }] }),
            "`x` is a path of the node",
        ),
        (
            "minimal",
            json!({ "pkcs11": { "modules": [{ "name": "x", "mountPath": "/m", "volume": { "hostPath": { "path": "/m" } } }] } }),
            "the module `x` would come from a path of the node",
        ),
        (
            "postgres-pkcs11-sidecar",
            json!({ "policy": { "volume": { "source": { "hostPath": { "path": "/p" } } } } }),
            "the bundle would come from a path of the node",
        ),
        (
            "minimal",
            json!({ "tests": { "client": { "secretName": "x" } } }),
            "needs the CA of the gateway's certificate",
        ),
        ("minimal", json!({ "tests": { "ca": { "secretName": "x" } } }), "say whose key set is looked at"),
        ("minimal", json!({ "tests": { "ca": { "secretName": "x" } } }), "the key sets have a certificate of"),
        ("postgres-kms-irsa", json!({ "ledger": { "postgres": { "workload": "Deployment" } } }), "take StatefulSet"),
        ("postgres-kms-irsa", json!({ "ledger": { "anchor": { "adopt": "" } } }), "has no anchor yet"),
        (
            "postgres-kms-irsa",
            json!({ "podDisruptionBudget": { "enabled": false } }),
            "keeps one when nodes are drained",
        ),
        ("postgres-pkcs11-sidecar", json!({ "autoscaling": { "minReplicas": 6 } }), "is above maxReplicas"),
        ("ingress", json!({ "jwks": { "gateway": { "enabled": true } } }), "take ingress or gateway"),
        ("ingress", json!({ "jwks": { "ingress": { "hosts": [] } } }), "name the host of the key sets"),
        ("gateway-http", json!({ "jwks": { "gateway": { "parentRefs": [] } } }), "name the Gateway"),
        ("gateway-http", json!({ "jwks": { "gateway": { "backendTLS": null } } }), "the gateway speaks TLS alone"),
        ("gateway-tls", json!({ "jwks": { "gateway": { "hostnames": [] } } }), "a TLSRoute passes TLS on unread"),
        ("sqlite-softhsm-dev", json!({ "policy": { "digest": "0".repeat(64) } }), "not the one that was approved"),
    ]
}

#[test]
fn what_is_unsafe_or_cannot_work_is_refused_with_its_field() {
    let mut seen = String::new();
    for (set, over, told) in refused_by_the_rules().into_iter().chain(refused_by_the_schema()) {
        let said = failed(helm(&["template", "gw"], set, &over), 1);
        assert!(said.contains(told), "{set} with {over}: {said}");
        seen += &said;
    }
    // Every rule of the chart is among them.
    let rules = fs::read_to_string(format!("{CHART}/templates/_rules.tpl")).unwrap();
    let texts = rules.lines().filter_map(|line| line.split_once("append $faults ")?.1.split('"').nth(1));
    let texts: Vec<_> = texts.map(|text| text.split("%s").max_by_key(|part| part.len()).unwrap()).collect();
    assert!(texts.len() > 25, "{}", texts.len());
    for text in texts {
        assert!(seen.contains(text), "nothing shows that it is refused: {text}");
    }
}

#[test]
fn the_notes_say_what_comes_next_and_the_page_of_values_is_the_schema_s() {
    // helm prints the notes where it has a cluster alone; a copy of the chart has them in a document.
    let copy = TempDir::new().unwrap();
    done(Command::new("cp").arg("-rT").arg(CHART).arg(copy.path()).output().unwrap());
    let document = "{{ dict \"notes\" (include \"quotesign/templates/NOTES.txt\" .) | toJson }}\n";
    fs::write(copy.path().join("templates/notes.yaml"), document).unwrap();
    let notes = |set: &str, more: &[&str]| {
        let command = [&["template", "gw", "--show-only", "templates/notes.yaml"], more].concat();
        let said = done(helm_on(
            copy.path().to_str().unwrap(),
            &command,
            set,
            &json!({ "ledger": { "anchor": { "adopt": "" } }, "replicas": 1 }),
        ));
        let document: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
        document["notes"].as_str().unwrap().to_owned()
    };
    let said = notes("minimal", &[]);
    for step in
        ["quotesign admin status", "register the key set", "quotesign admin seed-sequence", "No alerts are installed"]
    {
        assert!(said.contains(step), "{step} in {said}");
    }
    assert!(said.contains("or each gateway by itself: gw-quotesign-0.gw-quotesign-admin-peers.pay.svc:8444"), "{said}");
    let said = notes("postgres-kms-irsa", &[]);
    assert!(said.contains("quotesign jwks watch URL"), "{said}");
    assert!(said.contains("helm test gw -n pay") && said.contains("quotesign admin seed-sequence"), "{said}");
    let said = notes("postgres-kms-irsa", &["--is-upgrade"]);
    assert!(said.contains("rollout status statefulset/gw-quotesign") && !said.contains("seed-sequence"), "{said}");
    // What only a first installation must not do without, an upgrade may.
    done(helm(
        &["template", "gw", "--is-upgrade"],
        "postgres-kms-irsa",
        &json!({ "ledger": { "anchor": { "adopt": "" } } }),
    ));
    let table = done(Command::new(format!("{ROOT}/scripts/chart-values")).output().unwrap());
    assert!(table.lines().count() > 60, "{table}");
    let page = fs::read_to_string(format!("{ROOT}/docs/deployment.md")).unwrap();
    assert!(page.contains(&table), "docs/deployment.md is not what scripts/chart-values prints");
    let schema: Value =
        serde_json::from_str(&fs::read_to_string(format!("{CHART}/values.schema.json")).unwrap()).unwrap();
    assert_eq!(open_objects("", &schema), Vec::<String>::new());
}

/// Where the schema would take a field that it does not know, but for what it hands on to Kubernetes as it is.
fn open_objects(place: &str, schema: &Value) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(object) = schema.as_object() {
        if object.contains_key("properties") && schema["type"] == "object" && schema["additionalProperties"] != false {
            found.push(place.to_owned());
        }
        for (name, inner) in object.iter().filter(|(name, _)| *name != "then" && *name != "if") {
            found.extend(open_objects(&format!("{place}/{name}"), inner));
        }
    }
    for (at, inner) in schema.as_array().into_iter().flatten().enumerate() {
        found.extend(open_objects(&format!("{place}/{at}"), inner));
    }
    found
}
