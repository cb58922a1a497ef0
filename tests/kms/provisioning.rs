//! Generating, listing and trying keys, as the commands do it.

use std::{sync::Arc, time::Duration};

use aws_sdk_kms::types::{KeySpec, KeyUsageType, Tag};
use quotesign::{
    domain::{Environment, Kid},
    signer::{
        Attributes, Device as _, Pinned,
        kms::{Kms, KmsConfig},
        provision::{NewKey, Provision, ProvisionError},
    },
};

use crate::{
    contract::{self, comes_to_serve},
    emulator::Emulator,
    harness::{Site, aws, config, create, with_kms},
    proxy::{Fault, Rule},
};

/// A kid that no other test of this emulator has.
fn kid(name: &str) -> Kid {
    format!("{name}-{}", &uuid::Uuid::new_v4().to_string()[..8]).parse().unwrap()
}

fn new_key(kid: &Kid) -> NewKey {
    NewKey { kid: kid.clone(), partner: "acme-pay".to_owned(), bits: 2048 }
}

fn provisioner(site: &Site) -> impl Provision + use<> {
    Kms::provisioner(KmsConfig { environment: Some(Environment::Sandbox), ..site.config() })
}

async fn tags(site: &Site, arn: &str) -> Vec<(String, String)> {
    let told = site.aws.list_resource_tags().key_id(arn).send().await.unwrap();
    let mut tags: Vec<_> =
        told.tags().iter().map(|tag| (tag.tag_key().to_owned(), tag.tag_value().to_owned())).collect();
    tags.sort();
    tags
}

