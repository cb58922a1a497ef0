//! KMS at its worst: throttled, slow, silent, torn, away, and wrong. No wrong answer is taken for a signature, nothing
//! hangs, and the key comes back by itself.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use aws_sdk_kms::types::{KeySpec, KeyUsageType};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use quotesign::{
    jws::SigningInput,
    signer::{
        Device as _, Flow, Health, Order, SignError, Signer,
        kms::{Kms, KmsConfig},
    },
};
use tokio::time::sleep;

use crate::{
    contract::{self, comes_not_to_serve, comes_to_serve},
    emulator::Emulator,
    harness::{Site, aws, config, create, pinned, with_kms},
    proxy::{Fault, Rule},
};

const THROTTLED: Fault = Fault::Error(400, "ThrottlingException");
/// How many faults one after another open the breaker.
const FAULTS_MAX: usize = 5;

/// A key that serves, with short timeouts.
async fn serving(site: &Site) -> (Kms, Arc<dyn Signer>) {
    let kms = Kms::start(KmsConfig {
        attempt_timeout: Duration::from_millis(400),
        call_timeout: Duration::from_secs(1),
        // Out of the way of what is counted.
        check_interval: Duration::from_mins(1),
        probe_interval: Duration::from_secs(2),
        ..site.config()
    });
    let arn = site.rsa_key(2048).await;
    let signer = site.bound(&kms, &arn).await;
    comes_to_serve(&*signer).await;
    (kms, signer)
}

/// Signs until the key is out of service; gives the errors on the way, with what each took.
async fn until_out_of_service(signer: &dyn Signer) -> Vec<(SignError, Duration)> {
    let since = Instant::now();
    let mut errors = Vec::new();
    while signer.health().takes_orders() {
        assert!(since.elapsed() < Duration::from_mins(1), "{errors:?}");
        let began = Instant::now();
        if let Err(error) = contract::sign(signer).await {
            errors.push((error, began.elapsed()));
        }
    }
    errors
}

/// A key's public half as it stands in an answer.
async fn public_half(site: &Site, arn: &str) -> String {
    let half = site.aws.get_public_key().key_id(arn).send().await.unwrap();
    STANDARD.encode(half.public_key.unwrap().into_inner())
}

/// Ends the fault, and measures how long the key takes to be back.
async fn comes_back(site: &Site, signer: &dyn Signer, after: &str) {
    site.proxy.rules([]);
    let since = Instant::now();
    comes_to_serve(signer).await;
    println!("  back {} ms after {after}", since.elapsed().as_millis());
    contract::a_signature_verifies_with_the_pinned_key(signer).await;
}

