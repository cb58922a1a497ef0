//! The gateway's end of one host process: starts it, asks it on the control socket, sends it jobs and matches what
//! comes back. When to start another, and what a fault means for a key, is left to `supervisor`.

use std::{
    collections::HashMap,
    env, io,
    os::{
        fd::OwnedFd,
        unix::{
            net::{UnixDatagram as StdDatagram, UnixStream as StdStream},
            process::CommandExt as _,
        },
    },
    process::{Command as StdCommand, Stdio},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use prost::Message as _;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixDatagram, UnixStream},
    process::{Child, ChildStderr, Command},
    sync::oneshot,
    time,
};

use super::{
    TokenConfig,
    fault::Fault,
    logins::Logins,
    wire::{Answer, Ask, Done, JOB_BYTES_MAX, Job, Login, Request, Response, Said, Word, frame_head, frame_len},
};
use crate::{clock, jws::SigningInput, signer::turns::Turn};

/// One host process.
pub(super) struct Link {
    control: tokio::sync::Mutex<UnixStream>,
    jobs: UnixDatagram,
    child: tokio::sync::Mutex<Child>,
    /// The jobs that the host has; nothing once it gets no more.
    pending: Mutex<Option<HashMap<u64, Pending>>>,
    /// When the last job came back or was given up.
    moved: Mutex<Instant>,
    next: AtomicU64,
    returned: AtomicUsize,
    refusal: OnceLock<Fault>,
    logins: Arc<Logins>,
}

/// A job that the host has.
struct Pending {
    reply: oneshot::Sender<Result<Vec<u8>, Fault>>,
    turn: Turn,
    sent: Instant,
}

impl Link {
    /// Starts a host process for this token.
    pub(super) fn start(config: &TokenConfig, logins: Arc<Logins>) -> Result<Self, Fault> {
        Self::spawn(config, logins)
            .map_err(|error| Fault::Device(format!("cannot start the module's host process: {error}")))
    }

