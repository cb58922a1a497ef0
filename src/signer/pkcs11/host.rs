//! The host process: the only one that loads a vendor's module. The gateway starts one for each token, with the
//! control socket as its standard input and the jobs socket as its standard output; it ends when the gateway asks
//! it to, or when the gateway is no more. A module that crashes, hangs or must start anew takes nothing with it.

use std::{
    collections::{BTreeMap, HashMap},
    fs::OpenOptions,
    io,
    os::{
        fd::AsFd as _,
        unix::net::{UnixDatagram, UnixStream},
    },
    path::Path,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use cryptoki::session::Session;
use parking_lot::{Mutex, RwLock};
use prost::Message as _;
use rustix::event::{PollFd, PollFlags, poll};
use secrecy::SecretString;

use self::{
    device::{Access, Device},
    key::Key,
    worker::Worker,
};
use super::{
    fault::Fault,
    wire::{self, Answer, Ask, Nothing, Request, Response, read_frame, write_frame},
};

mod device;
mod key;
mod keygen;
mod module;
mod worker;

/// How long workers that are inside the module may take to come out when the process is to end.
const LEAVE: Duration = Duration::from_millis(500);
/// When a process that is to end is ended, whatever holds it up.
const END: Duration = Duration::from_millis(1500);

/// What the threads of this process share.
struct Shared {
    device: Device,
    keys: RwLock<BTreeMap<u32, Arc<Key>>>,
    work: Mutex<Work>,
}

/// Which jobs sessions are at.
#[derive(Default)]
struct Work {
    jobs: HashMap<u64, AtWork>,
}

/// A session at a job.
struct AtWork {
    since: Instant,
    /// Its worker ends with this job, since another stands in for it.
    is_replaced: bool,
}

impl Shared {
    fn key(&self, number: u32) -> Option<Arc<Key>> {
        self.keys.read().get(&number).cloned()
    }

    fn begin(&self, job: u64) {
        self.work.lock().jobs.insert(job, AtWork { since: Instant::now(), is_replaced: false });
    }

    /// A worker is out of the module with this job: whether another stands in for it.
    fn end(&self, job: u64) -> bool {
        self.work.lock().jobs.remove(&job).is_some_and(|job| job.is_replaced)
    }

    /// Marks for a stand-in, `most` of them, the jobs that a session has been at for longer than `limit`.
    fn replace(&self, limit: Duration, most: usize) -> wire::Replaced {
        let mut work = self.work.lock();
        let stuck = |job: &AtWork| !job.is_replaced && job.since.elapsed() > limit;
        let mut stuck: Vec<_> = work.jobs.iter_mut().filter(|(_, job)| stuck(job)).collect();
        for (_, job) in stuck.iter_mut().take(most) {
            job.is_replaced = true;
        }
        let without = u32::try_from(stuck.len().saturating_sub(most)).unwrap_or(u32::MAX);
        wire::Replaced { jobs: stuck.into_iter().map(|(job, _)| *job).collect(), without }
    }
}

/// A token at work in this process.
struct Host {
    shared: Arc<Shared>,
    /// Held to the end, since a token logs out when its last session closes; finds and tries keys.
    keeper: Session,
    workers: Vec<JoinHandle<()>>,
}

/// Serves the gateway that started this process, until it says so or is gone.
///
/// # Errors
/// Where this process was not started by a gateway.
pub fn run() -> io::Result<()> {
    let (mut control, jobs) = sockets()?;
    end_with_gateway(control.try_clone()?)?;
    let jobs = Arc::new(jobs);
    let (mut reached, mut host) = (None, None);
    while let Some(frame) = read_frame(&mut control)? {
        let ask = Ask::decode(frame.as_slice()).map_err(io::Error::other)?;
        let Some(request) = ask.request else { break };
        if let Request::Close(_) = request {
            break;
        }
        let response = answer(&mut reached, &mut host, request, &mut control, &jobs)
            .unwrap_or_else(|fault| Response::Failed(fault.into()));
        write_frame(&mut control, &Answer { response: Some(response) }.encode_to_vec())?;
    }
    end(host, &jobs);
    Ok(())
}

/// Ends this process some time after the gateway is no more, also where the module holds the thread that would read it.
fn end_with_gateway(control: UnixStream) -> io::Result<()> {
    let watch = move || {
        let mut watched = [PollFd::new(&control, PollFlags::empty())];
        // A signal may interrupt it.
        while poll(&mut watched, None).is_err() {}
        thread::sleep(END);
        end_now();
    };
    thread::Builder::new().name("pkcs11-gateway".to_owned()).spawn(watch)?;
    Ok(())
}

/// Takes both sockets over, and leaves nothing behind that a module could read or write by mistake.
fn sockets() -> io::Result<(UnixStream, UnixDatagram)> {
    let control = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let jobs = UnixDatagram::from(io::stdout().as_fd().try_clone_to_owned()?);
    let nothing = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&nothing)?;
    rustix::stdio::dup2_stdout(&nothing)?;
    Ok((control, jobs))
}

