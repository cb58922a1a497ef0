//! `quotesign keys rotate`: one command for a rotation from its beginning to its end. Each time it is run it looks where the
//! rotation stands, does what a command may do by itself, and says what is next. No step can be skipped.

use std::{path::PathBuf, sync::Arc, time::Duration};

use clap::Args;

use crate::{
    client::ClientFile,
    clock::{Clock as _, SystemClock, UtcTime},
    config::Config,
    domain::{KeyState, Kid, PartnerId},
    jwk::PublicKey,
    policy::{Bundle, timeline::TimedKey},
    proto::{
        self, ActivateKeyRequest, ListKeysRequest, ReloadPolicyRequest,
        key_directory_service_client::KeyDirectoryServiceClient,
    },
    signer::provision::{NewKey, Provisioned},
};

use super::super::{
    ClientPath, ConfigPath, Failure,
    admin::gateway,
    block_on,
    out::say,
    policy::{bundle_in, partner_in},
};

use super::{device, parse_kid};

mod stage;
mod steps;

use stage::{Plan, Stage};
use steps::{NAMES, Rotation, Step};

/// Exit codes: 0 nothing is to be done now, 1 a step has failed, 2 not understood, 3 a step waits.
#[derive(Debug, Args)]
pub(in crate::cli) struct Rotate {
    #[command(flatten)]
    config: ConfigPath,
    #[command(flatten)]
    client: ClientPath,
    /// The partner.
    #[arg(long)]
    partner: String,
    /// Begin a rotation: when the new key is to start signing, as `2026-12-01T00:00:00Z`.
    #[arg(long, value_name = "TIME", conflicts_with_all = ["emergency", "confirmed"])]
    start: Option<String>,
    /// The new kid; by itself that of the key before with the month of the start, as `quote-signing-2026-12`.
    #[arg(long)]
    kid: Option<String>,
    /// The signer of the config that makes the key; the one of the key before where it is not given.
    #[arg(long)]
    signer: Option<String>,
    /// The modulus' length in bits; 3072 is recommended, 2048 the least.
    #[arg(long, default_value_t = 3072)]
    bits: u32,
    /// How many days the new key signs.
    #[arg(long, default_value_t = 190)]
    days: u32,
    /// How many days the key before may still sign after the start.
    #[arg(long, default_value_t = 7)]
    overlap_days: u32,
    /// The operator has confirmed the new key: where that is on record.
    #[arg(long, value_name = "REF", conflicts_with = "emergency")]
    confirmed: Option<String>,
    /// A replacement for a key that was lost, which may sign before caches know it once two operators activate it: why.
    #[arg(long, value_name = "REASON")]
    emergency: Option<String>,
    /// With --emergency: put the change into the bundle, have the gateway read it, and ask for the activation.
    #[arg(long, requires = "emergency")]
    apply: bool,
    /// Where the changed bundle is written for review; `<policy>.next` where it is not given.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Where verifiers fetch the keys, where policy does not name it; the gateway's own listener by itself.
    #[arg(long)]
    url: Option<String>,
    /// The CAs that the URL is held against, PEM; the client file's own for the gateway's listener.
    #[arg(long, value_name = "FILE")]
    url_ca: Option<PathBuf>,
}

/// What stands for a key that is not made yet while the change is tried out.
const STAND_IN: [u8; 384] = [0xc3; 384];
const STAND_IN_PLACE: &str = "pkcs11:token=none;object=none;type=private";
/// Signing by a new key begins at least this long after the propagation time, so that a review has its time too.
const MARGIN: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);

impl Rotate {
    pub(super) fn run(self) -> Result<(), Failure> {
        let (config, client) = (self.config.load()?, self.client.load()?);
        if self.start.is_some() || self.confirmed.is_some() || self.emergency.is_some() && !self.apply {
            let out = self.out.clone().unwrap_or_else(|| stage::beside(&config.policy));
            if out.exists() {
                return Err(Failure::unfit(format!("{}: is there already; review or remove it", out.display())));
            }
        }
        let bundle = bundle_in(&config.policy)?;
        let partner = partner_in(&bundle, &self.partner)?.id.clone();
        if let Some(reason) = self.emergency.clone() {
            return self.replace(&config, &client, &bundle, &partner, reason);
        }
        match (&self.start, &self.confirmed) {
            (Some(start), _) => self.begin(&config, &client, &bundle, &partner, start),
            (None, Some(reference)) => self.confirm(&config, &client, &bundle, &partner, reference),
            (None, None) => self.show(&config, &client, &bundle, &partner).map(drop),
        }
    }

