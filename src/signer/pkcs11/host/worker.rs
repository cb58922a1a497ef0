//! A worker: one thread with one session and its own key handles, taking jobs from the socket that all of them
//! read. It does the first rung of recovery by itself: a new session, the key found and compared again, the job
//! tried once more. The next rung is the gateway's: a new process.

use std::{collections::HashMap, io, os::unix::net::UnixDatagram, sync::Arc, time::Instant};

use cryptoki::{object::ObjectHandle, session::Session};
use prost::Message as _;

use super::{
    super::{
        fault::Fault,
        wire::{Done, JOB_BYTES_MAX, Job, Said},
    },
    Shared,
    device::Access,
    key::Key,
};
use crate::{clock::steady_ns, jws::SigningInput};

/// One worker.
pub(super) struct Worker {
    shared: Arc<Shared>,
    session: Option<Session>,
    handles: HashMap<u32, (Arc<Key>, ObjectHandle)>,
}

impl Worker {
    /// Begins with `session`, or opens one with its first job: that can hang like any call, and what hangs outside of a
    /// job is not seen.
    pub(super) fn new(shared: Arc<Shared>, session: Option<Session>) -> Self {
        Self { shared, session, handles: HashMap::new() }
    }

    /// Works until the socket is shut down, or another worker stands in for this one.
    pub(super) fn run(mut self, jobs: &UnixDatagram) {
        let mut buffer = vec![0; JOB_BYTES_MAX];
        loop {
            let job = match jobs.recv(&mut buffer) {
                Ok(0) => return,
                Ok(length) => buffer.get(..length).and_then(|bytes| Job::decode(bytes).ok()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            // Nobody but the gateway writes here, and it writes whole jobs.
            let Some(job) = job else { continue };
            let (id, began) = (job.id, Instant::now());
            self.shared.begin(id);
            let (signature, failed) = match self.work(job) {
                Ok(signature) => (signature, None),
                Err(fault) => (Vec::new(), Some(fault.into())),
            };
            let took_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
            let done = Done { id, signature, failed, took_us };
            let is_replaced = self.shared.end(id);
            if jobs.send(&Said::Done(done).datagram()).is_err() || is_replaced {
                return;
            }
        }
    }

    fn work(&mut self, job: Job) -> Result<Vec<u8>, Fault> {
        if job.deadline_ns <= steady_ns() {
            return Err(Fault::Late);
        }
        let key = self.shared.key(job.key).ok_or_else(|| Fault::Device("the key is not bound".to_owned()))?;
        let input = SigningInput::received(job.input);
        match self.try_sign(job.key, &key, &input) {
            // Whatever the code was: vendors differ too much in their codes to decide by them. A key that is
            // unfit stays so.
            Err(Fault::Device(_) | Fault::Missing(_)) => {
                self.handles.clear();
                self.session = None;
                self.try_sign(job.key, &key, &input)
            }
            result => result,
        }
    }

    fn try_sign(&mut self, number: u32, key: &Arc<Key>, input: &SigningInput) -> Result<Vec<u8>, Fault> {
        let device = &self.shared.device;
        let session = match self.session.take() {
            Some(session) => session,
            None => device.session(Access::Read)?,
        };
        let session = &*self.session.insert(session);
        let known = self.handles.get(&number).filter(|(of, _)| Arc::ptr_eq(of, key));
        let handle = match known {
            Some((_, handle)) => *handle,
            None => key.find(device, session)?.0,
        };
        self.handles.insert(number, (Arc::clone(key), handle));
        key.sign(session, handle, input)
    }
}
