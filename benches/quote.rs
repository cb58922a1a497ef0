//! What the gateway's own looking at a quote costs, beside a bare RSA-2048 signature in the same run: parse,
//! validate and canonicalise, alone and together. `cargo bench --bench quote`.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "a benchmark that cannot go on fails")]

use std::{hint::black_box, sync::Arc, time::Duration};

use aws_lc_rs::{
    rand::SystemRandom,
    rsa::KeySize,
    signature::{RSA_PKCS1_SHA256, RsaKeyPair},
};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use quotesign::{
    audit::Context,
    call::Call,
    clock::UtcTime,
    domain::Environment,
    json::Limits,
    pipeline::{
        attempts::{self, Attempts, Counted},
        authorize::{self, Authorized},
        canonicalise::canonicalise,
        parse::{self, Parsed, QuoteRequest},
        validate::{self, Valid},
    },
    policy::{Bundle, shipped},
};

const LIMITS: Limits = Limits { payload_bytes_max: 16 << 10, depth_max: 8, nodes_max: 256 };

struct Desk {
    policy: Arc<Bundle>,
    payload: Vec<u8>,
    now: UtcTime,
    call: Call,
}

impl Desk {
    fn new() -> Self {
        let payload = include_bytes!("../examples/quote.json").to_vec();
        let caller = "spiffe://dev.quotesign.example/pricing".parse().unwrap();
        let call = Call::new(caller, "quotesign.v1.QuoteSigningService/SignQuote", Duration::ZERO);
        let now = UtcTime::parse("2026-06-15T10:00:01Z").unwrap();
        Self {
            policy: Arc::new(shipped::bundle().unwrap_or_else(|problems| panic!("{problems:?}"))),
            payload,
            now,
            call,
        }
    }

    fn counted(&self) -> Counted {
        attempts::count(&Attempts::default(), &self.policy, &self.call).unwrap()
    }

    fn request(&self) -> QuoteRequest {
        QuoteRequest {
            environment: "development".to_owned(),
            payload: self.payload.clone(),
            quote_id: String::new(),
            values_fixed_at: None,
        }
    }

    fn valid(&self, parsed: Parsed, trail: &mut Context) -> Valid {
        validate::validate(parsed, &self.policy, self.now, trail).unwrap()
    }

    fn authorized(&self) -> Authorized {
        let mut trail = trail();
        let valid = self.valid(parsed((self.counted(), self.request())), &mut trail);
        authorize::authorize(valid, &self.policy, &self.call, &mut trail).unwrap()
    }
}

fn parsed((counted, request): (Counted, QuoteRequest)) -> Parsed {
    parse::parse(counted, request, Environment::Development, &LIMITS).unwrap()
}

fn trail() -> Context {
    Context::new("bench".parse().unwrap(), Environment::Development, String::new(), 0)
}

fn quote(criterion: &mut Criterion) {
    let desk = Desk::new();
    let mut group = criterion.benchmark_group("quote");
    group.bench_function("parse", |bench| {
        bench.iter_batched(|| (desk.counted(), desk.request()), parsed, BatchSize::SmallInput);
    });
    group.bench_function("validate", |bench| {
        let parsed = || (parsed((desk.counted(), desk.request())), trail());
        bench.iter_batched(parsed, |(parsed, mut trail)| desk.valid(parsed, &mut trail), BatchSize::SmallInput);
    });
    group.bench_function("authorize", |bench| {
        let valid = || (desk.valid(parsed((desk.counted(), desk.request())), &mut trail()), trail());
        let decide = |(valid, mut trail)| authorize::authorize(valid, &desk.policy, &desk.call, &mut trail).unwrap();
        bench.iter_batched(valid, decide, BatchSize::SmallInput);
    });
    group.bench_function("canonicalise", |bench| {
        let canonical = |authorized| canonicalise(authorized, &desk.policy).unwrap();
        bench.iter_batched(|| desk.authorized(), canonical, BatchSize::SmallInput);
    });
    group.finish();
    let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let mut signature = vec![0; pair.public_modulus_len()];
    criterion.bench_function("rsa-2048 software signature", |bench| {
        let random = SystemRandom::new();
        bench.iter(|| pair.sign(&RSA_PKCS1_SHA256, &random, black_box(&desk.payload), &mut signature).unwrap());
    });
}

criterion_group!(benches, quote);
criterion_main!(benches);