    /// Step 1, where the rotation before has come to its overlap.
    fn begin(
        &self,
        config: &Config,
        client: &ClientFile,
        bundle: &Bundle,
        partner: &PartnerId,
        start: &str,
    ) -> Result<(), Failure> {
        let start = UtcTime::parse(start).map_err(|fault| Failure::unfit(format!("--start: {fault}")))?;
        let revoked = revoked(client, partner)?;
        let old = newest(bundle, partner, &revoked);
        if old.is_some_and(|old| old.sign_from == start) {
            return self.show(config, client, bundle, partner).map(drop);
        }
        let now = whole_minute(SystemClock.now());
        if let Some(old) = old.filter(|old| old.state(now) < KeyState::Active) {
            return Err(Failure::failed(format!(
                "`{}` has not begun to sign; finish its rotation first: `quotesign keys rotate --partner {partner}`",
                old.kid
            )));
        }
        let earliest = now.plus(bundle.timeline.propagation()).plus(if bundle.timeline.propagation().is_zero() {
            Duration::ZERO
        } else {
            MARGIN
        });
        if start < earliest {
            return Err(Failure::failed(format!(
                "--start: caches must know the key first; the earliest start is {earliest}, the propagation time and an hour from now"
            )));
        }
        let plan = Plan {
            publish_at: now,
            sign_from: start,
            signs_for: DAY.saturating_mul(self.days),
            overlap: DAY.saturating_mul(self.overlap_days),
            emergency: None,
        };
        let mut stage = Stage::new(&config.policy, bundle)?;
        let kid = self.generate(config, partner, &mut stage, &plan, old)?;
        self.hand_over(&mut stage)?;
        say!("1 generate  done     `{kid}`");
        say!(
            "2 publish   next     have the change reviewed, put it in place of {}, and reload: `quotesign admin reload-policy`",
            config.policy.display()
        );
        Err(waiting())
    }

    fn generate(
        &self,
        config: &Config,
        partner: &PartnerId,
        stage: &mut Stage<'_>,
        plan: &Plan,
        old: Option<&Arc<TimedKey>>,
    ) -> Result<Kid, Failure> {
        let kid = match (&self.kid, old) {
            (Some(kid), _) => parse_kid(kid)?,
            (None, Some(old)) => next_kid(&old.kid, plan.sign_from)
                .ok_or_else(|| Failure::unfit("--kid: give the new key a name, such as `quote-signing-2026-12`"))?,
            (None, None) => {
                return Err(Failure::unfit("--kid: give the first key a name, such as `quote-signing-2026-12`"));
            }
        };
        if stage.bundle.key(&kid).is_some() {
            return Err(Failure::unfit(format!("--kid: `{kid}` is a key already; a kid is never used again")));
        }
        let signer = self.signer.clone().or_else(|| Some(old?.places.first()?.0.clone()));
        let signer = signer.ok_or_else(|| Failure::unfit("--signer: name the signer that makes the key"))?;
        let device = device(config, &signer)?;
        // Before a key is made whose name could not be used again: would the bundle take one?
        let public = PublicKey::new(kid.clone(), &STAND_IN, &[1, 0, 1]).map_err(Failure::unfit)?;
        let stand_in = Provisioned { public, locator: STAND_IN_PLACE.to_owned(), existed: false };
        let mut trial = Stage::new(stage.dir, stage.bundle)?;
        trial.add(&stand_in, partner.as_str(), &signer, plan, old.map(AsRef::as_ref));
        trial.check()?;
        let new = NewKey { kid: kid.clone(), partner: partner.to_string(), bits: self.bits };
        let made = block_on(async { device.generate(&new).await.map_err(Failure::failed) })?;
        if made.existed {
            say!("an earlier run made `{kid}`; nothing was generated");
        }
        stage.add(&made, partner.as_str(), &signer, plan, old.map(AsRef::as_ref));
        Ok(kid)
    }

    /// Writes the changed bundle, and says what changes.
    fn hand_over(&self, stage: &mut Stage<'_>) -> Result<(), Failure> {
        let changes = stage.check()?;
        let out = self.out.clone().unwrap_or_else(|| stage::beside(stage.dir));
        stage.write(&out)?;
        say!("the changed bundle is in {}:", out.display());
        for change in &changes {
            say!("  {change}");
        }
        Ok(())
    }

