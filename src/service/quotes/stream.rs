//! `SignQuotes`: many quotes over one stream, side by side within a window. Each is decided as a call of its own, with a
//! deadline, a line and a record of its own; they reserve in the order in which they were sent. Where the window is full, or the
//! device or a quota is, the stream is read no further until there is room: it is held back and not refused. A quote is in the
//! window until its answer is on its way, so a client that does not read is read no further, either.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Instant};

use futures_util::FutureExt as _;
use prost::Message as _;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    task::JoinSet,
    time,
};
use tokio_util::{sync::CancellationToken, task::task_tracker::TaskTrackerToken};
use tonic::{Request, Status, Streaming};
use tonic_types::pb;
use tracing::Instrument as _;

use super::{
    attempted, sign,
    window::{Open, Windows},
};
use crate::{
    call::{Line, Turn},
    domain::Caller,
    pipeline::{Pipeline, attempts},
    proto::{self, Reason, sign_quotes_response::Answer},
    service::{access, status},
    telemetry::{Metrics, OpenStream},
    transport::{
        edge::{self, Edge},
        peer::Peer,
        serve::Retiring,
    },
};

type Answers = mpsc::Sender<Result<proto::SignQuotesResponse, Status>>;

/// A stream of one caller.
pub(super) struct QuoteStream {
    source: Source,
    open: Open,
    window: usize,
    retiring: CancellationToken,
    _under_way: TaskTrackerToken,
    _counted: OpenStream,
}

/// What each quote of it needs.
#[derive(Clone)]
struct Source {
    pipeline: Arc<Pipeline>,
    edge: Edge,
    peer: Arc<Peer>,
    caller: Caller,
}

impl QuoteStream {
    /// The stream of this request. To open one is an attempt, which is held back where there are too many, as its quotes are.
    ///
    /// # Errors
    /// UNAUTHENTICATED where the client certificate names no caller; what refuses any call of this caller; `RESOURCE_EXHAUSTED` where it
    /// has as many streams as it may.
    pub(super) async fn begin<T>(
        pipeline: Arc<Pipeline>,
        metrics: &Metrics,
        windows: &Windows,
        request: &Request<T>,
    ) -> Result<Self, Status> {
        let (edge, peer) = access::behind(request)?;
        let call = access::SIGN_QUOTES.call_of(&edge, &peer)?;
        let policy = pipeline.policy.load_full();
        let counted = attempts::count_in_time(&pipeline.attempts, &policy, &call).await;
        counted.map_err(|spent| status::of(&spent.into()))?;
        pipeline.let_in(&call).map_err(|suspended| status::of(&suspended))?;
        let open = windows.open(&call.caller).map_err(|full| status::of(&full.into()))?;
        let retiring = request.extensions().get().map(|Retiring(token)| token.clone()).unwrap_or_default();
        // Before the edge lets go of its own.
        let (under_way, counted) = (edge.under_way(), metrics.stream());
        let source = Source { pipeline, edge, peer, caller: call.caller };
        Ok(Self { source, open, window: windows.stream(), retiring, _under_way: under_way, _counted: counted })
    }

    /// Reads quotes and answers them until the caller has sent its last one, or leaves, or the stream must end. What was read
    /// is answered, unless nobody is there.
    pub(super) async fn run(self, mut sent: Streaming<proto::SignQuotesRequest>, answers: Answers) {
        let (mut line, mut under_way, mut read) = (Line::default(), JoinSet::new(), None);
        let end = loop {
            tokio::select! {
                biased;
                () = answers.closed() => return line.close(),
                () = self.retiring.cancelled() => break Some(elsewhere()),
                () = passed(self.source.edge.until()) => return is_late(&answers, &mut line),
                Some(_told) = under_way.join_next() => {}
                place = self.open.place(), if read.is_some() => {
                    if let Some((item, edge)) = read.take() {
                        under_way.spawn(self.source.clone().answer(item, edge, line.turn(), place, answers.clone()));
                    }
                }
                next = sent.message(), if read.is_none() && under_way.len() < self.window => match next {
                    // Its deadline begins here, also while it waits for a place.
                    Ok(Some(item)) => {
                        let edge = self.source.edge.of_item(item.tag);
                        read = Some((item, edge));
                    }
                    Ok(None) => break None,
                    Err(unread) => break Some(edge::with_reason(&unread).unwrap_or(unread)),
                },
            }
        };
        // Whoever has sent his last quote may leave, too, and his quotes must not take the turns of those that he sends again.
        loop {
            tokio::select! {
                biased;
                () = answers.closed() => return line.close(),
                () = passed(self.source.edge.until()) => return is_late(&answers, &mut line),
                told = under_way.join_next() => if told.is_none() { break },
            }
        }
        if let Some(status) = end {
            let _nobody_may_be_there = answers.send(Err(status)).await;
        }
    }
}

/// Its client waits no longer: what has no answer is asked for again.
fn is_late(answers: &Answers, line: &mut Line) {
    let _nobody_may_be_there = answers.try_send(Err(edge::deadline_exceeded()));
    line.close();
}

impl Source {
    /// One quote, from its arrival until its answer is on its way.
    async fn answer(
        self,
        item: proto::SignQuotesRequest,
        edge: Edge,
        turn: Turn,
        _place: Option<OwnedSemaphorePermit>,
        answers: Answers,
    ) {
        let proto::SignQuotesRequest { tag, quote } = item;
        let line = edge.line(access::SIGN_QUOTES.method, self.caller.clone());
        let (deadline, span) = (edge.deadline, tracing::error_span!("call", correlation_id = %edge.correlation_id));
        let signing = AssertUnwindSafe(self.sign(edge, quote, turn)).catch_unwind().instrument(span);
        let signed = match time::timeout_at(deadline.into(), signing).await {
            Ok(Ok(signed)) => signed,
            Ok(Err(_)) => Err(edge::torn()),
            Err(_) => Err(edge::deadline_exceeded()),
        };
        line.end(signed.as_ref().err());
        let answer = signed.map_or_else(|status| Answer::Refused(refusal(&status)), Answer::Signed);
        let _nobody_may_be_there = answers.send(Ok(proto::SignQuotesResponse { tag, answer: Some(answer) })).await;
    }

    async fn sign(
        self,
        edge: Edge,
        quote: Option<proto::SignQuoteRequest>,
        turn: Turn,
    ) -> Result<proto::SignQuoteResponse, Status> {
        let mut call = access::SIGN_QUOTES.call_of(&edge, &self.peer)?;
        call.turn = Some(turn);
        let Some(quote) = quote else {
            let missing = status::plain(Reason::InvalidRequest, "`quote` is missing; send the quote beside its tag");
            return Err(attempted(&self.pipeline, &call, missing).await);
        };
        sign(&self.pipeline, &call, quote).await
    }
}

/// Waits until then; for ever where that is never.
async fn passed(until: Option<Instant>) {
    match until {
        Some(until) => time::sleep_until(until.into()).await,
        None => std::future::pending().await,
    }
}

/// A stream that ends before its caller has ended it.
fn elsewhere() -> Status {
    let why = "this stream ends with its connection; open another and send again what has no answer, as it was";
    status::plain(Reason::StreamEnded, why)
}

/// A status as a message.
fn refusal(status: &Status) -> proto::Refusal {
    let details = pb::Status::decode(status.details()).map(|status| status.details).unwrap_or_default();
    proto::Refusal { code: status.code().into(), message: status.message().to_owned(), details }
}
