//! Protocol Buffers as they are on the wire, for what is written for every record of the journal and for every recorded call: to build it
//! field by field in a type, only to write it once, costs several times what writing it costs, and memory that is cold when it is needed
//! next. Tests hold it against the generated types.

use prost::encoding::{WireType, encode_key, encode_varint};

/// Fields of `KeyValue`, and of `AnyValue` in it.
mod field {
    pub(super) const KEY: u32 = 1;
    pub(super) const VALUE: u32 = 2;
    pub(super) const STRING: u32 = 1;
    pub(super) const BOOL: u32 = 2;
    pub(super) const INT: u32 = 3;
}

/// A message as it is written.
#[derive(Debug, Clone, Default)]
pub struct Wire(Vec<u8>);

impl From<Vec<u8>> for Wire {
    /// A message that begins with what is there.
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl Wire {
    /// An empty message, with room for so many bytes.
    #[must_use]
    pub fn with_room(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    /// A field of bytes, a text or a message; one that is empty is not written.
    pub fn bytes(&mut self, field: u32, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.sized(field, bytes.len());
            self.0.extend_from_slice(bytes);
        }
    }

    /// A field of a fixed number.
    pub fn fixed(&mut self, field: u32, number: u64) {
        encode_key(field, WireType::SixtyFourBit, &mut self.0);
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    /// A field of a fixed number of half the size.
    pub fn fixed32(&mut self, field: u32, number: u32) {
        encode_key(field, WireType::ThirtyTwoBit, &mut self.0);
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    /// A field with an attribute that is a text, in UTF-8; an empty one is one all the same, unlike none.
    pub fn attribute(&mut self, field: u32, key: &str, value: &[u8]) {
        let inner = sized_len(field::STRING, value.len());
        self.sized(field, sized_len(field::KEY, key.len()) + sized_len(field::VALUE, inner));
        self.bytes(field::KEY, key.as_bytes());
        self.sized(field::VALUE, inner);
        self.sized(field::STRING, value.len());
        self.extend(value);
    }

    /// A field with an attribute that is a number.
    pub fn number_attribute(&mut self, field: u32, key: &str, value: u64) {
        self.varint_attribute(field, key, field::INT, value);
    }

    /// A field with an attribute that is true.
    pub fn true_attribute(&mut self, field: u32, key: &str) {
        self.varint_attribute(field, key, field::BOOL, 1);
    }

    fn varint_attribute(&mut self, field: u32, key: &str, of: u32, value: u64) {
        let inner = prost::encoding::key_len(of) + prost::encoding::encoded_len_varint(value);
        self.sized(field, sized_len(field::KEY, key.len()) + sized_len(field::VALUE, inner));
        self.bytes(field::KEY, key.as_bytes());
        self.sized(field::VALUE, inner);
        self.number(of, value);
    }

    /// A field of a number.
    pub fn number(&mut self, field: u32, number: u64) {
        encode_key(field, WireType::Varint, &mut self.0);
        encode_varint(number, &mut self.0);
    }

    /// Begins a field of so many bytes, which follow.
    pub fn sized(&mut self, field: u32, bytes: usize) {
        let key = field << 3 | WireType::LengthDelimited as u32;
        // Nearly all are of a byte each.
        if let (Ok(key @ ..0x80), Ok(bytes @ ..0x80)) = (u8::try_from(key), u8::try_from(bytes)) {
            self.0.extend_from_slice(&[key, bytes]);
        } else {
            encode_varint(u64::from(key), &mut self.0);
            encode_varint(bytes as u64, &mut self.0);
        }
    }

    /// What follows a size.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// Empties it, and keeps its room.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// What is written.
    #[must_use]
    pub fn written(&self) -> &[u8] {
        &self.0
    }

    /// The bytes.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// How many bytes a field of so many bytes takes, with what comes before them.
#[must_use]
pub fn sized_len(field: u32, bytes: usize) -> usize {
    prost::encoding::key_len(field) + prost::encoding::encoded_len_varint(bytes as u64) + bytes
}
