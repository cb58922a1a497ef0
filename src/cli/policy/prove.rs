//! Asks the program `policy-prove` whether a change allows more. It is a program of its own, since the symbolic compiler
//! that it is built on asks for one very release of Cedar.

use std::{env, path::Path, process::Command};

use serde::Deserialize;
use serde_json::Value;

use crate::cli::Failure;

const PROGRAM: &str = "policy-prove";

/// What was proved.
#[derive(Debug, Deserialize)]
pub(super) struct Proof {
    /// With which solver.
    solver: String,
    /// One for each kind of request that the schema allows.
    requests: Vec<Finding>,
    /// As the program wrote it.
    #[serde(skip)]
    told: Value,
}

#[derive(Debug, Deserialize)]
struct Finding {
    act: String,
    /// A request that the new bundle allows and the old one does not.
    allowed_anew: Option<String>,
    /// Rules of the new bundle that can fail, each with a request at which it does.
    can_fail: Vec<CanFail>,
}

#[derive(Debug, Deserialize)]
struct CanFail {
    rule: String,
    request: String,
}

/// Has it proved.
pub(super) fn prove(old: &Path, new: &Path) -> Result<Proof, Failure> {
    let not = |why: String| Failure::unfit(format!("nothing was proved: {why}"));
    let beside = env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(PROGRAM))).filter(|path| path.exists());
    let program = env::var_os("QUOTESIGN_POLICY_PROVE").map(Into::into).or(beside).unwrap_or_else(|| PROGRAM.into());
    let ran = Command::new(&program).args([old, new]).output().map_err(|fault| {
        not(format!(
            "`{}` cannot be run: {fault}; build it in tools/policy-prove, or name it in QUOTESIGN_POLICY_PROVE",
            program.display()
        ))
    })?;
    if !ran.status.success() {
        return Err(not(String::from_utf8_lossy(&ran.stderr).trim().to_owned()));
    }
    let told: Value = serde_json::from_slice(&ran.stdout).map_err(|fault| not(format!("its answer: {fault}")))?;
    let proof: Proof = serde_json::from_value(told.clone()).map_err(|fault| not(format!("its answer: {fault}")))?;
    if proof.requests.is_empty() {
        return Err(not("it looked at no kind of request".to_owned()));
    }
    Ok(Proof { told, ..proof })
}

impl Proof {
    pub(super) fn allows_more(&self) -> bool {
        self.requests.iter().any(|finding| finding.allowed_anew.is_some() || !finding.can_fail.is_empty())
    }

    pub(super) fn to_json(&self) -> Value {
        self.told.clone()
    }

    pub(super) fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for finding in &self.requests {
            if let Some(request) = &finding.allowed_anew {
                lines.push(format!("proof: {}: allowed now and not before: {request}", finding.act));
            }
            for CanFail { rule, request } in &finding.can_fail {
                lines.push(format!("proof: {}: the rule `{rule}` fails, which denies: {request}", finding.act));
            }
        }
        if lines.is_empty() {
            let kinds = self.requests.len();
            lines.push(format!(
                "proof: of {kinds} kinds of request none is allowed now that was not before, and no rule can fail ({})",
                self.solver
            ));
        }
        lines.push("proof: whoever has which role is not part of it; the changes above tell that".to_owned());
        lines
    }
}
