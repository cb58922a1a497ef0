//! A request that is written already, as a body that is sent as it is.

use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use hyper::body::{Body, Bytes, Frame, SizeHint};
use prost::bytes::BufMut as _;

/// One message, in parts that are sent one behind the other and not copied together.
#[derive(Debug, Default)]
pub(super) struct Written(VecDeque<Bytes>);

impl Written {
    fn len(&self) -> usize {
        self.0.iter().map(Bytes::len).sum()
    }

    /// With what comes before a message in gRPC: that it is not compressed, and its length.
    pub(super) fn into_message(mut self) -> Self {
        let mut head = Vec::with_capacity(5);
        head.put_u8(0);
        // No page comes near the bound.
        head.put_u32(u32::try_from(self.len()).unwrap_or(u32::MAX));
        self.0.push_front(head.into());
        self
    }
}

impl From<[Bytes; 2]> for Written {
    fn from(parts: [Bytes; 2]) -> Self {
        Self(parts.into_iter().filter(|part| !part.is_empty()).collect())
    }
}

impl From<Vec<u8>> for Written {
    fn from(whole: Vec<u8>) -> Self {
        Self([whole.into()].into())
    }
}

impl Body for Written {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(|part| Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn a_message_has_its_length_before_it_and_its_parts_in_order() {
        let parts = || Written::from([Bytes::from_static(b"ab"), Bytes::from_static(b"cde")]);
        assert_eq!(parts().size_hint().exact(), Some(5));
        assert_eq!(parts().collect().await.unwrap().to_bytes(), "abcde");
        let message = parts().into_message();
        assert_eq!(message.size_hint().exact(), Some(10));
        assert_eq!(message.collect().await.unwrap().to_bytes(), b"\0\0\0\0\x05abcde".as_slice());
        assert!(!Written::from(b"ab".to_vec()).is_end_stream() && Written::default().is_end_stream());
        let empty = Written::from(Vec::new()).into_message();
        assert_eq!(empty.collect().await.unwrap().to_bytes(), [0; 5].as_slice());
    }
}
