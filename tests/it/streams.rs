//! `SignQuotes`: order, window, refusals of one quote, and streams that break or end.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use prost::Message as _;
use quotesign::{
    clock::{Clock as _, SystemClock, UtcTime},
    proto::{Refusal, SignQuoteRequest, SignQuoteResponse, SignQuotesRequest, sign_quotes_response::Answer},
};
use rustix::process::Signal;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt as _;

use crate::{
    faults::shim::Shim,
    harness::{
        Caller, DAY, Gateway, PARTNER, PATIENCE, Quote, Site, done, pointers, reason, seconds, timed_key, toml, until,
    },
};

/// A refusal in a stream, read as clients read a status.
pub fn status_of(refusal: Refusal) -> Status {
    let details = tonic_types::pb::Status::decode(&*refusal.encode_to_vec()).unwrap().encode_to_vec();
    Status::with_details(Code::from_i32(refusal.code), refusal.message, details.into())
}

/// A stream of one client.
struct Sending {
    quotes: mpsc::Sender<SignQuotesRequest>,
    answers: Streaming<quotesign::proto::SignQuotesResponse>,
}

fn item(tag: u64, quote: &Quote) -> SignQuotesRequest {
    let (environment, payload) = ("development".to_owned(), quote.bytes());
    SignQuotesRequest { tag, quote: Some(SignQuoteRequest { environment, payload, ..SignQuoteRequest::default() }) }
}

impl Sending {
    async fn open(caller: &Caller) -> Self {
        let (quotes, sent) = mpsc::channel(4096);
        let answers = caller.0.clone().sign_quotes(ReceiverStream::new(sent)).await.unwrap().into_inner();
        Self { quotes, answers }
    }

    async fn send(&self, tag: u64, quote: &Quote) {
        self.quotes.send(item(tag, quote)).await.unwrap();
    }

    /// The next answer and its tag; nothing where the stream has ended well.
    async fn next(&mut self) -> Result<Option<(u64, Result<SignQuoteResponse, Status>)>, Status> {
        let told = tokio::time::timeout(PATIENCE, self.answers.message()).await.expect("the stream stands still")?;
        Ok(told.map(|told| match told.answer.unwrap() {
            Answer::Signed(signed) => (told.tag, Ok(signed)),
            Answer::Refused(refusal) => (told.tag, Err(status_of(refusal))),
        }))
    }

    /// Sends all quotes, each with its number as its tag, and gathers the answers.
    async fn all(mut self, quotes: &[Quote]) -> BTreeMap<u64, Result<SignQuoteResponse, Status>> {
        for quote in quotes {
            self.send(quote.0["quote_sequence"].as_u64().unwrap(), quote).await;
        }
        let (closed, _) = mpsc::channel(1);
        drop(std::mem::replace(&mut self.quotes, closed));
        let mut answers = BTreeMap::new();
        while let Some((tag, answer)) = self.next().await.unwrap() {
            assert!(answers.insert(tag, answer).is_none(), "{tag} is answered twice");
        }
        answers
    }
}

fn numbered(numbers: impl IntoIterator<Item = u64>) -> Vec<Quote> {
    numbers.into_iter().map(Quote::number).collect()
}