with_kms! {
    async fn a_generated_key_is_tagged_named_and_signs_and_is_found_by_the_same_command(site) {
        let kid = kid("quote-signing-2026.11");
        let commands = provisioner(&site);
        let made = commands.generate(&new_key(&kid)).await.unwrap();
        assert!(!made.existed && made.public.bits() == 2048 && made.public.kid() == &kid);
        let tag = |name: &str, value: &str| (format!("quotesign:{name}"), value.to_owned());
        assert_eq!(
            tags(&site, &made.locator).await,
            [tag("environment", "sandbox"), tag("kid", kid.as_str()), tag("partner", "acme-pay")]
        );
        let alias = format!("alias/quotesign-{}", kid.as_str().replace('.', "_"));
        let told = site.aws.describe_key().key_id(&alias).send().await.unwrap().key_metadata.unwrap();
        assert_eq!(told.arn(), Some(made.locator.as_str()));
        let sent = site.proxy.seen("CreateKey");
        assert!(sent.len() == 1 && sent[0].body["KeyUsage"] == "SIGN_VERIFY" && sent[0].body["Origin"] == "AWS_KMS");
        for _ in 0..2 {
            let again = commands.generate(&new_key(&kid)).await.unwrap();
            assert!(again.existed && again.locator == made.locator);
            assert_eq!(again.public.thumbprint(), made.public.thumbprint());
        }
        assert_eq!(site.proxy.seen("CreateKey").len(), 1);
        let larger = commands.generate(&NewKey { bits: 3072, ..new_key(&kid) }).await.unwrap_err();
        assert!(matches!(&larger, ProvisionError::Exists(what) if what.contains("2048 bits and not 3072")), "{larger}");
        // What is printed is what the gateway takes.
        let kms = site.kms();
        let (public, locator) = (Arc::new(made.public), made.locator);
        let signer = kms.key(Pinned { public, locator, attributes: Attributes::Require }).unwrap();
        comes_to_serve(&*signer).await;
        contract::a_signature_verifies_with_the_pinned_key(&*signer).await;
    }

    async fn a_run_that_died_before_the_alias_is_gone_on_with(site) {
        let kid = kid("quote-signing-torn");
        let commands = provisioner(&site);
        site.proxy.rules([Rule::always("CreateAlias", Fault::Reset)]);
        let torn = commands.generate(&new_key(&kid)).await.unwrap_err();
        assert!(matches!(torn, ProvisionError::Device(_)), "{torn}");
        site.proxy.rules([]);
        let larger = commands.generate(&NewKey { bits: 3072, ..new_key(&kid) }).await.unwrap_err();
        assert!(matches!(&larger, ProvisionError::Exists(what) if what.contains("2048 bits and not 3072")), "{larger}");
        assert_eq!(site.proxy.seen("CreateAlias").len(), 3, "only the first run sent any, with its retries");
        let made = commands.generate(&new_key(&kid)).await.unwrap();
        assert!(made.existed && site.proxy.seen("CreateKey").len() == 1, "the key of the first run is taken");
        assert_eq!(commands.generate(&new_key(&kid)).await.unwrap().locator, made.locator);
    }

    async fn two_runs_at_once_come_to_one_key(site) {
        let kid = kid("quote-signing-race");
        let (one, other) = (provisioner(&site), provisioner(&site));
        // Both find neither alias nor key.
        site.proxy.rules([Rule::always("CreateKey", Fault::Delay(Duration::from_millis(500)))]);
        let (key, other_key) = (new_key(&kid), new_key(&kid));
        let (one, other) = tokio::join!(one.generate(&key), other.generate(&other_key));
        let (one, other) = (one.unwrap(), other.unwrap());
        assert_eq!(one.locator, other.locator);
        assert_eq!(site.proxy.seen("CreateKey").len(), 2);
        assert_eq!(provisioner(&site).generate(&key).await.unwrap().locator, one.locator);
    }

    async fn an_alias_whose_answer_was_lost_was_given(site) {
        let kid = kid("quote-signing-heard");
        site.proxy.rules([Rule::always("CreateAlias", Fault::Lost).times(1)]);
        let made = provisioner(&site).generate(&new_key(&kid)).await.unwrap();
        assert_eq!(site.proxy.seen("CreateAlias").len(), 2);
        let told = site.aws.describe_key().key_id(format!("alias/quotesign-{kid}")).send().await.unwrap();
        assert_eq!(told.key_metadata.unwrap().arn, Some(made.locator));
    }

    async fn a_creation_without_an_answer_is_not_sent_twice_by_itself(site) {
        let kid = kid("quote-signing-once");
        site.proxy.rules([Rule::always("CreateKey", Fault::Reset)]);
        provisioner(&site).generate(&new_key(&kid)).await.unwrap_err();
        assert_eq!(site.proxy.seen("CreateKey").len(), 1);
    }

    async fn a_new_key_that_kms_does_not_know_everywhere_yet_is_waited_for(site) {
        let kid = kid("quote-signing-late");
        let unknown = |action| Rule::always(action, Fault::Error(400, "NotFoundException"));
        site.proxy.rules([unknown("GetPublicKey").times(2), unknown("Sign").times(2)]);
        assert!(!provisioner(&site).generate(&new_key(&kid)).await.unwrap().existed);
    }

    async fn an_alias_of_another_key_is_left_alone(site) {
        let kid = kid("quote-signing-taken");
        let other = site.rsa_key(2048).await;
        let alias = format!("alias/quotesign-{kid}");
        site.aws.create_alias().alias_name(&alias).target_key_id(&other).send().await.unwrap();
        let refused = provisioner(&site).generate(&new_key(&kid)).await.unwrap_err();
        assert_eq!(refused, ProvisionError::Exists(alias));
        assert!(site.proxy.seen("CreateKey").is_empty());
        let small = provisioner(&site).generate(&NewKey { bits: 1024, ..new_key(&kid) }).await.unwrap_err();
        assert!(matches!(small, ProvisionError::Invalid(_)), "{small}");
    }

    async fn two_keys_of_one_kid_are_told_and_none_is_chosen(site) {
        let kid = kid("quote-signing-twice");
        for _ in 0..2 {
            let mut call = site.aws.create_key().key_spec(KeySpec::Rsa2048).key_usage(KeyUsageType::SignVerify);
            for (name, value) in [("kid", kid.as_str()), ("partner", "acme-pay"), ("environment", "sandbox")] {
                let name = format!("quotesign:{name}");
                call = call.tags(Tag::builder().tag_key(name).tag_value(value).build().unwrap());
            }
            call.send().await.unwrap();
        }
        let refused = provisioner(&site).generate(&new_key(&kid)).await.unwrap_err();
        let want = "have all but one deleted";
        assert!(matches!(&refused, ProvisionError::Invalid(why) if why.contains(want)), "{refused}");
    }

    /// Whether the first run came to name it or not.
    async fn a_key_that_was_made_for_another_partner_or_environment_is_not_taken(site) {
        let kid = kid("quote-signing-foreign");
        let key = new_key(&kid);
        let made = provisioner(&site).generate(&key).await.unwrap();
        let elsewhere = Kms::provisioner(KmsConfig { environment: Some(Environment::Production), ..site.config() });
        let other = NewKey { partner: "acme-remit".to_owned(), ..key.clone() };
        let alias = format!("alias/quotesign-{kid}");
        for is_named in [true, false] {
            if !is_named {
                site.aws.delete_alias().alias_name(&alias).send().await.unwrap();
            }
            let refused = elsewhere.generate(&key).await.unwrap_err();
            let why = format!("{kid} with quotesign:environment sandbox and not production");
            assert_eq!(refused, ProvisionError::Exists(why));
            let refused = provisioner(&site).generate(&other).await.unwrap_err();
            let why = format!("{kid} with quotesign:partner acme-pay and not acme-remit");
            assert_eq!(refused, ProvisionError::Exists(why));
        }
        assert_eq!(site.proxy.seen("CreateKey").len(), 1);
        let again = provisioner(&site).generate(&key).await.unwrap();
        assert!(again.existed && again.locator == made.locator);
    }

    async fn keys_are_listed_with_what_is_against_them(site) {
        let kid = kid("quote-signing-listed");
        let commands = provisioner(&site);
        let made = commands.generate(&new_key(&kid)).await.unwrap();
        let disabled = site.rsa_key(3072).await;
        site.aws.disable_key().key_id(&disabled).send().await.unwrap();
        let curve = site.key(KeySpec::EccNistP256, KeyUsageType::SignVerify).await;
        let listed = commands.list().await.unwrap();
        let entry = |arn: &str| listed.iter().find(|key| key.locator == arn);
        let own = entry(&made.locator).unwrap();
        assert_eq!(own.name, Some(format!("alias/quotesign-{kid}")));
        assert_eq!((own.bits, &own.thumbprint, &own.unfit), (Some(2048), &Some(made.public.thumbprint()), &None));
        let off = entry(&disabled).unwrap();
        assert!(off.name.is_none() && off.bits == Some(3072));
        assert!(off.unfit.as_ref().unwrap().contains("is disabled"), "{off:?}");
        assert!(entry(&curve).is_none(), "it is no RSA key");
    }

    async fn a_key_is_tried_out_and_what_fails_is_told(site) {
        let commands = provisioner(&site);
        let arn = site.rsa_key(2048).await;
        let kid = kid("quote-signing-tried");
        let tried = commands.try_out(&kid, &arn, Attributes::Require).await.unwrap();
        assert_eq!((tried.public.kid(), tried.locator.as_str(), tried.existed), (&kid, arn.as_str(), true));
        let unknown = arn.replace(arn.rsplit('/').next().unwrap(), "00000000-0000-4000-8000-000000000000");
        assert_eq!(
            commands.try_out(&kid, &unknown, Attributes::Require).await.unwrap_err(),
            ProvisionError::Missing(unknown)
        );
        let alias = commands.try_out(&kid, "alias/quotes", Attributes::Require).await.unwrap_err();
        assert!(matches!(&alias, ProvisionError::Invalid(why) if why.contains("is an alias")), "{alias}");
        let imported = site.imported().await;
        let waits = commands.try_out(&kid, &imported, Attributes::Require).await.unwrap_err();
        assert!(waits.to_string().contains("PendingImport"), "{waits}");
        site.proxy.rules([Rule::always("Sign", Fault::Corrupt)]);
        let corrupt = commands.try_out(&kid, &arn, Attributes::Require).await.unwrap_err();
        assert!(matches!(&corrupt, ProvisionError::Unfit(why) if why.contains("does not verify")), "{corrupt}");
    }

    /// A key that fails its trial gets no alias, and nothing of it is printed.
    async fn an_emulator_that_hashes_twice_gives_no_key(site) {
        drop(site);
        let moto = Emulator::moto();
        let commands = Kms::provisioner(config(&format!("http://{}", moto.address())));
        let refused = commands.generate(&new_key(&kid("quote-signing-moto"))).await.unwrap_err();
        println!("  {refused}");
        assert!(matches!(&refused, ProvisionError::Unfit(why) if why.contains("does not verify")), "{refused}");
        let aws = aws(moto.address());
        assert!(!aws.list_aliases().send().await.unwrap().aliases().iter().any(|alias| {
            alias.alias_name().is_some_and(|name| name.starts_with("alias/quotesign-"))
        }));
        let arn = create(&aws, KeySpec::Rsa2048, KeyUsageType::SignVerify).await;
        let tried = commands.try_out(&kid("quote-signing-moto"), &arn, Attributes::Require).await.unwrap_err();
        assert!(matches!(tried, ProvisionError::Unfit(_)), "{tried}");
    }
}
