//! A worker: one thread with one session and its own key handles, taking jobs from the token's queue. It does
//! the first rung of recovery by itself (a new session, the key found and compared again, the job tried once
//! more); the next rung is the `supervisor`'s.

use std::{collections::HashMap, sync::Arc, time::Instant};

use cryptoki::object::ObjectHandle;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::{
    device::{Access, Session},
    fault::Fault,
    key::Key,
    supervisor::Generation,
};
use crate::{
    jws::SigningInput,
    signer::{SignError, Signature},
};

/// What the queue holds.
pub(super) enum Job {
    /// Sign for a caller, who verifies.
    Sign { key: Arc<Key>, input: SigningInput, deadline: Instant, reply: oneshot::Sender<Result<Signature, SignError>> },
    /// Find out whether the key signs.
    Probe { key: Arc<Key> },
}

impl Job {
    /// Answers without having done anything.
    pub(super) fn refuse(self, error: SignError) {
        if let Self::Sign { reply, .. } = self {
            // Nobody waits for an answer whose receiver is gone.
            let _ = reply.send(Err(error));
        }
    }
}

/// When a worker began the job it is at.
pub(super) type BusySince = Mutex<Option<Instant>>;

/// One of a generation's workers.
pub(super) struct Worker<'g> {
    generation: &'g Generation<'g>,
    busy_since: &'g BusySince,
    session: Option<Session<'g>>,
    handles: HashMap<u64, ObjectHandle>,
}

impl<'g> Worker<'g> {
    pub(super) fn new(generation: &'g Generation<'g>, busy_since: &'g BusySince) -> Self {
        Self { generation, busy_since, session: None, handles: HashMap::new() }
    }

    /// Works until the generation is over and its queue empty.
    pub(super) fn run(mut self, jobs: &flume::Receiver<Job>) {
        for job in jobs {
            if self.generation.is_over() {
                job.refuse(SignError::Unavailable("the token is being recovered".to_owned()));
                continue;
            }
            *self.busy_since.lock() = Some(Instant::now());
            self.work(job);
            *self.busy_since.lock() = None;
        }
    }

    fn work(&mut self, job: Job) {
        match job {
            Job::Probe { key } => {
                let verdict = self.probe(&key);
                self.judge(&key, verdict);
            }
            Job::Sign { reply, .. } if reply.is_closed() => {}
            Job::Sign { deadline, .. } if deadline <= Instant::now() => job.refuse(SignError::TimedOut),
            Job::Sign { key, input, reply, .. } => {
                let signed = self.sign(&key, &input);
                if let Err(fault) = &signed {
                    self.judge(&key, Err(fault.clone()));
                }
                // The caller may have left meanwhile.
                let _ = reply.send(signed.map(Signature).map_err(SignError::from));
            }
        }
    }

    fn probe(&mut self, key: &Key) -> Result<(), Fault> {
        let input = SigningInput::probe(Uuid::now_v7().into_bytes());
        let signature = self.sign(key, &input)?;
        if key.public.verifies(input.bytes(), &signature) {
            Ok(())
        } else {
            Err(Fault::Device("its test signature does not verify".to_owned()))
        }
    }

    /// Signs; if that fails, once more from the ground up, whatever the code was: vendors differ too much in
    /// their codes to decide by them. A key that is unfit stays so.
    fn sign(&mut self, key: &Key, input: &SigningInput) -> Result<Vec<u8>, Fault> {
        match self.try_sign(key, input) {
            Err(fault @ (Fault::Device(_) | Fault::Missing(_))) => {
                tracing::debug!(kid = %key.public.kid(), why = %fault, "trying again with a new session");
                self.handles.clear();
                self.session = None;
                self.try_sign(key, input)
            }
            result => result,
        }
    }

    fn try_sign(&mut self, key: &Key, input: &SigningInput) -> Result<Vec<u8>, Fault> {
        let device = self.generation.device();
        let session = match self.session.take() {
            Some(session) => session,
            None => device.session(Access::Read)?,
        };
        let session = self.session.insert(session);
        let handle = match self.handles.get(&key.number) {
            Some(handle) => *handle,
            None => key.find(device, session, self.generation.attributes())?,
        };
        self.handles.insert(key.number, handle);
        device.sign(session, handle, input)
    }

    fn judge(&self, key: &Key, verdict: Result<(), Fault>) {
        let fault = verdict.as_ref().err().cloned();
        let signed_before = key.judge(self.generation.number(), verdict);
        match fault {
            Some(fault @ Fault::Pin(_)) => self.generation.report(fault),
            // A key that has not signed in this generation may itself be at fault; the supervisor sees the others.
            Some(fault @ Fault::Device(_)) if signed_before => self.generation.report(fault),
            _ => {}
        }
    }
}
