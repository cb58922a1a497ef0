//! The trace that a call belongs to: W3C Trace Context, level 1, taken from the caller or begun here.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::atomic::{AtomicU64, Ordering},
};

/// What a caller says of its trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// The trace.
    pub trace_id: [u8; 16],
    /// The caller's span.
    pub span_id: [u8; 8],
    /// Whether the caller records it.
    pub is_sampled: bool,
}

impl Parent {
    /// Reads a `traceparent`; nothing where it is not well formed, which then counts as none.
    #[must_use]
    pub fn parse(traceparent: &str) -> Option<Self> {
        let (version, rest) = traceparent.split_at_checked(2)?;
        let is_lower_hex = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if !is_lower_hex(version) || version == "ff" {
            return None;
        }
        let mut parts = rest.strip_prefix('-')?.splitn(4, '-');
        let (trace, span, flags, more) = (parts.next()?, parts.next()?, parts.next()?, parts.next());
        if (trace.len(), span.len(), flags.len()) != (32, 16, 2) || version == "00" && more.is_some() {
            return None;
        }
        if ![trace, span, flags].iter().all(|part| is_lower_hex(part)) {
            return None;
        }
        let mut parent = Self { trace_id: [0; 16], span_id: [0; 8], is_sampled: false };
        hex::decode_to_slice(trace, &mut parent.trace_id).ok()?;
        hex::decode_to_slice(span, &mut parent.span_id).ok()?;
        parent.is_sampled = u8::from_str_radix(flags, 16).ok()? & 1 == 1;
        (parent.trace_id != [0; 16] && parent.span_id != [0; 8]).then_some(parent)
    }
}

/// A call's own place in a trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// The trace.
    pub trace_id: [u8; 16],
    /// The call's span.
    pub span_id: [u8; 8],
    /// The caller's span.
    pub parent: Option<[u8; 8]>,
    /// Whether the call is recorded here.
    pub is_sampled: bool,
}

impl Trace {
    /// The `traceresponse` that tells the caller the call's span.
    #[must_use]
    pub fn response(&self) -> String {
        format!("00-{}-{}-{:02x}", hex::encode(self.trace_id), hex::encode(self.span_id), u8::from(self.is_sampled))
    }
}

/// Decides which calls are recorded, and gives ids.
#[derive(Debug)]
pub struct Sampler {
    /// Of 2^64, how many.
    threshold: u128,
    random: RandomState,
    count: AtomicU64,
}

impl Sampler {
    /// Records this share of the calls whose caller says nothing, between 0 and 1, and all whose caller records them; none where it
    /// is 0.
    #[must_use]
    pub fn new(ratio: f64) -> Self {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is between 0 and 2^64")]
        let threshold = (ratio.clamp(0.0, 1.0) * 2_f64.powi(64)) as u128;
        Self { threshold, random: RandomState::new(), count: AtomicU64::new(0) }
    }

    /// The call's place in a trace; nothing where its caller has none and it is not recorded.
    #[must_use]
    pub fn begin(&self, parent: Option<Parent>) -> Option<Trace> {
        let is_sampled = match &parent {
            Some(parent) => parent.is_sampled && self.threshold > 0,
            None => u128::from(self.next()) < self.threshold,
        };
        let span_id = || self.span_id();
        match parent {
            Some(Parent { trace_id, span_id: parent, .. }) => {
                Some(Trace { trace_id, span_id: span_id(), parent: Some(parent), is_sampled })
            }
            None if is_sampled => {
                let trace_id = u128::from(self.next()) << 64 | u128::from(self.next()) | 1;
                Some(Trace { trace_id: trace_id.to_be_bytes(), span_id: span_id(), parent: None, is_sampled })
            }
            None => None,
        }
    }

    /// An id for a span.
    #[must_use]
    pub fn span_id(&self) -> [u8; 8] {
        (self.next() | 1).to_be_bytes()
    }

    /// A number that nobody can guess who has not the state, which is random at each start.
    fn next(&self) -> u64 {
        self.random.hash_one(self.count.fetch_add(1, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_is_read_as_the_recommendation_has_it() {
        let parent = Parent::parse(GOOD).unwrap();
        assert_eq!(hex::encode(parent.trace_id), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!((hex::encode(parent.span_id).as_str(), parent.is_sampled), ("00f067aa0ba902b7", true));
        assert!(!Parent::parse(&GOOD.replace("-01", "-fe")).unwrap().is_sampled);
        assert!(Parent::parse(&(GOOD.replacen("00", "cc", 1) + "-what-comes-later")).is_some());
        for bad in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b77-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-+1",
            "é0-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(Parent::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_share_of_the_calls_is_recorded_and_a_callers_trace_is_gone_on_with() {
        let count = |ratio| {
            let sampler = Sampler::new(ratio);
            (0..10_000).filter(|_| sampler.begin(None).is_some()).count()
        };
        assert_eq!((count(0.0), count(1.0)), (0, 10_000));
        assert!((700..1300).contains(&count(0.1)));
        let sampler = Sampler::new(0.01);
        let trace = sampler.begin(Parent::parse(GOOD)).unwrap();
        assert!(trace.is_sampled && trace.parent == Some([0, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7]));
        assert!(
            trace.response().starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-") && trace.response().ends_with("-01")
        );
        let quiet = Sampler::new(0.0).begin(Parent::parse(GOOD)).unwrap();
        assert!(!quiet.is_sampled && quiet.response().ends_with("-00"), "it is told on, and not recorded");
        let ids: std::collections::BTreeSet<_> = (0..1000).map(|_| sampler.span_id()).collect();
        assert_eq!(ids.len(), 1000);
    }
}
