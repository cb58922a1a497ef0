//! `SignQuotes`: many quotes over one stream, side by side within a window. Each is decided as a call of its own, with a
//! deadline, a line and a record of its own; they reserve in the order in which they were sent. Where the window is full, or the
//! device or a quota is, the stream is read no further until there is room: it is held back and not refused.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Instant};

use futures_util::FutureExt as _;
use prost::Message as _;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
    time,
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status, Streaming};
use tonic_types::pb;
use tracing::Instrument as _;

use super::{sign, window::Windows};
use crate::{
    call::{Line, Turn},
    pipeline::Pipeline,
    proto::{self, Reason, sign_quotes_response::Answer},
    service::{access, status},
    telemetry::Metrics,
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
    metrics: Arc<Metrics>,
    window: usize,
    /// What all streams of the caller share.
    shared: Arc<Semaphore>,
    retiring: CancellationToken,
}

/// What each quote of it needs.
#[derive(Clone)]
struct Source {
    pipeline: Arc<Pipeline>,
    edge: Edge,
    peer: Arc<Peer>,
}

impl QuoteStream {
    /// The stream of this request.
    ///
    /// # Errors
    /// UNAUTHENTICATED where the client certificate names no caller.
    pub(super) fn begin<T>(
        pipeline: Arc<Pipeline>,
        metrics: Arc<Metrics>,
        windows: &Windows,
        request: &Request<T>,
    ) -> Result<Self, Status> {
        let (edge, peer) = access::behind(request)?;
        let shared = windows.of(&access::SIGN_QUOTES.call_of(edge.clone(), &peer)?.caller);
        let retiring = request.extensions().get().map(|Retiring(token)| token.clone()).unwrap_or_default();
        let (source, window) = (Source { pipeline, edge, peer }, windows.stream());
        Ok(Self { source, metrics, window, shared, retiring })
    }

    /// Reads quotes and answers them until the caller has sent its last one, or leaves, or the stream must end. What was read
    /// is answered, unless nobody is there.
    pub(super) async fn run(self, mut sent: Streaming<proto::SignQuotesRequest>, answers: Answers) {
        let _under_way = self.source.edge.under_way();
        let _counted = self.metrics.stream();
        let (mut line, mut under_way, mut read) = (Line::default(), JoinSet::new(), None);
        let end = loop {
            tokio::select! {
                biased;
                () = answers.closed() => return,
                () = self.retiring.cancelled() => break Some(elsewhere()),
                () = passed(self.source.edge.until()) => break Some(edge::deadline_exceeded()),
                Some(answered) = under_way.join_next() => tell(&answers, answered).await,
                Ok(place) = self.shared.clone().acquire_owned(), if read.is_some() => {
                    if let Some(item) = read.take() {
                        under_way.spawn(self.source.clone().one(item, line.turn(), place));
                    }
                }
                next = sent.message(), if read.is_none() && under_way.len() < self.window => match next {
                    Ok(Some(item)) => read = Some(item),
                    Ok(None) => break None,
                    Err(unread) => break Some(unread),
                },
            }
        };
        while let Some(answered) = under_way.join_next().await {
            tell(&answers, answered).await;
        }
        if let Some(status) = end {
            let _nobody_may_be_there = answers.send(Err(status)).await;
        }
    }
}

impl Source {
    /// One quote, from its arrival to its answer.
    async fn one(
        self,
        item: proto::SignQuotesRequest,
        turn: Turn,
        _place: OwnedSemaphorePermit,
    ) -> proto::SignQuotesResponse {
        let proto::SignQuotesRequest { tag, quote } = item;
        let edge = self.edge.of_item(tag);
        let name = self.peer.caller().map_or_else(|_| "unidentified".to_owned(), ToString::to_string);
        let line = edge.line(access::SIGN_QUOTES.method, name);
        let (deadline, span) = (edge.deadline, tracing::error_span!("call", correlation_id = %edge.correlation_id));
        let signing = AssertUnwindSafe(self.sign(edge, quote, turn)).catch_unwind().instrument(span);
        let signed = match time::timeout_at(deadline.into(), signing).await {
            Ok(Ok(signed)) => signed,
            Ok(Err(_)) => Err(edge::torn()),
            Err(_) => Err(edge::deadline_exceeded()),
        };
        line.end(signed.as_ref().err());
        let answer = signed.map_or_else(|status| Answer::Refused(refusal(&status)), Answer::Signed);
        proto::SignQuotesResponse { tag, answer: Some(answer) }
    }

    async fn sign(
        self,
        edge: Edge,
        quote: Option<proto::SignQuoteRequest>,
        turn: Turn,
    ) -> Result<proto::SignQuoteResponse, Status> {
        let mut call = access::SIGN_QUOTES.call_of(edge, &self.peer)?;
        call.turn = Some(turn);
        let missing = || status::plain(Reason::InvalidRequest, "`quote` is missing; send the quote beside its tag");
        sign(&self.pipeline, &call, quote.ok_or_else(missing)?).await
    }
}

/// Waits until then; for ever where that is never.
async fn passed(until: Option<Instant>) {
    match until {
        Some(until) => time::sleep_until(until.into()).await,
        None => std::future::pending().await,
    }
}

async fn tell(answers: &Answers, answered: Result<proto::SignQuotesResponse, tokio::task::JoinError>) {
    if let Ok(answer) = answered {
        let _nobody_may_be_there = answers.send(Ok(answer)).await;
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