/// How many committed records each quote has.
fn committed(site: &Site) -> BTreeMap<String, usize> {
    let mut count = BTreeMap::new();
    for record in site.journal().iter().filter(|record| record["event"] == "quote.committed") {
        *count.entry(record["context"]["quote_id"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    count
}

#[tokio::test(flavor = "multi_thread")]
async fn quotes_reserve_in_the_order_in_which_they_were_sent() {
    let site = Site::new();
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    // Their numbers rise: one that overtook another would have it refused.
    let answers = Sending::open(&pricing).await.all(&numbered(1..=300)).await;
    assert_eq!(answers.len(), 300);
    for (tag, answer) in answers {
        let signed = answer.unwrap_or_else(|status| panic!("{tag}: {status}"));
        assert!(signed.sequence == tag && !signed.replayed);
    }
    let lines = gateway.log.lock().unwrap().iter().filter(|line| line.contains("SignQuotes")).count();
    assert_eq!(lines, 301, "a line for each quote, and one for the stream");
    let (_, metrics) = gateway.operations("/metrics").await;
    let counted = metrics.lines().find(|line| {
        line.starts_with("quotesign_calls_total{method=\"quotesign.v1.QuoteSigningService/SignQuotes\",status=\"Ok\"")
    });
    assert_eq!(counted.and_then(|line| line.rsplit(' ').next()), Some("300"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_or_was_signed_before_costs_no_other_its_number() {
    let site = Site::new();
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let old = numbered(1..=20);
    let signed = Sending::open(&pricing).await.all(&old).await;
    // Refusals are quick, replays are looked up, reservations wait for a commit: none may let another by.
    let mut quotes = Vec::new();
    for number in 21..=120 {
        match number % 4 {
            0 => quotes.push(Quote::number(number).with("total_customer_cost", json!("not money"))),
            1 => quotes.push(old[usize::try_from(number).unwrap() % 20].clone()),
            _ => quotes.push(Quote::number(number)),
        }
    }
    // Tags by place, since replays repeat their numbers.
    let mut sending = Sending::open(&pricing).await;
    for (at, quote) in quotes.iter().enumerate() {
        sending.send(at as u64, quote).await;
    }
    let mut left = quotes.len();
    while left > 0 {
        let (tag, answer) = sending.next().await.unwrap().unwrap();
        let (number, quote) = (tag + 21, &quotes[usize::try_from(tag).unwrap()]);
        match (number % 4, answer) {
            (0, Err(status)) => {
                assert_eq!((status.code(), reason(&status)), (Code::InvalidArgument, "SCHEMA_VIOLATION".to_owned()));
                assert_eq!(pointers(&status), ["/total_customer_cost"]);
            }
            (1, Ok(again)) => {
                let before = signed[&quote.0["quote_sequence"].as_u64().unwrap()].as_ref().unwrap();
                assert!(again.replayed && again.jws == before.jws);
            }
            (2 | 3, Ok(signed)) => assert!(signed.sequence == number && !signed.replayed),
            (_, answer) => panic!("{number}: {answer:?}"),
        }
        left -= 1;
    }
    sending.quotes.send(SignQuotesRequest { tag: 7, quote: None }).await.unwrap();
    let (tag, refused) = sending.next().await.unwrap().unwrap();
    let refused = refused.unwrap_err();
    assert_eq!((tag, reason(&refused).as_str()), (7, "INVALID_REQUEST"));
    assert!(refused.message().contains("`quote` is missing"), "{refused}");
    assert!(committed(&site).values().all(|count| *count == 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_held_back_where_a_call_would_be_refused() {
    let site = Site::new();
    site.edit_signer("sessions", 1.into());
    site.edit_signer("queue_max", 1.into());
    site.edit_policy(|policy| {
        policy["quotas"]["attempts_per_caller"]["per_second"] = toml_edit::value(50);
        policy["quotas"]["attempts_per_caller"]["burst"] = toml_edit::value(5);
    });
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let answers = Sending::open(&pricing).await.all(&numbered(1..=60)).await;
    for (tag, answer) in answers {
        assert!(answer.is_ok(), "{tag}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_is_read_no_further() {
    let site = Site::new().with("QUOTESIGN__LIMITS__STREAM_WINDOW", "4");
    let gateway = site.serve().await;
    let mut pricing = gateway.quotes_within_a_window("pricing", 16 * 1024).await;
    let (quotes, sent) = mpsc::channel(4096);
    let answers = pricing.sign_quotes(ReceiverStream::new(sent)).await.unwrap().into_inner();
    for number in 1..=1_000 {
        quotes.send(item(number, &Quote::number(number))).await.unwrap();
    }
    // It stands still once its answers fill what may wait for a client: 64 KiB, and the 16 that it takes unread.
    let mut last = 0;
    until("the stream stands still", async || {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let now = gateway.quotes("operator").await.last().await;
        std::mem::replace(&mut last, now) == now && now > 4
    })
    .await;
    assert!(last < 200, "{last} quotes were signed for a client that does not read");
    let other = gateway.quotes("pricing").await;
    other.sign(&Quote::number(last + 500)).await.expect("another call of the same caller is held up");
    drop((quotes, answers));
    until("the stream is gone", async || gateway.operations("/metrics").await.1.contains("\nquotesign_streams 0"))
        .await;
}

/// Sends what has no answer again and again over new streams, until all is answered.
async fn resume(
    site: &mut Site,
    quotes: &[Quote],
    mut gateway: Gateway,
    mut disturb: impl AsyncFnMut(usize, &mut Site, Gateway) -> Gateway,
) -> (BTreeMap<u64, SignQuoteResponse>, Gateway) {
    let mut signed: BTreeMap<u64, SignQuoteResponse> = BTreeMap::new();
    for round in 0..50 {
        let open: Vec<_> =
            quotes.iter().filter(|quote| !signed.contains_key(&quote.0["quote_sequence"].as_u64().unwrap())).collect();
        if open.is_empty() {
            return (signed, gateway);
        }
        let pricing = gateway.quotes("pricing").await;
        let mut sending = Sending::open(&pricing).await;
        for quote in open {
            sending.send(quote.0["quote_sequence"].as_u64().unwrap(), quote).await;
        }
        for _ in 0..25 {
            match sending.next().await {
                Ok(Some((tag, Ok(answer)))) => {
                    if let Some(before) = signed.insert(tag, answer.clone()) {
                        assert_eq!(before.jws, answer.jws);
                    }
                }
                Ok(Some((tag, Err(status)))) => {
                    assert!(matches!(status.code(), Code::Unavailable), "{tag}: {status}");
                }
                Ok(None) => break,
                Err(_ended) => break,
            }
        }
        drop(sending);
        gateway = disturb(round, site, gateway).await;
    }
    panic!("it never came to an end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_stream_is_resumed_without_a_second_signature() {
    let mut site = Site::new();
    let gateway = site.serve().await;
    let quotes = numbered(1..=150);
    // The client goes away, and every other time the gateway is killed under it.
    let (signed, gateway) = resume(&mut site, &quotes, gateway, async |round, site, gateway| {
        if round % 2 == 0 {
            return gateway;
        }
        gateway.signal(Signal::KILL);
        gateway.wait();
        site.serve().await
    })
    .await;
    assert_eq!(signed.len(), 150);
    assert!(gateway.stop().success());
    let committed = committed(&site);
    assert_eq!(committed.len(), 150);
    assert!(committed.values().all(|count| *count == 1), "{committed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_with_its_connection_and_says_so() {
    let mut site = Site::new().with("QUOTESIGN__LIMITS__CONNECTION_AGE_S_MAX", "1");
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let mut sending = Sending::open(&pricing).await;
    sending.send(1, &Quote::number(1)).await;
    assert!(sending.next().await.unwrap().unwrap().1.is_ok());
    let ended = sending.next().await.unwrap_err();
    assert_eq!((ended.code(), reason(&ended)), (Code::Unavailable, "STREAM_ENDED".to_owned()), "{ended}");
    assert!(ended.message().contains("open another"), "{ended}");
    assert!(ended.get_details_error_info().is_some());
    // A client that follows this loses nothing by it.
    let (signed, _gateway) = resume(&mut site, &numbered(2..=200), gateway, async |_, _, gateway| gateway).await;
    assert_eq!(signed.len(), 199);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_lets_streams_answer_what_they_have_read() {
    let site = Site::new().with("QUOTESIGN__DRAIN__TIMEOUT_MS", "10000");
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let mut sending = Sending::open(&pricing).await;
    for quote in numbered(1..=400) {
        sending.send(quote.0["quote_sequence"].as_u64().unwrap(), &quote).await;
    }
    let mut told = vec![sending.next().await.unwrap().unwrap()];
    gateway.signal(Signal::TERM);
    let ended = loop {
        match sending.next().await {
            Ok(Some(answer)) => told.push(answer),
            Ok(None) => panic!("it ended well although not all was answered"),
            Err(status) => break status,
        }
    };
    assert_eq!(reason(&ended), "STREAM_ENDED", "{ended}");
    assert!(gateway.wait().success());
    assert!(told.iter().all(|(_, answer)| answer.is_ok()));
    assert_eq!(committed(&site).len(), told.len(), "what was signed was told");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_caller_is_refused_within_its_open_stream() {
    let site = Site::new();
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let mut sending = Sending::open(&pricing).await;
    sending.send(1, &Quote::number(1)).await;
    assert!(sending.next().await.unwrap().unwrap().1.is_ok());
    let suspension = quotesign::proto::SuspendCallerRequest {
        caller: "spiffe://dev.quotesign.example/pricing".to_owned(),
        reason: "a test".to_owned(),
        signed_since: None,
    };
    gateway.admin("operator").await.suspend_caller(suspension).await.unwrap();
    sending.send(2, &Quote::number(2)).await;
    let refused = sending.next().await.unwrap().unwrap().1.unwrap_err();
    assert_eq!((refused.code(), reason(&refused)), (Code::PermissionDenied, "CALLER_SUSPENDED".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_quote_has_a_deadline_of_its_own_and_the_stream_has_its_callers() {
    let site = Site::new()
        .with("FAILPOINTS", "pipeline::before-sign=1*sleep(1500)->off")
        .with("TOKIO_WORKER_THREADS", "4")
        .with("QUOTESIGN__LIMITS__DEADLINE_MS_MAX", "700");
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let mut sending = Sending::open(&pricing).await;
    let slow = Quote::number(1);
    sending.send(1, &slow).await;
    let (_, late) = sending.next().await.unwrap().unwrap();
    assert_eq!(reason(&late.unwrap_err()), "DEADLINE_EXCEEDED");
    // The stream outlives it.
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    sending.send(1, &slow).await;
    assert_eq!(sending.next().await.unwrap().unwrap().1.unwrap().sequence, 1);

    let mut quotes = gateway.quotes_without_a_timer("pricing").await;
    let (_open, sent) = mpsc::channel::<SignQuotesRequest>(1);
    let mut request = tonic::Request::new(ReceiverStream::new(sent));
    request.set_timeout(Duration::from_millis(900));
    let mut answers = quotes.sign_quotes(request).await.unwrap().into_inner();
    let ended = tokio::time::timeout(PATIENCE, answers.message()).await.unwrap().unwrap_err();
    assert_eq!((ended.code(), reason(&ended)), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED".to_owned()));
}

/// It has ended its side, as it should, and goes before the answers come: its quotes must not take turns before those that it sends again.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_left_ends_also_where_its_last_quote_was_sent() {
    let site = Site::new();
    let shim = Shim::before(&site);
    site.edit_signer("call_timeout_ms", 20_000.into());
    site.edit_signer("sessions", 1.into());
    shim.rules("");
    let gateway = site.serve().await;
    shim.rules("C_Sign delay 8000");
    let pricing = gateway.quotes("pricing").await;
    let mut sending = Sending::open(&pricing).await;
    let quotes = numbered(1..=3);
    for (tag, quote) in (1..).zip(&quotes) {
        sending.send(tag, quote).await;
    }
    let (closed, _) = mpsc::channel(1);
    drop(std::mem::replace(&mut sending.quotes, closed));
    let open = async || gateway.operations("/metrics").await.1.contains("quotesign_streams 1");
    until("a quote is at the device", async || site.stage(&quotes[0]).is_some()).await;
    assert!(open().await);
    let left = Instant::now();
    drop(sending);
    until("the stream has ended", async || !open().await).await;
    assert!(left.elapsed() < Duration::from_secs(5), "its quotes were waited for: {:?}", left.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_runs_while_a_quote_waits_for_its_place() {
    // Four quotes of a caller may be under way. Each takes longer than half of its time, and has enough where nothing is before it.
    let site =
        Site::new().with("QUOTESIGN__LIMITS__STREAM_WINDOW", "1").with("QUOTESIGN__LIMITS__DEADLINE_MS_MAX", "1100");
    site.edit_signer("sessions", 8.into());
    site.edit_policy(|policy| policy["partners"][0]["sequence"]["mode"] = toml_edit::value("assign"));
    let shim = Shim::before(&site);
    shim.rules("C_Sign delay 600");
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let quotes: Vec<_> = numbered(1..=5).into_iter().map(|quote| quote.without("quote_sequence")).collect();
    let mut streams = Vec::new();
    for quote in &quotes {
        let sending = Sending::open(&pricing).await;
        sending.send(1, quote).await;
        streams.push(sending);
    }
    let mut late = 0;
    for sending in &mut streams {
        if let Err(status) = sending.next().await.unwrap().unwrap().1 {
            assert!(["DEADLINE_EXCEEDED", "OVERLOADED"].contains(&&*reason(&status)), "{status}");
            late += 1;
        }
    }
    assert!(late > 0, "the fifth quote had all of its time after it had waited for more than half of it");
    shim.rules("");
    for (sending, quote) in streams.iter_mut().zip(&quotes) {
        sending.send(2, quote).await;
        sending.next().await.unwrap().unwrap().1.unwrap();
    }
}

/// The device takes its time, so that quotes wait for their turn and for their place while one key signs for the last time and the next
/// for the first.
#[tokio::test(flavor = "multi_thread")]
async fn a_quote_that_waited_until_its_key_had_ended_is_signed_by_the_next() {
    let site = Site::new().with("QUOTESIGN__LIMITS__STREAM_WINDOW", "16");
    site.edit_signer("sessions", 1.into());
    site.edit_signer("queue_max", 3.into());
    site.edit_policy(|policy| policy["partners"][0]["sequence"]["mode"] = toml_edit::value("assign"));
    let shim = Shim::before(&site);
    shim.rules("C_Sign delay 300");
    let gateway = site.serve().await;
    let args = ["keys", "generate", "--signer", "hsm-primary", "--partner", PARTNER];
    let entry = done(site.run(&[&args[..], &["--kid", "quote-signing-next", "--bits", "3072"]].concat()));
    let turn = UtcTime::parse(&seconds(SystemClock.now().plus(Duration::from_secs(6)))).unwrap();
    site.edit_policy(|policy| {
        policy["keys"][0]["sign_until"] = toml(&seconds(turn));
        policy["keys"][0]["retire_at"] = toml(&seconds(turn.plus(DAY * 2)));
        let published = SystemClock.now().minus(Duration::from_secs(1));
        let next = timed_key(&entry, [published, turn, turn.plus(DAY * 30), turn.plus(DAY * 40)]);
        policy["keys"].as_array_of_tables_mut().unwrap().push(next);
    });
    gateway.signal(Signal::HUP);
    let mut sending = Sending::open(&gateway.quotes("pricing").await).await;
    // More than the device has places for are under way until some seconds after the turn.
    let until = turn.plus(Duration::from_secs(2));
    let (mut sent, mut answered) = (Vec::new(), 0);
    while answered < sent.len() || SystemClock.now() < until {
        if SystemClock.now() < until && sent.len() < answered + 8 {
            let tag = sent.len() as u64;
            sending.send(tag, &Quote::number(tag + 1).without("quote_sequence")).await;
            sent.push(Instant::now());
            continue;
        }
        let (tag, answer) = sending.next().await.unwrap().unwrap();
        answered += 1;
        if let Err(status) = answer {
            // Where the machine is slow the last may be told to come again, after half of their time at the earliest.
            let waited = sent[usize::try_from(tag).unwrap()].elapsed();
            assert!(reason(&status) == "OVERLOADED" && waited > Duration::from_secs(4), "{waited:?}: {status}");
        }
    }
    let journal = site.journal();
    let reserved = journal.iter().filter(|record| record["event"] == "quote.reserved");
    let mut kids = BTreeMap::new();
    for record in reserved {
        let (at, kid) = (record["at"].as_str().unwrap(), record["facts"]["kid"].as_str().unwrap());
        let is_before = UtcTime::parse(at).unwrap() < turn;
        assert_eq!(kid != "quote-signing-next", is_before, "{kid} at {at}, and the turn is at {turn}");
        *kids.entry(is_before).or_insert(0) += 1;
    }
    assert!(kids.len() == 2, "{kids:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_streams_of_one_caller_share_a_window_and_each_goes_on() {
    let site =
        Site::new().with("FAILPOINTS", "pipeline::before-sign=sleep(60)").with("QUOTESIGN__LIMITS__STREAM_WINDOW", "2");
    site.edit_policy(|policy| {
        policy["partners"][0]["sequence"]["mode"] = toml_edit::value("assign");
        policy["quotas"]["attempts_per_caller"]["burst"] = toml_edit::value(1_000);
    });
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let mut streams = Vec::new();
    for _ in 0..8 {
        let sending = Sending::open(&pricing).await;
        for tag in 0..8 {
            sending.send(tag, &Quote::number(1).without("quote_sequence")).await;
        }
        streams.push(sending);
    }
    let places = async || {
        let (_, metrics) = gateway.operations("/metrics").await;
        let line = metrics.lines().find(|line| line.contains("quotesign_signer_orders") && line.contains("\"places\""));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<usize>().ok()).unwrap_or(0)
    };
    let mut most = 0;
    let answered = tokio::spawn(async move {
        for sending in &mut streams {
            for _ in 0..8 {
                sending.next().await.unwrap().unwrap().1.unwrap();
            }
        }
    });
    while !answered.is_finished() {
        most = most.max(places().await);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    answered.await.unwrap();
    assert!((3..=8).contains(&most), "{most} quotes were under way");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_too_large_ends_the_stream_behind_what_was_sent_before_it() {
    let site = Site::new();
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let mut sending = Sending::open(&pricing).await;
    for quote in numbered(1..=20) {
        sending.send(quote.0["quote_sequence"].as_u64().unwrap(), &quote).await;
    }
    let payload = vec![b'7'; 64 * 1024];
    let quote = Some(SignQuoteRequest { payload, ..SignQuoteRequest::default() });
    sending.quotes.send(SignQuotesRequest { tag: 21, quote }).await.unwrap();
    for _ in 1..=20 {
        sending.next().await.unwrap().unwrap().1.unwrap();
    }
    let ended = sending.next().await.unwrap_err();
    assert_eq!((ended.code(), reason(&ended)), (Code::InvalidArgument, "INVALID_REQUEST".to_owned()), "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_has_so_many_streams_and_none_while_it_is_suspended() {
    let site = Site::new();
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let open = async || {
        let (quotes, sent) = mpsc::channel::<SignQuotesRequest>(1);
        let answers = pricing.0.clone().sign_quotes(ReceiverStream::new(sent)).await;
        answers.map(|answers| (quotes, answers))
    };
    let mut streams = Vec::new();
    for _ in 0..16 {
        streams.push(open().await.unwrap());
    }
    let refused = open().await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused)), (Code::ResourceExhausted, "OVERLOADED".to_owned()));
    assert!(refused.get_details_retry_info().is_some());
    streams.clear();
    until("there is room again", async || open().await.is_ok()).await;
    let suspension = quotesign::proto::SuspendCallerRequest {
        caller: "spiffe://dev.quotesign.example/pricing".to_owned(),
        reason: "a test".to_owned(),
        signed_since: None,
    };
    gateway.admin("operator").await.suspend_caller(suspension).await.unwrap();
    assert_eq!(reason(&open().await.unwrap_err()), "CALLER_SUSPENDED");
}
