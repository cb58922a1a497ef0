//! `[[aws_kms]]`: AWS KMS as a device. Who the gateway is to AWS is no part of it: that is the platform's, as a web
//! identity, a role or a profile.

use serde::Deserialize;

use crate::domain::Environment;

/// A region of AWS KMS.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KmsEntry {
    /// The name that policy's keys give.
    pub name: String,
    /// The region of its keys, as `eu-west-1`.
    pub region: String,
    /// Where it is asked instead of at the region's own address.
    pub endpoint: Option<String>,
    /// How many signatures may be under way at once.
    #[serde(default = "defaults::concurrency")]
    pub concurrency: usize,
    /// How many requests for a signature this replica sends in any second: its share of the account's quota.
    #[serde(default = "defaults::requests_per_second")]
    pub requests_per_second: u32,
    /// How many quotes may wait.
    #[serde(default = "defaults::queue_max")]
    pub queue_max: usize,
    /// How long a connection may take to be made, in milliseconds.
    #[serde(default = "defaults::connect_timeout_ms")]
    pub connect_timeout_ms: u64,
    /// How long one request may take, in milliseconds.
    #[serde(default = "defaults::attempt_timeout_ms")]
    pub attempt_timeout_ms: u64,
    /// How long a call may take with its retries, in milliseconds.
    #[serde(default = "defaults::call_timeout_ms")]
    pub call_timeout_ms: u64,
    /// How often KMS is asked whether a key is still what it should be, in seconds.
    #[serde(default = "defaults::check_interval_s")]
    pub check_interval_s: u64,
    /// How often a key that nobody uses proves itself by a test signature, in seconds.
    #[serde(default = "defaults::probe_interval_s")]
    pub probe_interval_s: u64,
}

mod defaults {
    pub(super) fn concurrency() -> usize {
        32
    }
    pub(super) fn requests_per_second() -> u32 {
        100
    }
    pub(super) fn queue_max() -> usize {
        256
    }
    pub(super) fn connect_timeout_ms() -> u64 {
        1_000
    }
    pub(super) fn attempt_timeout_ms() -> u64 {
        1_000
    }
    pub(super) fn call_timeout_ms() -> u64 {
        3_000
    }
    pub(super) fn check_interval_s() -> u64 {
        300
    }
    pub(super) fn probe_interval_s() -> u64 {
        30
    }
}

/// The rules that types cannot hold. `names` are those of the other signers.
pub(super) fn check<'c>(
    entries: &'c [KmsEntry],
    names: impl Iterator<Item = &'c str>,
    environment: Environment,
) -> Result<(), String> {
    let mut taken: Vec<_> = names.collect();
    for (at, entry) in entries.iter().enumerate() {
        let name = entry.name.as_str();
        if cfg!(not(feature = "kms")) {
            return Err(format!(
                "`aws_kms[{at}]` of `{name}`: this build has no AWS KMS; build it with the feature `kms`, or leave it out"
            ));
        }
        if taken.contains(&name) {
            return Err(format!(
                "`aws_kms[{at}].name` = `{name}` is a signer's already; give each signer a name of its own"
            ));
        }
        taken.push(name);
        entry.check(environment).map_err(|(field, why)| format!("`aws_kms[{at}].{field}` of `{name}` = {why}"))?;
    }
    Ok(())
}

impl KmsEntry {
    fn check(&self, environment: Environment) -> Result<(), (&'static str, String)> {
        let region = &self.region;
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if !(1..=32).contains(&region.len()) || !region.bytes().all(fits) {
            return Err(("region", format!("`{region}` is no region; write it as `eu-west-1`")));
        }
        if let Some(endpoint) = &self.endpoint {
            let authority = endpoint.strip_prefix("https://").or_else(|| endpoint.strip_prefix("http://"));
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
            if authority.is_none_or(|host| host.is_empty() || !host.bytes().all(fits)) {
                return Err((
                    "endpoint",
                    format!("`{endpoint}` is no address; write it as `https://host` or `https://host:port`"),
                ));
            }
            if environment != Environment::Development && !endpoint.starts_with("https://") {
                return Err(("endpoint", format!("`{endpoint}` must begin with `https://` in {environment}")));
            }
        }
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        for (field, value, least, most) in [
            ("concurrency", count(self.concurrency), 1, 1_024),
            ("requests_per_second", self.requests_per_second.into(), 1, 100_000),
            ("queue_max", count(self.queue_max), 1, 100_000),
            ("connect_timeout_ms", self.connect_timeout_ms, 10, self.attempt_timeout_ms),
            ("attempt_timeout_ms", self.attempt_timeout_ms, 10, self.call_timeout_ms),
            ("call_timeout_ms", self.call_timeout_ms, 10, 60_000),
            ("check_interval_s", self.check_interval_s, 1, 86_400),
            ("probe_interval_s", self.probe_interval_s, 1, 3_600),
        ] {
            if !(least..=most).contains(&value) {
                return Err((field, format!("`{value}` is out of bounds; give {least} to {most}")));
            }
        }
        Ok(())
    }
}

