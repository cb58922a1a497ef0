//! Provisioning in AWS KMS: generating a key, listing keys, trying one out. These run in commands of the security
//! team; the gateway calls none of them. Nothing here deletes a key: the commands need no right to.
//!
//! A key is generated in steps: it is created with tags that name its kid, tried out, and given its alias last. So
//! an alias says that its key passed, and a run that died on the way leaves a tagged key without an alias, which the
//! next run finds and goes on with. Finding it asks for the tags of every key that has no alias; where there are more
//! than [`KEYS_MAX`] keys it is given up and said.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;

use super::{
    KmsConfig,
    client::{Alias, Client, Creation, Page, RS256},
    fault::{Fault, Kind},
    fitness::{self, Integers},
    trial,
};
use crate::signer::locator::KeyArn;
use crate::{
    domain::Kid,
    jwk::PublicKey,
    signer::{
        Attributes,
        provision::{Examination, Examined, Listed, NewKey, Provision, ProvisionError, Provisioned},
    },
};

/// How many keys of an account and region are looked through.
const KEYS_MAX: usize = 5_000;
const ALIAS_PREFIX: &str = "alias/quotesign-";
const KID_TAG: &str = "quotesign:kid";
const PARTNER_TAG: &str = "quotesign:partner";
const ENVIRONMENT_TAG: &str = "quotesign:environment";

/// AWS KMS as commands see it.
pub(super) struct Provisioner {
    config: KmsConfig,
    client: Arc<dyn Client>,
}

impl From<Fault> for ProvisionError {
    fn from(fault: Fault) -> Self {
        match fault.kind {
            Kind::Unfit => Self::Unfit(fault.to_string()),
            _ => Self::Device(fault.to_string()),
        }
    }
}

#[async_trait]
impl Provision for Provisioner {
    async fn generate(&self, key: &NewKey) -> Result<Provisioned, ProvisionError> {
        let spec = format!("RSA_{}", key.bits);
        if fitness::bits(&spec).is_none() {
            let bits = key.bits;
            return Err(ProvisionError::Invalid(format!(
                "AWS KMS makes no RSA key of {bits} bits; take 2048, 3072 or 4096"
            )));
        }
        let alias = alias_of(&key.kid);
        match self.client.describe(&alias).await {
            Ok(named) => return self.named(key, &alias, &named.arn).await,
            Err(fault) if fault.code() == Some("NotFoundException") => {}
            Err(fault) => return Err(fault.into()),
        }
        let orphan = self.orphan(key).await?;
        let existed = orphan.is_some();
        let arn = match orphan {
            Some(arn) => arn,
            None => self.client.create(&self.creation(key, spec)).await?.arn,
        };
        let (arn, public) = self.trial(&key.kid, &arn).await.map_err(|error| match error {
            ProvisionError::Unfit(why) => ProvisionError::Unfit(format!(
                "{why}; it is `{arn}` and has no alias; have it deleted with `aws kms schedule-key-deletion`"
            )),
            error => error,
        })?;
        let made = found(public, &arn, key, existed)?;
        match self.client.give_alias(&alias, arn.as_str()).await {
            Ok(()) => Ok(made),
            Err(fault) => self.after_another_run(key, &alias, made, fault).await,
        }
    }

    async fn list(&self) -> Result<Vec<Listed>, ProvisionError> {
        let names = self.names().await?;
        let mut listed = Vec::new();
        for arn in self.keys().await? {
            let Some(told) = visible(self.client.describe(&arn).await)? else { continue };
            let Some(bits) = fitness::bits(&told.spec).filter(|_| told.usage == "SIGN_VERIFY" && !told.is_of_aws)
            else {
                continue;
            };
            let name = arn.rsplit_once('/').and_then(|(_, id)| names.get(id)).cloned();
            let mut key = Listed { name, locator: arn.clone(), bits: Some(bits), thumbprint: None, unfit: None };
            match self.fit(&arn).await {
                Ok(integers) => key.thumbprint = thumbprint(&integers),
                Err(fault) if fault.kind == Kind::Unfit || fault.kind == Kind::Refused => {
                    key.unfit = Some(fault.to_string());
                }
                Err(fault) => return Err(fault.into()),
            }
            listed.push(key);
        }
        listed.sort_by(|a, b| (&a.name, &a.locator).cmp(&(&b.name, &b.locator)));
        Ok(listed)
    }