fn answer(
    reached: &mut Option<(Device, Session, u32)>,
    host: &mut Option<Host>,
    request: Request,
    control: &mut UnixStream,
    jobs: &Arc<UnixDatagram>,
) -> Result<Response, Fault> {
    match (request, host) {
        (Request::Open(open), None) => {
            let pkcs11 = module::enter(Path::new(&open.module))?;
            let device = Device::reach(pkcs11, &open, Arc::clone(jobs))?;
            let (keeper, found) = (device.open_session(Access::Read)?, device.reached());
            *reached = Some((device, keeper, open.sessions));
            Ok(Response::Reached(found))
        }
        (Request::Login(_), host @ None) => {
            let pin = secret(control)?;
            let out_of_turn = || Fault::Device("the host process was asked out of turn".to_owned());
            let (device, keeper, sessions) = reached.take().ok_or_else(out_of_turn)?;
            let (opened, answer) = Host::open(device.with_pin(pin), keeper, sessions, jobs)?;
            *host = Some(opened);
            Ok(Response::Opened(answer))
        }
        (Request::InitToken(ask), None) => {
            let (pin, so_pin) = (secret(control)?, secret(control)?);
            let pkcs11 = module::enter(Path::new(&ask.module))?;
            keygen::init_token(&pkcs11, &ask.label, &pin, &so_pin)?;
            Ok(Response::Done(Nothing {}))
        }
        (Request::Bind(ask), Some(host)) => host.bind(&ask).map(Response::Bound),
        (Request::Forget(number), Some(host)) => {
            host.shared.keys.write().remove(&number);
            Ok(Response::Done(Nothing {}))
        }
        (Request::Replace(ask), Some(host)) => host.replace(&ask, jobs).map(Response::Replaced),
        (Request::Generate(ask), Some(host)) => keygen::generate(&host.shared.device, &ask).map(Response::Key),
        (Request::List(_), Some(host)) => keygen::list(&host.shared.device).map(Response::Keys),
        (Request::TryOut(ask), Some(host)) => key::try_out(&host.shared.device, &host.keeper, &ask).map(Response::Key),
        (Request::Examine(locator), Some(host)) => {
            key::examine(&host.shared.device, &host.keeper, &locator).map(Response::Examined)
        }
        (_, _) => Err(Fault::Device("the host process was asked out of turn".to_owned())),
    }
}