    /// Step 3, where the two before it are done.
    fn confirm(
        &self,
        config: &Config,
        client: &ClientFile,
        bundle: &Bundle,
        partner: &PartnerId,
        reference: &str,
    ) -> Result<(), Failure> {
        if reference.trim().is_empty() {
            return Err(Failure::unfit("--confirmed must say where the operator's word is on record"));
        }
        let new = newest_left(bundle, partner, &revoked(client, partner)?)?;
        if new.confirmed.is_some() {
            return Err(Failure::failed(format!("`{}` is confirmed already", new.kid)));
        }
        let steps = self.look(config, client, bundle, partner)?;
        if let Some((at, step)) = steps.iter().enumerate().take(2).find(|(_, step)| !matches!(step, Step::Done(_))) {
            let name = NAMES.get(at).copied().unwrap_or_default();
            return Err(Failure::failed(format!("step {} ({name}) comes first: {step}", at + 1)));
        }
        if let Some(Step::Failed(why)) = steps.get(2) {
            return Err(Failure::failed(format!("nothing that the operator could have seen: {why}")));
        }
        let mut stage = Stage::new(&config.policy, bundle)?;
        stage.confirm(&new.kid, whole_minute(SystemClock.now()), reference);
        self.hand_over(&mut stage)?;
        say!("have the change reviewed, put it in place of {}, and reload", config.policy.display());
        Err(waiting())
    }

    /// Where the newest key's rotation stands.
    fn show(&self, config: &Config, client: &ClientFile, bundle: &Bundle, partner: &PartnerId) -> Result<(), Failure> {
        let revoked = revoked(client, partner)?;
        let new = newest_left(bundle, partner, &revoked)?;
        if let Some(lost) = newest(bundle, partner, &[]).filter(|lost| lost.publish_at > new.publish_at) {
            return Err(Failure::failed(format!(
                "`{}`, which was to follow `{}`, was revoked, and `{}` ends at {}; begin anew with --start and another --kid, or \
                 where that is too late with --emergency",
                lost.kid, new.kid, new.kid, new.sign_until
            )));
        }
        let steps = self.look(config, client, bundle, partner)?;
        say!("rotation of {partner} to `{}`, which signs from {} on", new.kid, new.sign_from);
        for (at, (name, step)) in NAMES.iter().zip(&steps).enumerate() {
            say!("{} {name:<9} {step}", at + 1);
        }
        match steps.iter().find(|step| !matches!(step, Step::Done(_))) {
            None => Ok(()),
            Some(Step::Failed(why)) => Err(Failure::failed(why)),
            Some(_) => Err(waiting()),
        }
    }

    fn look(
        &self,
        config: &Config,
        client: &ClientFile,
        bundle: &Bundle,
        partner: &PartnerId,
    ) -> Result<[Step; 6], Failure> {
        let new = newest_left(bundle, partner, &revoked(client, partner)?)?;
        let registered = bundle.partner(partner).and_then(|partner| partner.jwks_url.clone());
        let (url, ca) = match self.url.clone().or(registered) {
            Some(url) => (url, self.url_ca.as_ref().unwrap_or(&config.jwks.url_ca)),
            None => (client.jwks_url(partner), self.url_ca.as_ref().unwrap_or(&client.ca)),
        };
        let rotation = Rotation {
            config,
            client,
            partner,
            url,
            url_ca: ca,
            new,
            old: before(bundle, new, &revoked(client, partner)?).map(AsRef::as_ref),
            now: SystemClock.now(),
        };
        block_on(rotation.look())
    }

    /// Makes a key that takes the place of one that was lost.
    fn replace(
        &self,
        config: &Config,
        client: &ClientFile,
        bundle: &Bundle,
        partner: &PartnerId,
        reason: String,
    ) -> Result<(), Failure> {
        if self.apply && config.policy_key.is_some() {
            return Err(Failure::unfit(
                "--apply: this gateway takes signed bundles alone; review the change and sign it",
            ));
        }
        let now = whole_minute(SystemClock.now());
        let plan = Plan {
            publish_at: now,
            sign_from: now,
            signs_for: DAY.saturating_mul(self.days),
            overlap: Duration::ZERO,
            emergency: Some(reason.clone()),
        };
        let mut stage = Stage::new(&config.policy, bundle)?;
        // Its name and signer are taken, whatever became of it.
        let old = newest(bundle, partner, &[]);
        let kid = self.generate(config, partner, &mut stage, &plan, old)?;
        if !self.apply {
            self.hand_over(&mut stage)?;
            say!(
                "put it in place of {}, reload, and let it sign: `quotesign keys activate {kid} --reason …`, by two operators where policy says so",
                config.policy.display()
            );
            return Err(waiting());
        }
        let changes = stage.check()?;
        stage.apply()?;
        for change in &changes {
            say!("{change}");
        }
        block_on(async {
            let mut gateway = gateway(client).await?;
            let reloaded = gateway.reload_policy(ReloadPolicyRequest {}).await;
            let serial = reloaded.map_err(|status| Failure::refused(&status))?.into_inner().policy_serial;
            say!("`{kid}` is published, policy serial {serial}");
            let activated = gateway.activate_key(ActivateKeyRequest { kid: kid.to_string(), reason }).await;
            let record = activated.map_err(|status| Failure::refused(&status))?.into_inner().audit_record_id;
            say!(
                "`{kid}` signs; verifiers may refuse its quotes until their caches are renewed (audit record {record})"
            );
            Ok(())
        })
    }
}

