//! A proxy that stands before an emulator: it takes down every request, and answers some of them wrongly, late or not
//! at all, as its rules say.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    client, server,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    time::sleep,
};

/// What becomes of a request.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Answered with an error of AWS, and not passed on.
    Error(u16, &'static str),
    /// Passed on after this time.
    Delay(Duration),
    /// Its connection is torn.
    Reset,
    /// Passed on, and its connection is torn instead of an answer.
    Lost,
    /// Never answered.
    Hang,
    /// Answered with what is no JSON.
    Garbage,
    /// The signature has a bit changed.
    Corrupt,
    /// The signature lacks its last byte.
    Short,
    /// Every occurrence of one text in the answer is another.
    Swap(String, String),
}

/// Which requests meet with which fault: the first `hits` of each `of`, and `times` in all.
#[derive(Debug, Clone)]
pub struct Rule {
    action: &'static str,
    fault: Fault,
    hits: u32,
    of: u32,
    times: u32,
    met: u32,
}

impl Rule {
    /// Every request of this action (`*`: of any), until the rule is taken away.
    pub fn always(action: &'static str, fault: Fault) -> Self {
        Self { action, fault, hits: 1, of: 1, times: u32::MAX, met: 0 }
    }

    /// The first `hits` of each `of`.
    pub fn of(self, hits: u32, of: u32) -> Self {
        Self { hits, of, ..self }
    }

    /// No more than this many.
    pub fn times(self, times: u32) -> Self {
        Self { times, ..self }
    }

    fn meets(&mut self, action: &str) -> bool {
        if self.times == 0 || (self.action != "*" && self.action != action) {
            return false;
        }
        let hit = self.met % self.of < self.hits;
        self.met += 1;
        self.times -= u32::from(hit);
        hit
    }
}

/// A request that came.
#[derive(Debug, Clone)]
pub struct Seen {
    pub action: String,
    pub body: Value,
    pub at: Instant,
    /// The id of the access key that signed it.
    pub access_key: String,
}

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    seen: Vec<Seen>,
}

/// The proxy; it ends with the runtime.
pub struct Proxy {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Proxy {
    pub async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let served = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // So that a connection which is let go without an answer is reset.
                stream.set_zero_linger().unwrap();
                stream.set_nodelay(true).unwrap();
                let state = Arc::clone(&served);
                let service = service_fn(move |request| answer(target, Arc::clone(&state), request));
                tokio::spawn(server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { address, state }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on these rules, and no others.
    pub fn rules(&self, rules: impl IntoIterator<Item = Rule>) {
        self.state.lock().rules = rules.into_iter().collect();
    }

    /// The requests of this action that came so far.
    pub fn seen(&self, action: &str) -> Vec<Seen> {
        self.state.lock().seen.iter().filter(|seen| seen.action == action).cloned().collect()
    }
}

async fn answer(
    target: SocketAddr,
    state: Arc<Mutex<State>>,
    request: Request<Incoming>,
) -> io::Result<Response<Full<Bytes>>> {
    let action = request.headers().get("x-amz-target").map_or("", |action| action.to_str().unwrap());
    let action = action.rsplit('.').next().unwrap_or_default().to_owned();
    let signed = request.headers().get("authorization").map_or("", |header| header.to_str().unwrap());
    let access_key =
        signed.split_once("Credential=").map_or("", |(_, rest)| rest.split('/').next().unwrap()).to_owned();
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let fault = {
        let mut state = state.lock();
        let told = serde_json::from_slice(&body).unwrap_or_default();
        state.seen.push(Seen { action: action.clone(), body: told, at: Instant::now(), access_key });
        state.rules.iter_mut().find_map(|rule| rule.meets(&action).then(|| rule.fault.clone()))
    };
    match fault {
        Some(Fault::Reset) => return Err(io::ErrorKind::ConnectionReset.into()),
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Garbage) => return Ok(told(200, Bytes::from_static(b"<html>it works</html>"))),
        Some(Fault::Error(status, code)) => return Ok(told(status, json!({ "__type": code }).to_string().into())),
        Some(Fault::Delay(time)) => sleep(time).await,
        _ => {}
    }
    let stream = TcpStream::connect(target).await?;
    let (mut sender, connection) =
        client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    tokio::spawn(connection);
    let request = Request::from_parts(parts, Full::new(body));
    let answer = sender.send_request(request).await.map_err(io::Error::other)?;
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.map_err(io::Error::other)?.to_bytes();
    match fault {
        Some(Fault::Lost) => Err(io::ErrorKind::ConnectionReset.into()),
        fault => Ok(told(status, spoiled(body, fault.as_ref()))),
    }
}

fn told(status: u16, body: Bytes) -> Response<Full<Bytes>> {
    let answer = Response::builder().status(status).header("content-type", "application/x-amz-json-1.1");
    answer.header("x-amzn-requestid", "0f0e0d0c-0b0a-0908-0706-050403020100").body(Full::new(body)).unwrap()
}

fn spoiled(body: Bytes, fault: Option<&Fault>) -> Bytes {
    let signature = |spoil: fn(&mut Vec<u8>)| {
        let mut answer: Value = serde_json::from_slice(&body).unwrap();
        if let Some(text) = answer["Signature"].as_str() {
            let mut signature = STANDARD.decode(text).unwrap();
            spoil(&mut signature);
            answer["Signature"] = STANDARD.encode(signature).into();
        }
        Bytes::from(answer.to_string())
    };
    match fault {
        Some(Fault::Corrupt) => signature(|signature| signature[100] ^= 1),
        Some(Fault::Short) => signature(|signature| signature.truncate(signature.len() - 1)),
        Some(Fault::Swap(from, to)) => {
            let text = String::from_utf8(body.to_vec()).unwrap();
            assert!(text.contains(from), "{from}");
            text.replace(from, to).into()
        }
        _ => body,
    }
}
