//! Strict I-JSON (RFC 7493): one object, every key once, integers within +-(2^53 - 1), no floats, bounded in
//! bytes, depth and nodes. What two readers could understand differently is refused.

use std::{cell::Cell, fmt};

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::domain::INTEGER_MAX;

/// Bounds on a document.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Its size.
    pub payload_bytes_max: usize,
    /// How deep objects and arrays may nest.
    pub depth_max: usize,
    /// How many values it may hold in all.
    pub nodes_max: usize,
}

/// Reads one object.
///
/// # Errors
/// The first thing that is not strict I-JSON, by place and rule and never by value.
pub fn read_object(payload: &[u8], limits: &Limits) -> Result<Map<String, Value>, String> {
    if payload.len() > limits.payload_bytes_max {
        return Err(format!("it is larger than {} bytes", limits.payload_bytes_max));
    }
    let nodes_left = Cell::new(limits.nodes_max);
    let strict = Strict { depth_left: limits.depth_max, nodes_left: &nodes_left };
    let mut reader = serde_json::Deserializer::from_slice(payload);
    let value = strict.deserialize(&mut reader).map_err(|fault| fault.to_string())?;
    reader.end().map_err(|_| "something follows the object".to_owned())?;
    match value {
        Value::Object(object) => Ok(object),
        _ => Err("it is not an object".to_owned()),
    }
}

#[derive(Clone, Copy)]
struct Strict<'a> {
    depth_left: usize,
    nodes_left: &'a Cell<usize>,
}

impl<'a> Strict<'a> {
    fn node<E: Error>(self) -> Result<(), E> {
        let left = self.nodes_left.get().checked_sub(1).ok_or_else(|| E::custom("too many values"))?;
        self.nodes_left.set(left);
        Ok(())
    }

    fn deeper<E: Error>(self) -> Result<Strict<'a>, E> {
        let depth_left = self.depth_left.checked_sub(1).ok_or_else(|| E::custom("nested too deep"))?;
        Ok(Strict { depth_left, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.node()?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("strict I-JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        if value <= INTEGER_MAX { Ok(value.into()) } else { Err(E::custom("an integer beyond 2^53 - 1")) }
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        if value.unsigned_abs() <= INTEGER_MAX {
            Ok(value.into())
        } else {
            Err(E::custom("an integer beyond -(2^53 - 1)"))
        }
    }

    /// Also -0, exponents, and integers beyond 64 bits: `serde_json` hands all of them over as floats.
    fn visit_f64<E: Error>(self, _: f64) -> Result<Value, E> {
        Err(E::custom("a number that is not a plain integer; write amounts and rates as strings"))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        if text.chars().any(is_hidden) {
            Err(E::custom("a control or direction character or a noncharacter in a string"))
        } else {
            Ok(text.into())
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let inside = self.deeper()?;
        let mut array = Vec::new();
        while let Some(item) = items.next_element_seed(inside)? {
            array.push(item);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let inside = self.deeper()?;
        let mut object = Map::new();
        while let Some(key) = members.next_key::<String>()? {
            // serde_json gives these names a meaning of its own when some crate turns its features on.
            if key.starts_with("$serde_json::private") {
                return Err(A::Error::custom("a reserved key"));
            }
            if key.chars().any(is_hidden) {
                return Err(A::Error::custom("a control or direction character or a noncharacter in a key"));
            }
            if object.contains_key(&key) {
                return Err(A::Error::custom("a key that stands twice in one object"));
            }
            object.insert(key, members.next_value_seed(inside)?);
        }
        Ok(Value::Object(object))
    }
}

/// Characters that a reader does not see, or that reorder what a reader sees: controls, separators, zero widths,
/// bidi controls, and the noncharacters that I-JSON forbids.
#[must_use]
pub fn is_hidden(letter: char) -> bool {
    letter.is_control()
        || matches!(
            letter,
            '\u{feff}' | '\u{061c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
                | '\u{fdd0}'..='\u{fdef}'
        )
        || u32::from(letter) & 0xfffe == 0xfffe
}

/// A text that was written by others, with what is hidden in it spelt out.
#[must_use]
pub fn shown(text: &str) -> String {
    let spelt = |letter: char| if is_hidden(letter) { letter.escape_unicode().to_string() } else { letter.to_string() };
    text.chars().map(spelt).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { payload_bytes_max: 200, depth_max: 3, nodes_max: 12 };

    fn read(payload: &str) -> Result<Map<String, Value>, String> {
        read_object(payload.as_bytes(), &LIMITS)
    }

    #[test]
    fn plain_objects_are_read_as_they_are() {
        let quote = read(r#"{"a":"1.50","b":9007199254740991,"c":[null,true,-1],"d":{"e":{}}}"#).unwrap();
        assert_eq!(
            Value::Object(quote).to_string(),
            r#"{"a":"1.50","b":9007199254740991,"c":[null,true,-1],"d":{"e":{}}}"#
        );
    }

    #[test]
    fn whatever_two_readers_could_differ_on_is_refused() {
        for (bad, why) in [
            (r#"{"a":1,"a":1}"#, "twice"),
            (r#"{"a":1,"\u0061":1}"#, "twice"),
            (r#"{"x":{"a":1,"a":2}}"#, "twice"),
            (r#"{"a":1.0}"#, "plain integer"),
            (r#"{"a":1e2}"#, "plain integer"),
            (r#"{"a":-0}"#, "plain integer"),
            (r#"{"a":9007199254740992}"#, "2^53"),
            (r#"{"a":-9007199254740992}"#, "2^53"),
            (r#"{"a":123456789012345678901234567890}"#, "plain integer"),
            (r#"{"a":"\ud800"}"#, "hex escape"),
            (r#"{"a":"\u0000"}"#, "control"),
            (r#"{"a":"\u202e"}"#, "direction"),
            (r#"{"a":"\uffff"}"#, "noncharacter"),
            (r#"{"a":1} "x""#, "follows"),
            (r#"{"a":1}{}"#, "follows"),
            ("\u{feff}{}", "expected value"),
            ("[]", "not an object"),
            ("", "EOF"),
            (r#"{"a":NaN}"#, "expected"),
            (r#"{"a":01}"#, "invalid number"),
            (r#"{"a":1,}"#, "trailing comma"),
            (r#"{"$serde_json::private::Number":"1.5"}"#, "reserved"),
            (r#"{"$serde_json::private::RawValue":"{}"}"#, "reserved"),
            (r#"{"a":{"b":{"c":{}}}}"#, "deep"),
            (r#"{"a":[1,2,3,4,5,6,7,8,9,10,11,12]}"#, "too many"),
        ] {
            let fault = read(bad).unwrap_err();
            assert!(fault.contains(why), "{bad}: {fault}");
        }
        assert!(read_object(b"{\"a\":\"\xff\"}", &LIMITS).is_err());
        assert!(read(&format!(r#"{{"a":"{}"}}"#, "x".repeat(200))).unwrap_err().contains("larger"));
    }
}
