//! `policy-prove OLD NEW`: asks cvc5, by way of Cedar's symbolic compiler, whether the rules of the bundle NEW allow any
//! request that those of OLD did not, and whether a rule of NEW can fail. Writes one JSON object. Whoever has which role
//! is taken as open: what holds here holds for every assignment of roles.

use std::{collections::HashMap, env, fs, path::Path, process::ExitCode};

use cedar_policy::{Entities, PolicyId, PolicySet, Request, RequestEnv, Schema, ValidationMode, Validator};
use cedar_policy_symcc::{CedarSymCompiler, CompiledPolicy, CompiledPolicySet, Env, solver::LocalSolver};
use serde_json::{Value, json};

type Fault = Box<dyn std::error::Error>;

/// The rules of a bundle, each under its `@id`.
fn rules(dir: &Path) -> Result<PolicySet, Fault> {
    let path = dir.join("authorize.cedar");
    let text = fs::read_to_string(&path).map_err(|fault| format!("{}: {fault}", path.display()))?;
    let parsed: PolicySet = text.parse()?;
    let mut named = PolicySet::new();
    for policy in parsed.policies() {
        let id = policy.annotation("id").ok_or_else(|| format!("{}: a rule has no @id", path.display()))?;
        named.add(policy.new_id(PolicyId::new(id)))?;
    }
    Ok(named)
}

fn schema(dir: &Path) -> Result<Schema, Fault> {
    let path = dir.join("quotesign.cedarschema");
    let text = fs::read_to_string(&path).map_err(|fault| format!("{}: {fault}", path.display()))?;
    Ok(Schema::from_cedarschema_str(&text)?.0)
}

/// The rules must keep the schema that both are looked at with.
fn keeps(rules: &PolicySet, schema: &Schema, whose: &str) -> Result<(), Fault> {
    let verdict = Validator::new(schema.clone()).validate(rules, ValidationMode::Strict);
    match verdict.validation_errors().next() {
        Some(fault) => {
            Err(format!("the {whose} rules do not keep the new schema, so the two cannot be compared: {fault}").into())
        }
        None => Ok(()),
    }
}

/// A request in words: who, what, on what, and the context. Roles that matter stand beside the caller.
fn told(found: &Env) -> String {
    let part = |uid: Option<&cedar_policy::EntityUid>| uid.map_or_else(|| "anybody".to_owned(), ToString::to_string);
    let request: &Request = &found.request;
    let entities: &Entities = &found.entities;
    let roles: Vec<String> = request
        .principal()
        .and_then(|caller| entities.ancestors(caller))
        .map(|roles| roles.map(ToString::to_string).collect())
        .unwrap_or_default();
    let roles = if roles.is_empty() { String::new() } else { format!(" (in {})", roles.join(", ")) };
    let (who, what, on) = (part(request.principal()), part(request.action()), part(request.resource()));
    let context = request.context().map(context_of).unwrap_or_default();
    format!("{who}{roles} does {what} to {on}{context}")
}

fn context_of(context: &cedar_policy::Context) -> String {
    match context.to_json_value() {
        Ok(Value::Object(members)) if !members.is_empty() => format!(" with {}", Value::Object(members)),
        _ => String::new(),
    }
}

/// What is found of the requests of one kind.
async fn look(
    compiler: &mut CedarSymCompiler<LocalSolver>,
    old: &PolicySet,
    new: &PolicySet,
    kind: &RequestEnv,
    schema: &Schema,
) -> Result<Value, Fault> {
    let was = CompiledPolicySet::compile(old, kind, schema)?;
    let is = CompiledPolicySet::compile(new, kind, schema)?;
    let anew = compiler.check_implies_with_counterexample_opt(&is, &was).await?;
    let mut can_fail = Vec::new();
    for policy in new.policies() {
        let alone = CompiledPolicy::compile(policy, kind, schema)?;
        if let Some(found) = compiler.check_never_errors_with_counterexample_opt(&alone).await? {
            can_fail.push(json!({ "rule": policy.id().to_string(), "request": told(&found) }));
        }
    }
    Ok(json!({ "act": kind.action().to_string(), "allowed_anew": anew.as_ref().map(told), "can_fail": can_fail }))
}

async fn prove(old: &Path, new: &Path) -> Result<Value, Fault> {
    let (was, is, schema) = (rules(old)?, rules(new)?, schema(new)?);
    keeps(&was, &schema, "old")?;
    keeps(&is, &schema, "new")?;
    let solver = solver_version()?;
    let mut compiler = CedarSymCompiler::new(LocalSolver::cvc5()?)?;
    let mut requests = HashMap::new();
    for kind in schema.request_envs() {
        let found = look(&mut compiler, &was, &is, &kind, &schema).await?;
        requests.insert(format!("{} {} {}", kind.action(), kind.principal(), kind.resource()), found);
    }
    let mut requests: Vec<_> = requests.into_iter().collect();
    requests.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(json!({ "solver": solver, "requests": requests.into_iter().map(|(_, found)| found).collect::<Vec<_>>() }))
}

fn solver_version() -> Result<String, Fault> {
    let program = env::var("CVC5").unwrap_or_else(|_| "cvc5".to_owned());
    let ran = std::process::Command::new(&program).arg("--version").output();
    let ran = ran
        .map_err(|fault| format!("the solver `{program}` cannot be run: {fault}; install cvc5, or name it in CVC5"))?;
    let text = String::from_utf8_lossy(&ran.stdout);
    let version = text.split_whitespace().skip_while(|word| *word != "version").nth(1).unwrap_or("of unknown version");
    Ok(format!("cvc5 {version}"))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let directories: Vec<_> = env::args_os().skip(1).collect();
    let [old, new] = directories.as_slice() else {
        eprintln!("usage: policy-prove OLD NEW, the directories of two policy bundles");
        return ExitCode::from(2);
    };
    match prove(Path::new(old), Path::new(new)).await {
        Ok(found) => {
            println!("{found:#}");
            ExitCode::SUCCESS
        }
        Err(fault) => {
            eprintln!("{fault}");
            ExitCode::from(2)
        }
    }
}