fn waiting() -> Failure {
    Failure { code: 3, text: "waiting; run the command again afterwards".to_owned() }
}

/// The partner's revoked kids, as the gateway says.
fn revoked(client: &ClientFile, partner: &PartnerId) -> Result<Vec<String>, Failure> {
    block_on(async {
        let mut directory = KeyDirectoryServiceClient::new(client.grpc().await.map_err(Failure::failed)?);
        let request = ListKeysRequest { partner: partner.to_string() };
        let listed = directory.list_keys(request).await.map_err(|status| Failure::refused(&status))?.into_inner();
        let revoked = listed.keys.into_iter().filter(|key| key.state() == proto::KeyState::Revoked);
        Ok(revoked.map(|key| key.kid).collect())
    })
}

/// The partner's newest key that is no standby and was not revoked.
fn newest<'b>(bundle: &'b Bundle, partner: &'b PartnerId, revoked: &[String]) -> Option<&'b Arc<TimedKey>> {
    bundle.timeline.of(partner).rfind(|key| !key.standby && !revoked.iter().any(|kid| kid == key.kid.as_str()))
}

/// The same, where there is one left to be asked about.
fn newest_left<'b>(
    bundle: &'b Bundle,
    partner: &'b PartnerId,
    revoked: &[String],
) -> Result<&'b Arc<TimedKey>, Failure> {
    newest(bundle, partner, revoked).ok_or_else(|| match newest(bundle, partner, &[]) {
        Some(lost) => Failure::failed(format!(
            "`{}` was revoked, and no key is left to take its place; make one with --emergency",
            lost.kid
        )),
        None => Failure::unfit("the partner has no key yet; give --start"),
    })
}

/// The one before it.
fn before<'b>(bundle: &'b Bundle, new: &'b TimedKey, revoked: &[String]) -> Option<&'b Arc<TimedKey>> {
    let is_other = |key: &&Arc<TimedKey>| !key.standby && key.kid != new.kid;
    bundle.timeline.of(&new.partner).rfind(|key| is_other(key) && !revoked.iter().any(|kid| kid == key.kid.as_str()))
}

/// The kid before with another month, where it ends in one.
fn next_kid(old: &Kid, start: UtcTime) -> Option<Kid> {
    let start = start.to_string();
    let (stem, month) = old.as_str().split_at_checked(old.as_str().len().checked_sub(7)?)?;
    let is_month = month.len() == 7 && month.bytes().enumerate().all(|(at, byte)| (byte == b'-') == (at == 4));
    let new = format!("{stem}{}", start.get(..7)?);
    (is_month && new != old.as_str()).then(|| new.parse().ok()).flatten()
}

fn whole_minute(at: UtcTime) -> UtcTime {
    UtcTime::from_millis(at.millis().div_euclid(60_000).saturating_mul(60_000))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn whoever_has_lost_the_last_key_is_told_of_the_emergency_and_whoever_has_none_to_start() {
        let bundle = Bundle::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("policy")).unwrap();
        let (partner, nobody) = ("borealis-pay".parse().unwrap(), "nobody".parse().unwrap());
        let newest = newest_left(&bundle, &partner, &[]).unwrap();
        let all: Vec<String> = bundle.timeline.of(&partner).map(|key| key.kid.to_string()).collect();
        let lost = newest_left(&bundle, &partner, &all).unwrap_err().text;
        assert!(lost.contains(&format!("`{}` was revoked", newest.kid)) && lost.contains("--emergency"), "{lost}");
        assert!(newest_left(&bundle, &nobody, &all).unwrap_err().text.contains("--start"));
    }
}
