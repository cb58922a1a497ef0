//! What signs and what may not: keys of every size, and keys that are disabled, deleted, unknown, of another kind,
//! imported, or not the pinned one; and an emulator whose signatures do not verify.

use std::{path::Path, process::Command, time::Duration};

use aws_sdk_kms::types::{KeySpec, KeyUsageType};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use quotesign::{
    domain::sha256,
    jws::SigningInput,
    signer::{Attributes, Device as _, Health, Pinned, SignError, kms::Kms},
};
use tokio::time::sleep;

use crate::{
    contract::{self, comes_not_to_serve, comes_to_serve},
    emulator::{Emulator, python},
    harness::{Site, aws, config, create, pinned, with_kms},
};

/// Asks openssl, which shares no code with us, for its opinion.
async fn openssl_verifies(site: &Site, arn: &str, input: &SigningInput, signature: &[u8]) -> bool {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let half = site.aws.get_public_key().key_id(arn).send().await.unwrap();
    std::fs::write(path("der"), half.public_key.unwrap().into_inner()).unwrap();
    std::fs::write(path("input"), input.bytes()).unwrap();
    std::fs::write(path("signature"), signature).unwrap();
    let openssl = |args: &[&str], file: &Path| {
        Command::new("openssl").args(args).arg(file).current_dir(dir.path()).output().unwrap()
    };
    assert!(openssl(&["pkey", "-pubin", "-inform", "DER", "-in", "der", "-out"], &path("pem")).status.success());
    openssl(&["dgst", "-sha256", "-verify", "pem", "-signature", "signature"], &path("input")).status.success()
}