    async fn try_out(&self, kid: &Kid, locator: &str, attributes: Attributes) -> Result<Provisioned, ProvisionError> {
        let (arn, public) = match trial::once(&*self.client, &self.config.region, kid, locator, attributes).await {
            Err(failed) if failed.is_missing() => return Err(ProvisionError::Missing(locator.to_owned())),
            tried => tried?,
        };
        Ok(Provisioned { public, locator: arn.to_string(), existed: true })
    }

    async fn examine(&self, locators: &[String]) -> Examination {
        let reached = match self.client.credentials().await {
            Ok(()) => Ok(format!("AWS KMS in {}, {RS256}", self.config.region)),
            Err(fault) => Err(fault.into()),
        };
        let (entered, mut keys) = (Ok("credentials were found".to_owned()), Vec::new());
        for locator in locators.iter().filter(|_| reached.is_ok()) {
            keys.push(self.look(locator).await);
        }
        Examination { reached, entered, keys }
    }
}

impl Provisioner {
    pub(super) fn new(config: KmsConfig, client: Arc<dyn Client>) -> Self {
        Self { config, client }
    }

    /// What KMS tells of a key, whatever that is, and whether it signs.
    async fn look(&self, locator: &str) -> Result<Examined, ProvisionError> {
        let arn = KeyArn::parse(locator, &self.config.region);
        let arn = arn.map_err(|error| ProvisionError::Invalid(error.to_string()))?;
        let told = self.client.describe(arn.as_str()).await.map_err(|fault| match fault.code() {
            Some("NotFoundException") => ProvisionError::Missing(locator.to_owned()),
            _ => fault.into(),
        })?;
        let (lacks, remarks) = match fitness::judge(&told, Attributes::Require) {
            Ok(remarks) => (Vec::new(), remarks.0),
            Err(fault) => (vec![fault.to_string()], Vec::new()),
        };
        let half = self.client.public_half(arn.as_str()).await;
        let public = half.and_then(|half| fitness::public(&half));
        let signs = trial::signs(&*self.client, &arn, &public).await.map(|()| RS256.to_owned());
        Ok(Examined { public: public.map_err(|fault| fault.to_string()), lacks, remarks, signs })
    }

    fn creation(&self, key: &NewKey, spec: String) -> Creation {
        let description = format!("quotesign: signs quotes as `{}`", key.kid);
        Creation { spec, description, tags: self.tags_of(key) }
    }

    fn tags_of(&self, key: &NewKey) -> Vec<(String, String)> {
        let tag = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let mut tags = vec![tag(KID_TAG, key.kid.as_str())];
        if !key.partner.is_empty() {
            tags.push(tag(PARTNER_TAG, &key.partner));
        }
        tags.extend(self.config.environment.map(|environment| tag(ENVIRONMENT_TAG, environment.as_str())));
        tags
    }

    async fn trial(&self, kid: &Kid, locator: &str) -> Result<(KeyArn, PublicKey), ProvisionError> {
        trial::with_patience(&*self.client, &self.config.region, kid, locator).await.map_err(ProvisionError::from)
    }

    /// The key that has the alias already, if it is of this kid.
    async fn named(&self, key: &NewKey, alias: &str, arn: &str) -> Result<Provisioned, ProvisionError> {
        let tags = self.client.tags(arn).await?;
        if !is_of(&key.kid, &tags) {
            return Err(ProvisionError::Exists(alias.to_owned()));
        }
        self.check_made_for(key, &tags)?;
        let (arn, public) = self.trial(&key.kid, arn).await?;
        found(public, &arn, key, true)
    }

    /// The alias could not be given: another run of the same command may have been sooner, or this one's request have
    /// been heard and its answer lost.
    async fn after_another_run(
        &self,
        key: &NewKey,
        alias: &str,
        made: Provisioned,
        fault: Fault,
    ) -> Result<Provisioned, ProvisionError> {
        match self.client.describe(alias).await {
            Ok(named) if named.arn == made.locator => Ok(made),
            Ok(named) => {
                tracing::warn!(key = %made.locator, alias, "another key has the alias, so this one is left over");
                self.named(key, alias, &named.arn).await
            }
            Err(_) => Err(fault.into()),
        }
    }

    /// The public half of a key that may sign under `attributes = "require"`.
    async fn fit(&self, locator: &str) -> Result<Integers, Fault> {
        let arn = KeyArn::parse(locator, &self.config.region).map_err(|error| Fault::unfit(error.to_string()))?;
        fitness::check(&*self.client, &arn, Attributes::Require).await.map(|(integers, _)| integers)
    }

