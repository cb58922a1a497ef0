//! What the gateway and the host process of a module say to each other. On the *control* socket, a stream, the
//! gateway asks and the host answers, one at a time: a length of four bytes, then a message. On the *jobs* socket
//! each datagram is one [`Job`] or one [`Word`], and whichever session is free takes the next. Both sides are the
//! same executable, so there are no versions.

use std::io::{self, Read, Write};

use prost::Message;

use super::fault::Fault;
use crate::signer;

/// No message on the control socket is longer.
pub(super) const CONTROL_BYTES_MAX: usize = 1 << 20;
/// No datagram is longer; what Linux lets through by default is 212,992 bytes.
pub(super) const JOB_BYTES_MAX: usize = 128 * 1024;

/// What the gateway asks.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Ask {
    #[prost(oneof = "Request", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11")]
    pub request: Option<Request>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum Request {
    /// Load the module, find the token and open a session; comes first.
    #[prost(message, tag = "1")]
    Open(Open),
    /// Find a key, compare it with its pin, and try it out.
    #[prost(message, tag = "2")]
    Bind(Bind),
    /// Forget a key.
    #[prost(uint32, tag = "3")]
    Forget(u32),
    /// Start a session in place of each that is stuck, as far as there are any, and end that one when it comes back.
    #[prost(message, tag = "4")]
    Replace(Replace),
    /// Leave the module and end.
    #[prost(message, tag = "5")]
    Close(Nothing),
    /// Initialise a token, in place of [`Request::Open`]; its PIN and its security officer's follow.
    #[prost(message, tag = "6")]
    InitToken(InitToken),
    /// Generate a key.
    #[prost(message, tag = "7")]
    Generate(Generate),
    /// Tell which RSA keys the token holds.
    #[prost(message, tag = "8")]
    List(Nothing),
    /// Try a key out whose public half is not known yet.
    #[prost(message, tag = "9")]
    TryOut(TryOut),
    /// Log in and open the sessions; comes second. The PIN follows in a frame of its own.
    #[prost(message, tag = "10")]
    Login(Nothing),
    /// Tell what the token shows of the key at this locator, and have it sign once.
    #[prost(string, tag = "11")]
    Examine(String),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Nothing {}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Open {
    #[prost(string, tag = "1")]
    pub module: String,
    #[prost(string, tag = "2")]
    pub token_label: String,
    #[prost(string, optional, tag = "3")]
    pub token_serial: Option<String>,
    /// How many sessions take jobs; none where keys are only provisioned.
    #[prost(uint32, tag = "4")]
    pub sessions: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Bind {
    /// By what jobs name the key.
    #[prost(uint32, tag = "1")]
    pub number: u32,
    #[prost(string, tag = "2")]
    pub locator: String,
    /// The pinned public half, as a JWK.
    #[prost(bytes = "vec", tag = "3")]
    pub jwk: Vec<u8>,
    /// Whether the key must state that it never left the token.
    #[prost(enumeration = "Attributes", tag = "4")]
    pub attributes: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(super) enum Attributes {
    Require = 0,
    Warn = 1,
    Off = 2,
}

impl From<signer::Attributes> for Attributes {
    fn from(attributes: signer::Attributes) -> Self {
        match attributes {
            signer::Attributes::Require => Self::Require,
            signer::Attributes::Warn => Self::Warn,
            signer::Attributes::Off => Self::Off,
        }
    }
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct InitToken {
    #[prost(string, tag = "1")]
    pub module: String,
    #[prost(string, tag = "2")]
    pub label: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Generate {
    #[prost(string, tag = "1")]
    pub kid: String,
    #[prost(uint32, tag = "2")]
    pub bits: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct TryOut {
    #[prost(string, tag = "1")]
    pub kid: String,
    #[prost(string, tag = "2")]
    pub locator: String,
    #[prost(enumeration = "Attributes", tag = "3")]
    pub attributes: i32,
}

/// What the host answers.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Answer {
    #[prost(oneof = "Response", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9")]
    pub response: Option<Response>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum Response {
    #[prost(message, tag = "1")]
    Failed(Failed),
    #[prost(message, tag = "2")]
    Done(Nothing),
    #[prost(message, tag = "3")]
    Opened(Opened),
    #[prost(message, tag = "4")]
    Bound(Bound),
    #[prost(message, tag = "5")]
    Key(TriedKey),
    #[prost(message, tag = "6")]
    Keys(Keys),
    #[prost(message, tag = "7")]
    Replaced(Replaced),
    #[prost(message, tag = "8")]
    Reached(Reached),
    #[prost(message, tag = "9")]
    Examined(ExaminedKey),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Replace {
    /// A session that has been at its job for longer is stuck.
    #[prost(uint64, tag = "1")]
    pub limit_ms: u64,
    /// How many sessions may be started at most.
    #[prost(uint32, tag = "2")]
    pub most: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Replaced {
    /// The jobs whose sessions are stuck, those with a stand-in first.
    #[prost(uint64, repeated, tag = "1")]
    pub jobs: Vec<u64>,
    /// How many of them have none, since no more may be started.
    #[prost(uint32, tag = "2")]
    pub without: u32,
}

/// A fault, told across the process boundary.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Failed {
    #[prost(enumeration = "FaultKind", tag = "1")]
    pub kind: i32,
    #[prost(string, tag = "2")]
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(super) enum FaultKind {
    Device = 0,
    Pin = 1,
    Missing = 2,
    Unfit = 3,
    Late = 4,
    Exists = 5,
    Invalid = 6,
    Login = 7,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Opened {
    /// How many sessions take jobs: fewer than asked for where the token has fewer.
    #[prost(uint32, tag = "1")]
    pub sessions: u32,
    /// How many more could stand in for stuck ones.
    #[prost(uint32, tag = "2")]
    pub spare: u32,
    /// What the token says it is, for the log.
    #[prost(string, tag = "3")]
    pub token: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Bound {
    /// The mechanism whose test signature verified.
    #[prost(string, tag = "1")]
    pub mechanism: String,
    /// What the key does not state, where it signs all the same.
    #[prost(string, optional, tag = "2")]
    pub warning: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct TriedKey {
    #[prost(bytes = "vec", tag = "1")]
    pub modulus: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub exponent: Vec<u8>,
    #[prost(string, tag = "3")]
    pub locator: String,
}

/// A token that was found.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Reached {
    /// What it says it is.
    #[prost(string, tag = "1")]
    pub token: String,
    /// The mechanisms by which it can be asked for RS256.
    #[prost(string, repeated, tag = "2")]
    pub mechanisms: Vec<String>,
    /// Why the PIN should not be tried, as far as the token says so.
    #[prost(string, optional, tag = "3")]
    pub pin: Option<String>,
}

/// What the token shows of a key.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ExaminedKey {
    #[prost(bytes = "vec", tag = "1")]
    pub modulus: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub exponent: Vec<u8>,
    #[prost(string, repeated, tag = "3")]
    pub lacks: Vec<String>,
    #[prost(string, repeated, tag = "4")]
    pub remarks: Vec<String>,
    /// The mechanism whose test signature verified; nothing where none did.
    #[prost(string, optional, tag = "5")]
    pub mechanism: Option<String>,
    /// Why none did.
    #[prost(string, tag = "6")]
    pub fault: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Keys {
    #[prost(message, repeated, tag = "1")]
    pub keys: Vec<ListedKey>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ListedKey {
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    #[prost(string, tag = "2")]
    pub locator: String,
    #[prost(bytes = "vec", tag = "3")]
    pub modulus: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    pub exponent: Vec<u8>,
    #[prost(string, optional, tag = "5")]
    pub unfit: Option<String>,
}

/// One signature to make.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Job {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(uint32, tag = "2")]
    pub key: u32,
    /// When it is of no use any more, on this machine's `CLOCK_MONOTONIC`, in nanoseconds.
    #[prost(uint64, tag = "3")]
    pub deadline_ns: u64,
    #[prost(bytes = "vec", tag = "4")]
    pub input: Vec<u8>,
}

/// What the host says on the jobs socket.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Word {
    #[prost(oneof = "Said", tags = "1, 2")]
    pub said: Option<Said>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum Said {
    #[prost(message, tag = "1")]
    Done(Done),
    #[prost(enumeration = "Login", tag = "2")]
    Login(i32),
}

impl Said {
    /// As it goes over the socket.
    pub fn datagram(self) -> Vec<u8> {
        Word { said: Some(self) }.encode_to_vec()
    }
}

/// How far a login has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(super) enum Login {
    /// `C_Login` is about to be called.
    Begins = 0,
    Succeeded = 1,
    /// It failed with a code that says how.
    Failed = 2,
    /// It failed with a code that does not say whether the PIN was taken.
    Unclear = 3,
}

/// What became of a job.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Done {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(bytes = "vec", tag = "2")]
    pub signature: Vec<u8>,
    #[prost(message, optional, tag = "3")]
    pub failed: Option<Failed>,
    /// How long a session was at it, in microseconds.
    #[prost(uint64, tag = "4")]
    pub took_us: u64,
}

impl From<Fault> for Failed {
    fn from(fault: Fault) -> Self {
        let (kind, text) = match fault {
            Fault::Device(text) | Fault::Stuck(text) => (FaultKind::Device, text),
            Fault::Pin(text) => (FaultKind::Pin, text),
            Fault::Missing(text) => (FaultKind::Missing, text),
            Fault::Unfit(text) => (FaultKind::Unfit, text),
            Fault::Late => (FaultKind::Late, String::new()),
            Fault::Exists(text) => (FaultKind::Exists, text),
            Fault::Invalid(text) => (FaultKind::Invalid, text),
            Fault::Login(text) => (FaultKind::Login, text),
        };
        Self { kind: kind.into(), text }
    }
}

impl From<Failed> for Fault {
    fn from(failed: Failed) -> Self {
        let text = failed.text.clone();
        match failed.kind() {
            FaultKind::Device => Self::Device(text),
            FaultKind::Pin => Self::Pin(text),
            FaultKind::Missing => Self::Missing(text),
            FaultKind::Unfit => Self::Unfit(text),
            FaultKind::Late => Self::Late,
            FaultKind::Exists => Self::Exists(text),
            FaultKind::Invalid => Self::Invalid(text),
            FaultKind::Login => Self::Login(text),
        }
    }
}

/// Reads one frame; nothing at the end of the stream.
pub(super) fn read_frame(from: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        Err(end) if end.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let mut frame = vec![0; frame_len(length)?];
    from.read_exact(&mut frame)?;
    Ok(Some(frame))
}

/// Writes one frame.
pub(super) fn write_frame(to: &mut impl Write, frame: &[u8]) -> io::Result<()> {
    to.write_all(&frame_head(frame)?)?;
    to.write_all(frame)
}

/// The four bytes before a frame.
pub(super) fn frame_head(frame: &[u8]) -> io::Result<[u8; 4]> {
    let length = u32::try_from(frame.len()).ok().filter(|length| *length as usize <= CONTROL_BYTES_MAX);
    length.map(u32::to_le_bytes).ok_or_else(|| io::Error::other("a control message is too long"))
}

/// The length that these four bytes announce.
pub(super) fn frame_len(head: [u8; 4]) -> io::Result<usize> {
    let length = u32::from_le_bytes(head) as usize;
    if length <= CONTROL_BYTES_MAX { Ok(length) } else { Err(io::Error::other("a control message is too long")) }
}