with_kms! {
    async fn two_of_three_requests_throttled_are_no_error(site) {
        let (_kms, signer) = serving(&site).await;
        site.proxy.rules([Rule::always("Sign", THROTTLED).of(2, 3)]);
        let (before, since) = (site.proxy.seen("Sign").len(), Instant::now());
        for _ in 0..10 {
            contract::a_signature_verifies_with_the_pinned_key(&*signer).await;
        }
        let (sent, took) = (site.proxy.seen("Sign").len() - before, since.elapsed());
        println!("  10 signatures by {sent} requests, {} ms each", took.as_millis() / 10);
        assert!(sent >= 30 && signer.health() == Health::Serving);
    }

    async fn throttling_that_lasts_is_told_in_time_and_ends_by_itself(site) {
        let (_kms, signer) = serving(&site).await;
        site.proxy.rules([Rule::always("Sign", THROTTLED)]);
        let errors = until_out_of_service(&*signer).await;
        assert!(errors.len() >= FAULTS_MAX, "{errors:?}");
        for (error, took) in &errors {
            assert!(*error == SignError::Full && *took < Duration::from_secs(2), "{error} after {took:?}");
        }
        let why = comes_not_to_serve(&*signer, "the account's quota is used up (`Sign`: ThrottlingException").await;
        println!("  {why}");
        let before = site.proxy.seen("Sign").len();
        for _ in 0..100 {
            assert!(matches!(contract::sign(&*signer).await, Err(SignError::Unavailable(_))));
        }
        assert!(site.proxy.seen("Sign").len() < before + 10, "out of service, nothing is sent but test signatures");
        sleep(Duration::from_secs(2)).await;
        assert!(!signer.health().takes_orders());
        comes_back(&site, &*signer, "throttling ended").await;
    }

    async fn a_kms_too_slow_is_taken_out_and_comes_back(site) {
        let (kms, signer) = serving(&site).await;
        site.proxy.rules([Rule::always("*", Fault::Delay(Duration::from_millis(900)))]);
        let errors = until_out_of_service(&*signer).await;
        // A test signature may be one of them.
        assert!((FAULTS_MAX - 1..=FAULTS_MAX).contains(&errors.len()), "{errors:?}");
        for (error, took) in &errors {
            let SignError::Lost(why) = error else { panic!("{error}") };
            assert!(why == "AWS KMS did not answer `Sign` in time" && *took < Duration::from_secs(4), "{why} {took:?}");
        }
        assert!(matches!(kms.health(), Health::NotServing(why) if why.contains("did not answer")));
        comes_back(&site, &*signer, "delays ended").await;
        assert_eq!(kms.health(), Health::Serving);
    }

    async fn a_delay_within_the_timeout_is_only_slow(site) {
        let (_kms, signer) = serving(&site).await;
        site.proxy.rules([Rule::always("Sign", Fault::Delay(Duration::from_millis(150)))]);
        for _ in 0..=FAULTS_MAX {
            contract::a_signature_verifies_with_the_pinned_key(&*signer).await;
        }
    }

    async fn a_silent_kms_costs_no_more_than_the_deadline(site) {
        let (_kms, signer) = serving(&site).await;
        site.proxy.rules([Rule::always("Sign", Fault::Hang)]);
        for _ in 0..2 * FAULTS_MAX {
            let since = Instant::now();
            let order = Order::new(Flow(1), since + Duration::from_millis(200));
            assert_eq!(signer.sign(&SigningInput::fresh_probe(), &order).await, Err(SignError::TimedOut));
            assert!(since.elapsed() < Duration::from_millis(1500), "{:?}", since.elapsed());
        }
        // Whoever leaves KMS less time than a request may take cannot take the key from others.
        // Its own test signature meets with the silence too.
        match signer.health() {
            Health::NotServing(why) => assert!(why.contains("in time"), "{why}"),
            health => assert_eq!(health, Health::Serving),
        }
        let errors = until_out_of_service(&*signer).await;
        assert!(errors.iter().all(|(error, _)| matches!(error, SignError::Lost(_))), "{errors:?}");
        comes_back(&site, &*signer, "silence ended").await;
        assert_eq!(signer.turns().usage().busy, 0);
    }

    async fn a_connection_torn_now_and_then_is_no_error_and_torn_always_is_one(site) {
        let (_kms, signer) = serving(&site).await;
        site.proxy.rules([Rule::always("Sign", Fault::Reset).of(1, 2)]);
        for _ in 0..5 {
            contract::a_signature_verifies_with_the_pinned_key(&*signer).await;
        }
        site.proxy.rules([Rule::always("*", Fault::Reset)]);
        let errors = until_out_of_service(&*signer).await;
        // A test signature may be one of them.
        assert!((FAULTS_MAX - 1..=FAULTS_MAX).contains(&errors.len()), "{errors:?}");
        let why = comes_not_to_serve(&*signer, "AWS KMS cannot be reached").await;
        println!("  {why}");
        comes_back(&site, &*signer, "resets ended").await;
    }

    async fn each_error_of_kms_is_sorted_and_ends_by_itself(site) {
        let (_kms, signer) = serving(&site).await;
        for (status, code, want) in [
            (500, "KMSInternalException", "AWS KMS failed (`Sign`: KMSInternalException, request 0f0e0d0c-"),
            (503, "DependencyTimeoutException", "AWS KMS failed (`Sign`: DependencyTimeoutException"),
            (500, "KeyUnavailableException", "AWS KMS has the key unavailable for the moment"),
            (400, "KMSInvalidStateException", "the key's state forbids it"),
            (400, "NotFoundException", "AWS KMS has no such key"),
            (400, "AccessDeniedException", "allow `kms:Sign` to the role, in IAM or in the key's policy"),
            (400, "InvalidKeyUsageException", "AWS KMS does not do so with this key"),
            (400, "ValidationException", "AWS KMS does not do so with this key"),
            (400, "UnsupportedOperationException", "AWS KMS does not do so with this key"),
            (400, "UnrecognizedClientException", "AWS refuses the credentials"),
            (400, "LimitExceededException", "the account's quota is used up"),
        ] {
            site.proxy.rules([Rule::always("Sign", Fault::Error(status, code))]);
            until_out_of_service(&*signer).await;
            let why = comes_not_to_serve(&*signer, want).await;
            assert!(!why.contains("AKID") && why.contains(code), "{why}");
            comes_back(&site, &*signer, code).await;
        }
    }

    async fn credentials_that_expire_are_a_matter_of_the_device(site) {
        let (kms, signer) = serving(&site).await;
        site.proxy.rules([Rule::always("*", Fault::Error(400, "ExpiredTokenException"))]);
        until_out_of_service(&*signer).await;
        assert!(matches!(kms.health(), Health::NotServing(why) if why.contains("AWS refuses the credentials")));
        comes_back(&site, &*signer, "the credentials were taken again").await;
        assert_eq!(kms.health(), Health::Serving);
    }

    /// The device passes a signature on as it came; its caller verifies it, as the path of a quote does.
    async fn a_corrupt_signature_is_caught_by_its_caller_and_the_key_taken_out(site) {
        let (_kms, signer) = serving(&site).await;
        site.proxy.rules([Rule::always("Sign", Fault::Corrupt)]);
        let (input, signature) = contract::sign(&*signer).await.unwrap();
        assert!(!signer.public_key().verifies(input.bytes(), signature.bytes()));
        signer.distrust("it does not verify with the published key");
        let refused = contract::sign(&*signer).await.unwrap_err();
        assert!(matches!(&refused, SignError::Unavailable(why) if why.contains("published key")), "{refused}");
        // Nor does a test signature verify while this lasts.
        comes_not_to_serve(&*signer, "its test signature does not verify").await;
        comes_back(&site, &*signer, "corruption ended").await;
    }

    async fn a_wrong_answer_is_refused_and_takes_the_key_out(site) {
        let kms = site.kms();
        let arn = site.rsa_key(2048).await;
        let signer = site.bound(&kms, &arn).await;
        let other = site.rsa_key(2048).await;
        let (own_half, other_half) = (public_half(&site, &arn).await, public_half(&site, &other).await);
        comes_to_serve(&*signer).await;
        for (fault, want) in [
            (Fault::Short, "the signature has 255 bytes and must have 256"),
            (Fault::Swap(arn.clone(), other.clone()), "another key has signed"),
            (Fault::Swap("PKCS1_V1_5_SHA_256".to_owned(), "PSS_SHA_256".to_owned()), "signed with another algorithm"),
        ] {
            site.proxy.rules([Rule::always("Sign", fault)]);
            let error = contract::sign(&*signer).await.unwrap_err();
            assert!(matches!(&error, SignError::Lost(why) if why.contains(want)), "{error}");
            assert!(!signer.health().takes_orders(), "one such answer is enough");
            comes_back(&site, &*signer, want).await;
        }
        site.proxy.rules([Rule::always("Sign", Fault::Garbage)]);
        let errors = until_out_of_service(&*signer).await;
        assert!(errors.iter().all(|(error, _)| matches!(error, SignError::Lost(_))), "{errors:?}");
        let nonsense = "an answer that makes no sense: HTTP status 200 to `Sign`";
        assert!(errors[0].0.to_string().ends_with(nonsense), "{errors:?}");
        comes_back(&site, &*signer, "garbage ended").await;
        // A key that is exchanged under the same ARN is found by the next check.
        site.proxy.rules([Rule::always("GetPublicKey", Fault::Swap(own_half, other_half))]);
        comes_not_to_serve(&*signer, "it is not the key that policy pins").await;
        comes_back(&site, &*signer, "the public half was the pinned one again").await;
        let word = |word: &str| format!("\"{word}\"");
        for (is, becomes, want) in [
            ("AWS_KMS", "EXTERNAL_KEY_STORE", "its origin is `EXTERNAL_KEY_STORE`"),
            ("RSA_2048", "RSA_1024", "its spec is `RSA_1024`"),
        ] {
            site.proxy.rules([Rule::always("DescribeKey", Fault::Swap(word(is), word(becomes)))]);
            comes_not_to_serve(&*signer, want).await;
            comes_back(&site, &*signer, want).await;
        }
        site.proxy.rules([Rule::always("DescribeKey", Fault::Swap(arn, other))]);
        sleep(Duration::from_secs(3)).await;
        assert_eq!(signer.health(), Health::Serving, "a question that was answered for another key proves nothing");
    }

    async fn a_check_that_is_throttled_takes_nobody_out(site) {
        let kms = site.kms();
        let arn = site.rsa_key(2048).await;
        let signer = site.bound(&kms, &arn).await;
        comes_to_serve(&*signer).await;
        site.proxy.rules([Rule::always("DescribeKey", THROTTLED)]);
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(4) {
            contract::a_signature_verifies_with_the_pinned_key(&*signer).await;
            sleep(Duration::from_millis(50)).await;
        }
        assert!(site.proxy.seen("DescribeKey").len() > 3);
    }

    async fn a_key_in_use_needs_no_test_signatures(site) {
        let (_kms, signer) = serving(&site).await;
        let (since, mut own) = (Instant::now(), site.proxy.seen("Sign").len());
        while since.elapsed() < Duration::from_secs(5) {
            contract::a_signature_verifies_with_the_pinned_key(&*signer).await;
            own += 1;
            sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(site.proxy.seen("Sign").len(), own);
        sleep(Duration::from_secs(5)).await;
        assert!(site.proxy.seen("Sign").len() > own, "and one at rest does prove itself");
    }

    /// What came of the call is taken down all the same, and the turn given back.
    async fn a_call_that_has_begun_is_not_torn_by_a_caller_that_leaves(site) {
        let (_kms, signer) = serving(&site).await;
        let arn = site.proxy.seen("Sign")[0].body["KeyId"].as_str().unwrap().to_owned();
        site.proxy.rules([Rule::always("Sign", Fault::Delay(Duration::from_millis(300)))]);
        site.aws.disable_key().key_id(&arn).send().await.unwrap();
        let input = SigningInput::fresh_probe();
        let order = contract::order();
        {
            let call = signer.sign(&input, &order);
            tokio::pin!(call);
            let before = site.proxy.seen("Sign").len();
            while site.proxy.seen("Sign").len() == before {
                tokio::select! {
                    answer = &mut call => panic!("{answer:?}"),
                    () = tokio::task::yield_now() => {}
                }
            }
        }
        comes_not_to_serve(&*signer, "is disabled (`Sign`: DisabledException").await;
        site.aws.enable_key().key_id(&arn).send().await.unwrap();
        comes_back(&site, &*signer, "the key was enabled").await;
        assert_eq!(signer.turns().usage().busy, 0);
    }

    async fn an_emulator_that_dies_and_starts_again_is_found_again(site) {
        drop(site);
        let mut emulator = Emulator::ministack();
        let aws = aws(emulator.address());
        let arn = create(&aws, KeySpec::Rsa2048, KeyUsageType::SignVerify).await;
        let pin = pinned(&aws, &arn).await;
        let kms = Kms::start(config(&format!("http://{}", emulator.address())));
        let signer = kms.key(pin).unwrap();
        comes_to_serve(&*signer).await;
        emulator.stop();
        let errors = until_out_of_service(&*signer).await;
        println!("  without KMS: {}", errors[0].0);
        assert!(matches!(kms.health(), Health::NotServing(why) if why.contains("cannot be reached")));
        emulator.run();
        let since = Instant::now();
        comes_to_serve(&*signer).await;
        println!("  back {} ms after the emulator", since.elapsed().as_millis());
        contract::a_signature_verifies_with_the_pinned_key(&*signer).await;
        assert_eq!(kms.health(), Health::Serving);
    }

    /// A gateway starts while KMS is away, and health says why.
    async fn a_kms_that_is_away_at_the_start_is_waited_for(site) {
        let arn = site.rsa_key(2048).await;
        site.proxy.rules([Rule::always("*", Fault::Reset)]);
        let kms = site.kms();
        let signer = site.bound(&kms, &arn).await;
        comes_not_to_serve(&*signer, "AWS KMS cannot be reached").await;
        comes_back(&site, &*signer, "KMS came").await;
    }
}
