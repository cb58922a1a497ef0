//! What each part takes by itself.

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use quotesign::{
    audit::{self, Event, Facts, Record},
    call::{Course, Sampler, Stage, Subject, Trace},
    clock::UtcTime,
    domain::{CorrelationId, Environment},
    ledger::{Engine as _, Op, Place, Store, chain::Heads, sqlite::Sqlite},
    notary::survey,
    telemetry::{
        Metrics, Tracer,
        otlp::{
            points,
            records::{self, LogWriter},
            spans::Ended,
        },
    },
};
use rustix::time::{ClockId, clock_gettime};
use tonic::Code;

const RECORDS: u64 = 40_000;
/// As many as calls share a transaction with under load.
const BATCH: u64 = 32;

fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap(), u32::try_from(time.tv_nsec).unwrap())
}

/// The CPU that `run` takes for each of `count`, in microseconds.
fn each<T>(count: u64, run: impl FnOnce() -> T) -> (f64, T) {
    let before = thread_time();
    let done = run();
    (thread_time().checked_sub(before).unwrap().as_secs_f64() * 1e6 / count as f64, done)
}

/// A record as the path of a quote makes them.
fn record(trace: Option<&Trace>) -> Record {
    let mut context = audit::Context::new(CorrelationId::made(), Environment::Sandbox, "ab".repeat(32), 7);
    context.caller = Some("spiffe://dev.quotesign.example/pricing".parse().unwrap());
    context.contract = Some("quote-v1".to_owned());
    context.method = Some("quotesign.v1.QuoteSigningService/SignQuote".to_owned());
    context.partner = Some("acme-remit".parse().unwrap());
    context.quote_id = Some(uuid::Uuid::new_v4().to_string().parse().unwrap());
    context.corridor = Some("GB-IN".parse().unwrap());
    context.customer_ref = Some(format!("0123456789abcdef:{}", "cd".repeat(32)));
    context.rule_ids = vec!["acme-pricing-signs".to_owned()];
    context.trace_id = trace.map(|trace| hex::encode(trace.trace_id));
    context.span_id = trace.map(|trace| hex::encode(trace.span_id));
    let facts = Facts {
        expires_at: Some(UtcTime::from_millis(1_765_432_100_123)),
        generation: Some(1),
        input_sha256: Some("12".repeat(32)),
        jws_sha256: Some("34".repeat(32)),
        kid: Some("quote-signing-2026-06".parse().unwrap()),
        payload_sha256: Some("56".repeat(32)),
        scope: Some("[\"sandbox\",\"acme-remit\"]".to_owned()),
        sequence: Some(123_456.try_into().unwrap()),
        ..Facts::default()
    };
    Record::new(Event::Committed, UtcTime::from_millis(1_765_432_100_123), context, facts)
}

/// A call that ran through every stage but one.
fn course() -> Course {
    let course = Course::new(Instant::now());
    for stage in Stage::ALL.iter().filter(|stage| **stage != Stage::Recall) {
        course.ran(*stage, Instant::now());
    }
    course
}

pub fn tell() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("ledger.sqlite");
    Sqlite::migrate(&file, Environment::Sandbox).unwrap();
    let mut engine = Sqlite::open(&file, Environment::Sandbox).unwrap();
    let sampler = Sampler::new(1.0);
    for _ in 0..RECORDS / BATCH {
        let batch: Vec<Op> = (0..BATCH).map(|_| Op::Record(record(sampler.begin(None).as_ref()))).collect();
        engine.apply(&batch).unwrap();
    }
    let journal = Place { store: Store::Sqlite(file), anchor: None }.journal().unwrap();
    let quotes = RECORDS / 2;
    let resource = records::resource(Environment::Sandbox, "gw-1");
    // Page by page, as a gateway does it; once before it counts.
    let (mut written, mut packed, mut bytes, mut room) = (0.0, 0.0, 0, Vec::with_capacity(1 << 21));
    for counts in [false, true] {
        let mut next = 0;
        while next < RECORDS {
            let mut writer = LogWriter::new(std::mem::take(&mut room));
            let mut write = |stored| writer.add("", &stored, usize::MAX);
            let (took_written, ()) = each(quotes, || journal.scan("", next, 512, &mut write).unwrap());
            let records = writer.into_records();
            next += records.marks().len() as u64;
            let (took_packed, request) = each(quotes, || records::request(&resource, &records));
            if counts {
                (written, packed) = (written + took_written, packed + took_packed);
                bytes += request.iter().map(prost::bytes::Bytes::len).sum::<usize>();
            }
            drop(request);
            room = records.into_room();
            assert!(room.capacity() > 0, "nobody else holds it");
        }
    }
    println!("| part | CPU us for each quote |");
    println!("|---|---|");
    println!("| two records are read and written as log records | {written:.2} |");
    println!("| and put into requests of 512 | {packed:.2} |");
    let (surveyed, growth) = each(quotes, || survey::growth(&*journal, &Heads::new(), 0).unwrap());
    println!("| two records are read, hashed and linked for a checkpoint | {surveyed:.2} |");
    assert_eq!((growth.leaves.len() as u64, bytes > 0), (RECORDS / BATCH, true));
    let count = 100_000;
    let (noted, ()) = each(count, || {
        for _ in 0..count {
            let course = Arc::new(Course::new(Instant::now()));
            for stage in Stage::ALL {
                course.time(*stage, || black_box(()));
            }
            black_box(course);
        }
    });
    println!("| the stages of a call are noted | {noted:.2} |");
    let (metrics, course) = (Metrics::default(), course());
    let (observed, ()) = each(count, || (0..count).for_each(|_| metrics.stages(&course)));
    println!("| and counted | {observed:.2} |");
    let (tracer, correlation_id) = (Tracer::new(1.0), CorrelationId::made());
    let subject =
        Subject { partner: Some("acme-remit".parse().unwrap()), quote_id: Some("q-0123456789".parse().unwrap()) };
    let mut size = 0;
    let (spanned, ()) = each(count, || {
        for _ in 0..count {
            tracer.ended(&Ended {
                trace: &sampler.begin(None).unwrap(),
                stage_ids: tracer.ids(),
                method: "quotesign.v1.QuoteSigningService/SignQuote",
                correlation_id: &correlation_id,
                began: UtcTime::from_millis(1_765_432_100_123),
                took: Duration::from_millis(3),
                course: &course,
                code: Code::Ok,
                reason: "",
                subject: Some(&subject),
            });
            if tracer.has_full() {
                let calls = tracer.take().unwrap();
                size += calls.spans.len();
                tracer.reuse({
                    let mut room = calls.spans;
                    room.clear();
                    room
                });
            }
        }
    });
    println!("| a recorded call is made into spans | {spanned:.2} |");
    let (pointed, _) = each(1, || points::request(&resource, &metrics.text(), points::Span { from: 1, to: 2 }));
    println!(
        "\n{RECORDS} records in transactions of {BATCH}; {} bytes of spans a call; a whole set of metrics takes {pointed:.0} us",
        size as u64 / count
    );
}