with_kms! {
    async fn keys_of_every_size_sign_and_the_digest_alone_is_sent(site) {
        let kms = site.kms();
        for bits in [2048, 3072, 4096] {
            let arn = site.rsa_key(bits).await;
            let signer = site.bound(&kms, &arn).await;
            comes_to_serve(&*signer).await;
            let (input, signature) = contract::sign(&*signer).await.unwrap();
            assert_eq!(signature.bytes().len(), bits as usize / 8);
            assert!(signer.public_key().verifies(input.bytes(), signature.bytes()));
            assert!(openssl_verifies(&site, &arn, &input, signature.bytes()).await);
            assert!(!openssl_verifies(&site, &arn, &SigningInput::fresh_probe(), signature.bytes()).await);
            let sent = site.proxy.seen("Sign");
            let sent = &sent.last().unwrap().body;
            assert_eq!(sent["Message"].as_str().unwrap(), STANDARD.encode(sha256(input.bytes())));
            assert_eq!(sent["MessageType"], "DIGEST");
            assert_eq!(sent["SigningAlgorithm"], "RSASSA_PKCS1_V1_5_SHA_256");
            assert_eq!(sent["KeyId"], arn.as_str());
        }
        assert_eq!(kms.health(), Health::Serving);
    }

    async fn a_key_keeps_what_every_signer_keeps(site) {
        let kms = site.kms();
        let arn = site.rsa_key(2048).await;
        let signer = site.bound(&kms, &arn).await;
        assert!(!signer.health().takes_orders(), "nothing is known of it yet");
        comes_to_serve(&*signer).await;
        contract::a_signature_verifies_with_the_pinned_key(&*signer).await;
        contract::the_same_input_gets_the_same_signature(&*signer).await;
        contract::an_order_that_is_late_or_taken_back_is_refused(&*signer).await;
        contract::many_orders_of_many_flows_are_done_side_by_side(&signer, 200).await;
        contract::distrust_takes_it_out_of_service_until_a_test_signature_verifies(&*signer).await;
        let other = site.rsa_key(2048).await;
        let other = site.pinned(&other).await.public;
        contract::a_key_pinned_to_another_public_half_is_unfit(&kms, &arn, other).await;
        let key_id = arn.rsplit('/').next().unwrap();
        let foreign = arn.replace("eu-west-1", "us-east-1");
        for (locator, remedy) in [
            ("pkcs11:token=quotes;object=a;type=private", "write it as `arn:aws:kms:"),
            (key_id, "write it as `arn:aws:kms:"),
            ("alias/quotes", "write the key's own ARN"),
            (&arn.replace(&format!("key/{key_id}"), "alias/quotes"), "write the key's own ARN"),
            (&foreign, "name the signer of that region"),
        ] {
            let said = contract::a_locator_of_another_kind_is_refused(&kms, signer.public_key(), locator);
            assert!(said.contains(remedy), "{said}");
        }
        contract::a_closed_device_refuses_and_says_so(&kms, &*signer).await;
    }

    async fn a_key_that_may_not_sign_says_why_while_another_signs(site) {
        let kms = site.kms();
        let good = site.rsa_key(2048).await;
        let signer = site.bound(&kms, &good).await;
        let pin = site.pinned(&good).await;
        let disabled = site.rsa_key(2048).await;
        site.aws.disable_key().key_id(&disabled).send().await.unwrap();
        let deleted = site.rsa_key(2048).await;
        site.aws.schedule_key_deletion().key_id(&deleted).pending_window_in_days(7).send().await.unwrap();
        let unknown = good.replace(good.rsplit('/').next().unwrap(), "00000000-0000-4000-8000-000000000000");
        let curve = site.key(KeySpec::EccNistP256, KeyUsageType::SignVerify).await;
        let cipher = site.key(KeySpec::Rsa2048, KeyUsageType::EncryptDecrypt).await;
        let awaited = site.imported().await;
        let imported = site.imported().await;
        import_material(&site, &imported);
        for (arn, reason, is_unfit) in [
            (&disabled, "the key is disabled; enable it with `aws kms enable-key`", false),
            (&deleted, "the key is to be deleted; if that is a mistake, `aws kms cancel-key-deletion`", false),
            (&unknown, "AWS KMS has no such key (`DescribeKey`: NotFoundException, request ", false),
            (&curve, "its spec is `ECC_NIST_P256` and must be RSA_2048", true),
            (&cipher, "its usage is `ENCRYPT_DECRYPT` and must be `SIGN_VERIFY`", true),
            (&awaited, "the key's state is `PendingImport`", false),
            (&imported, "its origin is `EXTERNAL`, so it was not generated in an HSM of AWS", true),
        ] {
            let bad = kms.key(Pinned { locator: arn.clone(), ..pin.clone() }).unwrap();
            let said = comes_not_to_serve(&*bad, reason).await;
            println!("  {said}");
            match contract::sign(&*bad).await.unwrap_err() {
                SignError::Unfit(why) => assert!(is_unfit && why.contains(reason), "{why}"),
                SignError::Unavailable(why) => assert!(!is_unfit && why.contains(reason), "{why}"),
                error => panic!("{error}"),
            }
            comes_to_serve(&*signer).await;
            contract::a_signature_verifies_with_the_pinned_key(&*signer).await;
        }
        assert!(site.proxy.seen("Sign").iter().all(|sent| sent.body["KeyId"] == good.as_str()));
        assert_eq!(kms.health(), Health::Serving, "what is wrong with a key says nothing of KMS");
    }

    async fn an_imported_key_signs_only_where_attributes_do_not_require_more(site) {
        let kms = site.kms();
        let arn = site.imported().await;
        import_material(&site, &arn);
        for attributes in [Attributes::Warn, Attributes::Off] {
            let signer = kms.key(Pinned { attributes, ..site.pinned(&arn).await }).unwrap();
            comes_to_serve(&*signer).await;
            contract::a_signature_verifies_with_the_pinned_key(&*signer).await;
        }
    }

    async fn a_key_disabled_and_enabled_at_work_stops_and_comes_back_by_itself(site) {
        let kms = site.kms();
        let arn = site.rsa_key(2048).await;
        let signer = site.bound(&kms, &arn).await;
        comes_to_serve(&*signer).await;
        site.aws.disable_key().key_id(&arn).send().await.unwrap();
        let why = contract::sign(&*signer).await.unwrap_err();
        let want = "is disabled (`Sign`: DisabledException";
        assert!(matches!(&why, SignError::Unavailable(why) if why.contains(want)), "{why}");
        assert!(!signer.health().takes_orders(), "one such answer is enough");
        site.aws.enable_key().key_id(&arn).send().await.unwrap();
        comes_to_serve(&*signer).await;
        contract::a_signature_verifies_with_the_pinned_key(&*signer).await;
        site.aws.schedule_key_deletion().key_id(&arn).pending_window_in_days(7).send().await.unwrap();
        comes_not_to_serve(&*signer, "the key is to be deleted").await;
        site.aws.cancel_key_deletion().key_id(&arn).send().await.unwrap();
        comes_not_to_serve(&*signer, "the key is disabled").await;
        site.aws.enable_key().key_id(&arn).send().await.unwrap();
        comes_to_serve(&*signer).await;
    }

    /// The emulator hashes a digest once more, and its own `Verify` agrees with itself. Whoever asks it is deceived.
    async fn an_emulator_that_hashes_twice_never_serves(site) {
        drop(site);
        let moto = Emulator::moto();
        let aws = aws(moto.address());
        let arn = create(&aws, KeySpec::Rsa2048, KeyUsageType::SignVerify).await;
        let kms = Kms::start(config(&format!("http://{}", moto.address())));
        let signer = kms.key(pinned(&aws, &arn).await).unwrap();
        let said = comes_not_to_serve(&*signer, "its test signature does not verify").await;
        println!("  {said}");
        for _ in 0..100 {
            assert!(!signer.health().takes_orders());
            sleep(Duration::from_millis(20)).await;
        }
        assert!(matches!(contract::sign(&*signer).await, Err(SignError::Unfit(_))));
        assert_eq!(kms.health(), Health::Serving, "it does answer");
    }
}

/// Imports a key that was made outside, of which there is a copy then.
fn import_material(site: &Site, arn: &str) {
    const SCRIPT: &str = r#"
import os, sys, boto3
from cryptography.hazmat.primitives import hashes, keywrap, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
endpoint, arn = sys.argv[1:]
kms = boto3.client("kms", endpoint_url=endpoint, region_name="eu-west-1",
                   aws_access_key_id="AKIDTEST", aws_secret_access_key="verysecret")
asked = kms.get_parameters_for_import(KeyId=arn, WrappingAlgorithm="RSA_AES_KEY_WRAP_SHA_256",
                                      WrappingKeySpec="RSA_4096")
wrapping = serialization.load_der_public_key(asked["PublicKey"])
key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
der = key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
aes = os.urandom(32)
oaep = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)
material = wrapping.encrypt(aes, oaep) + keywrap.aes_key_wrap_with_padding(aes, der)
kms.import_key_material(KeyId=arn, ImportToken=asked["ImportToken"], EncryptedKeyMaterial=material,
                        ExpirationModel="KEY_MATERIAL_DOES_NOT_EXPIRE")
"#;
    let endpoint = format!("http://{}", site.emulator);
    let run = Command::new(python("python")).args(["-c", SCRIPT, &endpoint, arn]).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
}
