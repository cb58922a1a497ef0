//! Lets no more quotes towards the devices than they can take: what cannot be served soon is refused before a
//! number is taken.

use std::{sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::canonicalise::Canonical;

/// The devices have as much to do as they may.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the gateway is at its capacity; come again in {} ms", retry_after.as_millis())]
pub struct Overloaded {
    /// A time after which there may be room.
    pub retry_after: Duration,
}

/// How many quotes may be between here and their release at once.
#[derive(Debug, Clone)]
pub struct Admission {
    places: Arc<Semaphore>,
    retry_after: Duration,
}

impl Admission {
    /// `in_flight_max` places; a refused caller is told to come again after `retry_after`.
    #[must_use]
    pub fn new(in_flight_max: usize, retry_after: Duration) -> Self {
        Self { places: Arc::new(Semaphore::new(in_flight_max)), retry_after }
    }
}

/// A quote with a place; the place is given back when its signature is committed or refused.
#[derive(Debug)]
pub struct Admitted {
    canonical: Canonical,
    place: Place,
}

/// A place among the quotes in flight; dropping it gives it back.
#[derive(Debug)]
pub struct Place {
    _permit: OwnedSemaphorePermit,
}

/// Takes a place.
///
/// # Errors
/// Where none is free.
pub fn admit(canonical: Canonical, admission: &Admission) -> Result<Admitted, Overloaded> {
    let overloaded = |_| Overloaded { retry_after: admission.retry_after };
    let permit = admission.places.clone().try_acquire_owned().map_err(overloaded)?;
    Ok(Admitted { canonical, place: Place { _permit: permit } })
}

impl Admitted {
    pub(super) fn taken(self) -> (Canonical, Place) {
        (self.canonical, self.place)
    }
}