    /// One kid may be wanted in several environments, or for several partners by mistake. A key that was made for
    /// another is never taken: its quotes would verify here, and those of here there.
    fn check_made_for(&self, key: &NewKey, tags: &[(String, String)]) -> Result<(), ProvisionError> {
        let own = self.tags_of(key);
        for name in [ENVIRONMENT_TAG, PARTNER_TAG] {
            let (is, want) = (tag(tags, name), tag(&own, name));
            if is != want {
                let [is, want] = [is, want].map(|value| value.unwrap_or("none"));
                return Err(ProvisionError::Exists(format!("{} with {name} {is} and not {want}", key.kid)));
            }
        }
        Ok(())
    }

    /// The key that an earlier run created for this kid and did not come to name.
    async fn orphan(&self, key: &NewKey) -> Result<Option<String>, ProvisionError> {
        let kid = &key.kid;
        let named = self.names().await?;
        let mut orphans = Vec::new();
        for arn in self.keys().await? {
            let is_named = arn.rsplit_once('/').is_some_and(|(_, id)| named.contains_key(id));
            if is_named {
                continue;
            }
            let Some(tags) = visible(self.client.tags(&arn).await)? else { continue };
            if is_of(kid, &tags) && self.client.describe(&arn).await?.state == "Enabled" {
                self.check_made_for(key, &tags)?;
                orphans.push(arn);
            }
        }
        let orphan = orphans.pop();
        if let (Some(one), Some(other)) = (&orphan, orphans.first()) {
            let text = format!("several keys have the tag `{KID_TAG}` of `{kid}`, `{one}` and `{other}` among them");
            return Err(ProvisionError::Invalid(format!("{text}; have all but one deleted")));
        }
        Ok(orphan)
    }

    /// An alias of each key that has one, by the key's id; one that we gave before any other.
    async fn names(&self) -> Result<HashMap<String, String>, ProvisionError> {
        let (mut names, mut from) = (HashMap::new(), None);
        loop {
            let Page { items, next } = self.client.aliases(from).await?;
            for Alias { name, key_id } in items {
                if name.starts_with(ALIAS_PREFIX) || !names.contains_key(&key_id) {
                    names.insert(key_id, name);
                }
            }
            if next.is_none() {
                return Ok(names);
            }
            from = next;
        }
    }

    async fn keys(&self) -> Result<Vec<String>, ProvisionError> {
        let (mut keys, mut from) = (Vec::new(), None);
        loop {
            let Page { items, next } = self.client.keys(from).await?;
            keys.extend(items);
            if keys.len() > KEYS_MAX {
                let text =
                    format!("the account has more than {KEYS_MAX} keys in this region, too many to look through");
                return Err(ProvisionError::Device(format!("{text}; generate the key in an account of its own")));
            }
            if next.is_none() {
                return Ok(keys);
            }
            from = next;
        }
    }
}

fn found(public: PublicKey, arn: &KeyArn, key: &NewKey, existed: bool) -> Result<Provisioned, ProvisionError> {
    let (is, want) = (public.bits(), key.bits);
    if u32::try_from(is) != Ok(want) {
        return Err(ProvisionError::Exists(format!("{} with {is} bits and not {want}", key.kid)));
    }
    Ok(Provisioned { public, locator: arn.to_string(), existed })
}

fn is_of(kid: &Kid, tags: &[(String, String)]) -> bool {
    tag(tags, KID_TAG) == Some(kid.as_str())
}

fn tag<'t>(tags: &'t [(String, String)], wanted: &str) -> Option<&'t str> {
    tags.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str())
}

/// The name of a key in KMS, whose aliases have no `.` and no `:`. Kids that become alike are told apart by the tag.
fn alias_of(kid: &Kid) -> String {
    format!("{ALIAS_PREFIX}{}", kid.as_str().replace(['.', ':'], "_"))
}

fn thumbprint((modulus, exponent): &Integers) -> Option<String> {
    let kid = "a-key-that-is-listed".parse().ok()?;
    PublicKey::new(kid, modulus, exponent).ok().map(|key| key.thumbprint())
}

/// What of an account's keys the role may see. Others have their own.
fn visible<T>(asked: Result<T, Fault>) -> Result<Option<T>, Fault> {
    match asked {
        Ok(told) => Ok(Some(told)),
        Err(fault) if ["AccessDeniedException", "NotFoundException"].contains(&fault.code().unwrap_or_default()) => {
            Ok(None)
        }
        Err(fault) => Err(fault),
    }
}