impl Host {
    /// Logs in, and opens as many sessions as the token gives: that may be fewer than it says it has.
    fn open(
        device: Device,
        keeper: Session,
        wanted: u32,
        jobs: &Arc<UnixDatagram>,
    ) -> Result<(Self, wire::Opened), Fault> {
        device.log_in(&keeper)?;
        let room = device.sessions_max().max(1);
        let mut sessions = Vec::new();
        for _ in 0..wanted.min(room) {
            match device.session(Access::Read) {
                Ok(session) => sessions.push(session),
                Err(Fault::Device(_)) if !sessions.is_empty() => break,
                Err(fault) => return Err(fault),
            }
        }
        let had = u32::try_from(sessions.len()).unwrap_or(u32::MAX);
        let spare = if had < wanted { 0 } else { (room - had).min(wanted) };
        let token = device.facts().name();
        let shared = Arc::new(Shared { device, keys: RwLock::default(), work: Mutex::default() });
        let mut host = Self { shared, keeper, workers: Vec::new() };
        for session in sessions {
            host.start_worker(Some(session), jobs)?;
        }
        Ok((host, wire::Opened { sessions: had, spare, token }))
    }

    fn start_worker(&mut self, session: Option<Session>, jobs: &Arc<UnixDatagram>) -> Result<(), Fault> {
        let (worker, jobs) = (Worker::new(Arc::clone(&self.shared), session), Arc::clone(jobs));
        let thread = thread::Builder::new().name("pkcs11-session".to_owned()).spawn(move || worker.run(&jobs));
        self.workers.push(thread.map_err(|error| Fault::Device(format!("cannot start a session's thread: {error}")))?);
        Ok(())
    }

    fn replace(&mut self, ask: &wire::Replace, jobs: &Arc<UnixDatagram>) -> Result<wire::Replaced, Fault> {
        let replaced = self.shared.replace(Duration::from_millis(ask.limit_ms), ask.most as usize);
        for _ in replaced.without as usize..replaced.jobs.len() {
            self.start_worker(None, jobs)?;
        }
        Ok(replaced)
    }

    /// The keeper's session may be lost like any other: then it is opened anew, once.
    fn bind(&mut self, ask: &wire::Bind) -> Result<wire::Bound, Fault> {
        let device = &self.shared.device;
        let bound = match Key::bind(device, &self.keeper, ask) {
            Err(Fault::Device(_) | Fault::Missing(_)) => {
                self.keeper = device.session(Access::Read)?;
                Key::bind(device, &self.keeper, ask)
            }
            bound => bound,
        };
        let (key, answer) = bound.inspect_err(|_| {
            self.shared.keys.write().remove(&ask.number);
        })?;
        self.shared.keys.write().insert(ask.number, Arc::new(key));
        Ok(answer)
    }
}

/// A PIN, in a frame of its own.
fn secret(control: &mut UnixStream) -> Result<SecretString, Fault> {
    let lost = |_| Fault::Device("the gateway ended before it gave the PIN".to_owned());
    let frame = read_frame(control).map_err(lost)?.unwrap_or_default();
    String::from_utf8(frame).map(SecretString::from).map_err(|_| Fault::Invalid("a PIN is not UTF-8".to_owned()))
}

/// Leaves the module: workers first, and only if all of them are out it is finalised. A session that is stuck
/// inside is ended with the process.
fn end(host: Option<Host>, jobs: &UnixDatagram) {
    let watchdog = thread::Builder::new().spawn(|| {
        thread::sleep(END);
        end_now();
    });
    if watchdog.is_err() {
        end_now();
    }
    // Workers that wait for a job wake with none.
    if jobs.shutdown(std::net::Shutdown::Both).is_err() {
        end_now();
    }
    let Some(Host { shared, keeper, workers }) = host else { return };
    let since = Instant::now();
    while workers.iter().any(|worker| !worker.is_finished()) {
        if since.elapsed() > LEAVE {
            end_now();
        }
        thread::sleep(Duration::from_millis(2));
    }
    drop(keeper);
    // A module that does not leave cleanly ends with the process all the same.
    let _left = shared.device.leave();
}

/// Ends this process where it stands, running nobody's exit handlers under threads that are inside a module.
fn end_now() {
    let _killed = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
}