#[cfg(feature = "kms")]
impl KmsEntry {
    /// The device's config. The environment, which new keys are tagged with, is the gateway's and not the entry's.
    #[must_use]
    pub fn kms(&self) -> crate::signer::kms::KmsConfig {
        use std::time::Duration;
        crate::signer::kms::KmsConfig {
            name: self.name.clone(),
            region: self.region.clone(),
            endpoint: self.endpoint.clone(),
            concurrency: self.concurrency,
            requests_per_second: self.requests_per_second,
            queue_max: self.queue_max,
            connect_timeout: Duration::from_millis(self.connect_timeout_ms),
            attempt_timeout: Duration::from_millis(self.attempt_timeout_ms),
            call_timeout: Duration::from_millis(self.call_timeout_ms),
            check_interval: Duration::from_secs(self.check_interval_s),
            probe_interval: Duration::from_secs(self.probe_interval_s),
            environment: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(extra: &str) -> KmsEntry {
        toml::from_str(&format!("name = \"kms-eu\"\nregion = \"eu-west-1\"\n{extra}")).unwrap()
    }

    fn checked(extra: &str, environment: Environment) -> Result<(), String> {
        check(&[entry(extra)], ["hsm-primary"].into_iter(), environment)
    }

    #[cfg(feature = "kms")]
    #[test]
    fn name_and_region_are_enough() {
        assert_eq!(checked("", Environment::Production), Ok(()));
        assert_eq!(entry("").kms().requests_per_second, 100);
    }

    #[cfg(not(feature = "kms"))]
    #[test]
    fn a_build_without_kms_says_so() {
        assert_eq!(
            checked("", Environment::Production).unwrap_err(),
            "`aws_kms[0]` of `kms-eu`: this build has no AWS KMS; build it with the feature `kms`, or leave it out"
        );
    }

    #[cfg(feature = "kms")]
    #[test]
    fn what_is_out_of_bounds_is_named() {
        for (extra, want) in [
            (
                "endpoint = \"http://127.0.0.1:4566\"",
                "endpoint` of `kms-eu` = `http://127.0.0.1:4566` must begin with `https://` in production",
            ),
            ("endpoint = \"kms.example\"", "endpoint` of `kms-eu` = `kms.example` is no address"),
            ("endpoint = \"https://key:secret@kms.example\"", "is no address"),
            ("concurrency = 0", "concurrency` of `kms-eu` = `0` is out of bounds; give 1 to 1024"),
            ("requests_per_second = 0", "requests_per_second` of `kms-eu` = `0` is out of bounds"),
            ("queue_max = 0", "queue_max` of `kms-eu` = `0`"),
            ("connect_timeout_ms = 1001", "connect_timeout_ms` of `kms-eu` = `1001` is out of bounds; give 10 to 1000"),
            ("attempt_timeout_ms = 3001", "attempt_timeout_ms` of `kms-eu` = `3001` is out of bounds; give 10 to 3000"),
            ("call_timeout_ms = 60001", "call_timeout_ms` of `kms-eu` = `60001`"),
            ("check_interval_s = 0", "check_interval_s` of `kms-eu` = `0`"),
            ("probe_interval_s = 3601", "probe_interval_s` of `kms-eu` = `3601`"),
        ] {
            let said = checked(extra, Environment::Production).unwrap_err();
            assert!(said.starts_with("`aws_kms[0].") && said.contains(want), "{said}");
        }
        assert_eq!(checked("endpoint = \"http://127.0.0.1:4566\"", Environment::Development), Ok(()));
        let region = KmsEntry { region: "EU (Ireland)".to_owned(), ..entry("") };
        assert!(check(&[region], [].into_iter(), Environment::Production).unwrap_err().contains("is no region"));
    }

    #[cfg(feature = "kms")]
    #[test]
    fn a_name_stands_once_among_all_signers() {
        for (entries, others) in [(vec![entry("")], vec!["kms-eu"]), (vec![entry(""), entry("")], vec![])] {
            let said = check(&entries, others.into_iter(), Environment::Production).unwrap_err();
            assert!(said.contains("`kms-eu` is a signer's already"), "{said}");
        }
    }
}