    fn spawn(config: &TokenConfig, logins: Arc<Logins>) -> io::Result<Self> {
        let (control, theirs) = StdStream::pair()?;
        let (jobs, their_jobs) = StdDatagram::pair()?;
        control.set_nonblocking(true)?;
        jobs.set_nonblocking(true)?;
        let mut command = StdCommand::new(&config.host);
        command
            .arg("pkcs11-host")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::from(OwnedFd::from(their_jobs)))
            .stderr(Stdio::piped())
            // Out of the terminal's process group: it ends when the gateway has drained, not on its Ctrl-C.
            .process_group(0);
        for (name, _) in env::vars_os() {
            let is_ours = name.to_str().is_none_or(|name| name.starts_with("QUOTESIGN") || name.starts_with("AWS_"));
            if is_ours || config.secret_variables.iter().any(|secret| name == secret.as_str()) {
                command.env_remove(name);
            }
        }
        command.envs(&config.environment);
        let mut child = Command::from(command).kill_on_drop(true).spawn()?;
        if let Some(stderr) = child.stderr.take() {
            tokio::spawn(tell(config.name.clone(), stderr));
        }
        Ok(Self {
            control: tokio::sync::Mutex::new(UnixStream::from_std(control)?),
            jobs: UnixDatagram::from_std(jobs)?,
            child: tokio::sync::Mutex::new(child),
            pending: Mutex::new(Some(HashMap::new())),
            moved: Mutex::new(Instant::now()),
            next: AtomicU64::new(1),
            returned: AtomicUsize::new(0),
            refusal: OnceLock::new(),
            logins,
        })
    }

    /// Asks, and waits for the answer, for no longer than `patience`.
    ///
    /// # Errors
    /// Outside, that the process did not answer: it is of no use any more. Inside, what it answered.
    pub(super) async fn ask(
        &self,
        request: Request,
        secrets: &[&SecretString],
        patience: Duration,
    ) -> Result<Result<Response, Fault>, Fault> {
        let answer = time::timeout(patience, async {
            let mut control = self.control.lock().await;
            let ask = Ask { request: Some(request) }.encode_to_vec();
            send_frame(&mut control, &ask).await?;
            for secret in secrets {
                send_frame(&mut control, secret.expose_secret().as_bytes()).await?;
            }
            let mut head = [0; 4];
            control.read_exact(&mut head).await?;
            let mut frame = vec![0; frame_len(head)?];
            control.read_exact(&mut frame).await?;
            Answer::decode(frame.as_slice()).map_err(io::Error::other)
        });
        match answer.await {
            Ok(Ok(Answer { response: Some(Response::Failed(failed)) })) => Ok(Err(failed.into())),
            Ok(Ok(Answer { response: Some(response) })) => Ok(Ok(response)),
            Ok(Ok(Answer { response: None })) => Err(Fault::Device("the host process gave no answer".to_owned())),
            Ok(Err(error)) => Err(Fault::Device(format!("the module's process is gone: {error}"))),
            Err(_) => Err(Fault::Device(format!("the module did not answer within {} ms", patience.as_millis()))),
        }
    }

    /// Gives the host a job; what comes of it comes by the receiver. The turn is held until the host has answered.
    pub(super) async fn give(
        &self,
        key: u32,
        input: &SigningInput,
        deadline: Instant,
        turn: Turn,
    ) -> Result<oneshot::Receiver<Result<Vec<u8>, Fault>>, Fault> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let deadline_ns = clock::steady_ns_at(deadline);
        let job = Job { id, key, deadline_ns, input: input.bytes().to_vec() }.encode_to_vec();
        if job.len() > JOB_BYTES_MAX {
            return Err(Fault::Invalid(format!("a quote of {} bytes is too large for a token", input.bytes().len())));
        }
        let (reply, answer) = oneshot::channel();
        match &mut *self.pending.lock() {
            Some(pending) => pending.insert(id, Pending { reply, turn, sent: Instant::now() }),
            None => return Err(Fault::Device("the module's process is being replaced".to_owned())),
        };
        let fault = match time::timeout_at(deadline.into(), self.jobs.send(&job)).await {
            Ok(Ok(_)) => return Ok(answer),
            Ok(Err(error)) => Fault::Device(format!("the module's process takes no more jobs: {error}")),
            Err(_) => Fault::Late,
        };
        self.taken(id);
        Err(fault)
    }

    /// Takes in what the host says on the jobs socket, until that fails.
    pub(super) async fn listen(&self) -> Fault {
        let mut buffer = vec![0; JOB_BYTES_MAX];
        loop {
            let heard = match self.jobs.recv(&mut buffer).await {
                Ok(length) => self.hear(buffer.get(..length).unwrap_or_default()),
                Err(error) => return Fault::Device(format!("the module's process answers no more: {error}")),
            };
            if heard.is_none() {
                return Fault::Device("the module's process wrote what is no answer".to_owned());
            }
        }
    }

    /// Takes in what a host that is no more had said.
    pub(super) fn hear_out(&self) {
        let mut buffer = vec![0; JOB_BYTES_MAX];
        while let Ok(length @ 1..) = self.jobs.try_recv(&mut buffer) {
            let _nonsense = self.hear(buffer.get(..length).unwrap_or_default());
        }
    }

    fn hear(&self, word: &[u8]) -> Option<()> {
        match Word::decode(word).ok()?.said? {
            Said::Done(done) => self.finish(done),
            Said::Login(login) => self.logins.heard(Login::try_from(login).ok()?),
        }
        Some(())
    }

    fn finish(&self, done: Done) {
        let answer = done.failed.map_or(Ok(done.signature), |failed| Err(Fault::from(failed)));
        if let Err(fault @ Fault::Pin(_)) = &answer {
            // Whoever asked may wait no more; the PIN is refused all the same.
            self.refusal.get_or_init(|| fault.clone());
        }
        let Some(Pending { reply, turn, .. }) = self.taken(done.id) else {
            // A job that counted as stuck: its session is free, and another stands in for it already.
            self.returned.fetch_add(1, Ordering::Relaxed);
            return;
        };
        // What failed says nothing of what a signature takes.
        if answer.is_ok() {
            turn.answered(Duration::from_micros(done.took_us));
        }
        let _gone = reply.send(answer);
    }

    /// The process has ended by itself: how.
    pub(super) async fn ended(&self) -> Fault {
        let status = self.child.lock().await.wait().await;
        let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        Fault::Device(format!("the module's process ended: {how}"))
    }

    /// Whether a job has been with the host for longer than `limit`; it may not have begun.
    pub(super) fn has_late_jobs(&self, limit: Duration) -> bool {
        self.pending.lock().as_ref().is_some_and(|pending| pending.values().any(|job| job.sent.elapsed() > limit))
    }

    /// Whether a job has been with the host for longer than `limit`, and none has come back or was given up meanwhile.
    pub(super) fn is_silent(&self, limit: Duration) -> bool {
        self.has_late_jobs(limit) && self.moved.lock().elapsed() > limit
    }

    /// Answers a job as lost, and frees its turn. Tells whether it was still with the host.
    pub(super) fn give_up(&self, job: u64, limit: Duration) -> bool {
        let Some(Pending { reply, .. }) = self.taken(job) else { return false };
        let why = format!("its session has been inside the module for more than {} ms", limit.as_millis());
        let _gone = reply.send(Err(Fault::Stuck(why)));
        true
    }

    /// The refusal of the PIN, if it came to that in any session.
    pub(super) fn refusal(&self) -> Option<Fault> {
        self.refusal.get().cloned()
    }

    /// How many jobs that counted as stuck have come back.
    pub(super) fn returned(&self) -> usize {
        self.returned.load(Ordering::Relaxed)
    }

    /// Waits until the host has no job or is no more, for no longer than `patience`.
    pub(super) async fn settle(&self, patience: Duration) {
        let until = Instant::now() + patience;
        while Instant::now() < until && self.pending.lock().as_ref().is_some_and(|jobs| !jobs.is_empty()) {
            let is_gone = |child: &mut Child| matches!(child.try_wait(), Ok(Some(_)));
            if self.child.try_lock().is_ok_and(|mut child| is_gone(&mut child)) {
                return;
            }
            time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn taken(&self, id: u64) -> Option<Pending> {
        let job = self.pending.lock().as_mut()?.remove(&id)?;
        *self.moved.lock() = Instant::now();
        Some(job)
    }

    /// Answers every job as lost, and takes no more.
    pub(super) fn refuse_all(&self, why: &str) {
        let jobs = self.pending.lock().take();
        for job in jobs.into_iter().flat_map(HashMap::into_values) {
            let _gone = job.reply.send(Err(Fault::Device(why.to_owned())));
        }
    }

    /// Has the host leave its module and end; kills it if it does not within `patience`.
    pub(super) async fn close(&self, patience: Duration) {
        let leave = async {
            let ask = Ask { request: Some(Request::Close(super::wire::Nothing {})) }.encode_to_vec();
            // One that does not listen any more is killed below.
            let _told = send_frame(&mut *self.control.lock().await, &ask).await;
            self.child.lock().await.wait().await
        };
        if time::timeout(patience, leave).await.is_err() {
            self.kill().await;
        }
    }

    /// Kills the process; one that the kernel cannot end is left behind.
    pub(super) async fn kill(&self) {
        let kill = async { self.child.lock().await.kill().await };
        if !matches!(time::timeout(Duration::from_secs(1), kill).await, Ok(Ok(()))) {
            tracing::error!("a module's process could not be ended; the kernel holds it");
        }
    }
}

async fn send_frame(control: &mut UnixStream, frame: &[u8]) -> io::Result<()> {
    control.write_all(&frame_head(frame)?).await?;
    control.write_all(frame).await
}

/// Hands what the module prints on to the log, at a level that is off unless asked for: it is the vendor's text.
async fn tell(signer: String, mut stderr: ChildStderr) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = stderr.read(&mut buffer).await {
        let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default());
        for line in text.lines().filter(|line| !line.is_empty()) {
            tracing::debug!(target: "quotesign::module", signer, line, "the module says");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, path::PathBuf};

    use super::*;
    use crate::signer::{Flow, Order, pkcs11::Pin, turns::Turns};

    const LIMIT: Duration = Duration::from_millis(300);

    /// A process that reads no job.
    fn deaf() -> Link {
        let config = TokenConfig {
            name: "deaf".to_owned(),
            host: PathBuf::from("yes"),
            module: PathBuf::new(),
            token_label: String::new(),
            token_serial: None,
            pin: Pin::File(PathBuf::new()),
            environment: BTreeMap::new(),
            secret_variables: Vec::new(),
            sessions: 2,
            queue_max: 2,
            call_timeout: LIMIT,
            probe_interval: LIMIT,
        };
        Link::start(&config, Arc::default()).unwrap()
    }

    #[tokio::test]
    async fn a_host_is_silent_where_jobs_lie_with_it_and_none_moves() {
        let (link, turns) = (deaf(), Turns::new(2, 2));
        time::sleep(LIMIT * 2).await;
        assert!(!link.is_silent(LIMIT), "it has nothing to answer");
        for _ in 0..2 {
            let order = Order::new(Flow::OWN, Instant::now() + LIMIT * 100);
            let turn = turns.turn(&order).await.unwrap();
            drop(link.give(1, &SigningInput::fresh_probe(), order.deadline, turn).await.unwrap());
        }
        assert!(!link.is_silent(LIMIT), "it has not had the time");
        time::sleep(LIMIT * 2).await;
        assert!(link.is_silent(LIMIT));
        assert!(link.give_up(1, LIMIT));
        assert!(!link.is_silent(LIMIT), "one was given up a moment ago");
        time::sleep(LIMIT * 2).await;
        assert!(link.is_silent(LIMIT));
        link.kill().await;
    }
}
