//! Where a key lies on its device, as policy writes it: the path of an RFC 7512 `pkcs11:` URI, or the ARN of a key
//! in AWS KMS. PINs, modules and credentials are no part of it; they are the gateway's config. Finding the key is left
//! to its device.

use std::fmt;

mod arn;

pub use arn::{ArnError, KeyArn};

/// Whether this is a locator, of whatever kind of device.
///
/// # Errors
/// What is wrong with it.
pub fn check(locator: &str) -> Result<(), String> {
    if locator.starts_with("arn:") || locator.starts_with("alias/") {
        return KeyArn::anywhere(locator).map(drop).map_err(|fault| fault.to_string());
    }
    Locator::parse(locator).map(drop).map_err(|fault| fault.to_string())
}

/// Why a text is not a locator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LocatorError {
    /// Not a `pkcs11:` URI.
    #[error("a locator begins with `pkcs11:`, as in `pkcs11:token=quotes;object=quote-signing-2026-06;type=private`")]
    Scheme,
    /// An attribute that would bring a secret or a module into policy.
    #[error("`{0}` is refused in a locator: PINs and modules belong to the gateway's config")]
    Config(String),
    /// An attribute that locators do not have.
    #[error("`{0}` is no attribute of a locator: token, serial, manufacturer, model, object, id and type are")]
    Unknown(String),
    /// An attribute stands twice.
    #[error("`{0}` stands twice")]
    Repeated(&'static str),
    /// An attribute has no value.
    #[error("`{0}` has no value")]
    Empty(&'static str),
    /// A value has a character that RFC 7512 wants percent-encoded, a broken escape, or is not UTF-8.
    #[error("the value of `{0}` is not percent-encoded as RFC 7512 wants it")]
    Encoding(&'static str),
    /// The object is of another type than `private`.
    #[error("`type` must be `private`")]
    Type,
    /// Nothing says which key of the token it is.
    #[error("a locator needs `object` or `id`")]
    NoKey,
}

/// Which private key of which token. What is not named is not compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Locator {
    uri: String,
    token: Option<String>,
    serial: Option<String>,
    manufacturer: Option<String>,
    model: Option<String>,
    object: Option<String>,
    id: Option<Vec<u8>>,
}

impl Locator {
    /// The URI of the private key labelled `object` on the token labelled `token`.
    #[must_use]
    pub fn uri_of(token: &str, object: &str) -> String {
        format!("pkcs11:token={};object={};type=private", encoded(token), encoded(object))
    }

    /// The URI of the private key with this id, where it has no label.
    #[must_use]
    pub fn uri_of_id(token: &str, id: &[u8]) -> String {
        let id: Vec<_> = id.iter().map(|byte| format!("%{byte:02X}")).collect();
        let id = id.concat();
        format!("pkcs11:token={};id={id};type=private", encoded(token))
    }

    /// Reads a `pkcs11:` URI strictly: known attributes, each at most once, no query.
    ///
    /// # Errors
    /// Names the first attribute that does not belong.
    pub fn parse(uri: &str) -> Result<Self, LocatorError> {
        let path = uri.strip_prefix("pkcs11:").ok_or(LocatorError::Scheme)?;
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        if let Some(query) = query {
            return Err(refused(name_of(query.split('&').next().unwrap_or_default())));
        }
        let mut values: [Option<Vec<u8>>; 7] = Default::default();
        for attribute in path.split(';') {
            let name = name_of(attribute);
            let (name, value) =
                NAMES.into_iter().zip(&mut values).find(|(known, _)| *known == name).ok_or_else(|| refused(name))?;
            let read = decode(name, attribute.split_once('=').map_or("", |(_, value)| value))?;
            if value.replace(read).is_some() {
                return Err(LocatorError::Repeated(name));
            }
        }
        let [token, serial, manufacturer, model, object, id, class] = values;
        if class.is_some_and(|class| class != b"private") {
            return Err(LocatorError::Type);
        }
        if object.is_none() && id.is_none() {
            return Err(LocatorError::NoKey);
        }
        Ok(Self {
            uri: uri.to_owned(),
            token: text("token", token)?,
            serial: text("serial", serial)?,
            manufacturer: text("manufacturer", manufacturer)?,
            model: text("model", model)?,
            object: text("object", object)?,
            id,
        })
    }

    /// The token's label.
    #[must_use]
    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// The token's serial number.
    #[must_use]
    pub fn serial(&self) -> Option<&str> {
        self.serial.as_deref()
    }

    /// The token's manufacturer.
    #[must_use]
    pub fn manufacturer(&self) -> Option<&str> {
        self.manufacturer.as_deref()
    }

    /// The token's model.
    #[must_use]
    pub fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    /// The key's label (`CKA_LABEL`).
    #[must_use]
    pub fn object(&self) -> Option<&str> {
        self.object.as_deref()
    }

    /// The key's id (`CKA_ID`).
    #[must_use]
    pub fn id(&self) -> Option<&[u8]> {
        self.id.as_deref()
    }
}

impl fmt::Display for Locator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

/// The attributes, in the order in which `parse` takes them apart.
const NAMES: [&str; 7] = ["token", "serial", "manufacturer", "model", "object", "id", "type"];

fn name_of(attribute: &str) -> &str {
    attribute.split_once('=').map_or(attribute, |(name, _)| name)
}

fn refused(name: &str) -> LocatorError {
    match name {
        "pin-value" | "pin-source" | "module-path" | "module-name" => LocatorError::Config(name.to_owned()),
        _ => LocatorError::Unknown(name.to_owned()),
    }
}

fn text(name: &'static str, value: Option<Vec<u8>>) -> Result<Option<String>, LocatorError> {
    value.map(String::from_utf8).transpose().map_err(|_| LocatorError::Encoding(name))
}

fn decode(name: &'static str, value: &str) -> Result<Vec<u8>, LocatorError> {
    let mut read = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let (byte, after) = if first == b'%' { escaped(after) } else { plain(first).map(|byte| (byte, after)) }
            .ok_or(LocatorError::Encoding(name))?;
        read.push(byte);
        rest = after;
    }
    if read.is_empty() { Err(LocatorError::Empty(name)) } else { Ok(read) }
}

fn escaped(after: &[u8]) -> Option<(u8, &[u8])> {
    let (digits, after) = after.split_first_chunk::<2>()?;
    let mut byte = [0];
    hex::decode_to_slice(digits, &mut byte).ok()?;
    Some((u8::from_be_bytes(byte), after))
}

/// A byte that RFC 7512 lets stand for itself in a path: `unreserved`, `pk11-res-avail` and `&`.
fn plain(byte: u8) -> Option<u8> {
    (byte.is_ascii_alphanumeric() || b"-._~:[]@!$'()*+,=&".contains(&byte)).then_some(byte)
}

/// Percent-encodes all but RFC 3986's unreserved characters.
fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_uri_reads_back() {
        let locator = Locator::parse(&Locator::uri_of("my token; ü", "quote:1")).unwrap();
        assert_eq!((locator.token(), locator.object()), (Some("my token; ü"), Some("quote:1")));
    }

    #[test]
    fn a_locator_names_token_and_key() {
        let locator = Locator::parse(
            "pkcs11:token=The%20Quotes;serial=0a1b;manufacturer=SoftHSM%20project;model=v2;object=quote-signing-2026-06;id=%00%ffz;type=private",
        )
        .unwrap();
        assert_eq!(locator.token(), Some("The Quotes"));
        assert_eq!(locator.serial(), Some("0a1b"));
        assert_eq!(locator.manufacturer(), Some("SoftHSM project"));
        assert_eq!(locator.model(), Some("v2"));
        assert_eq!(locator.object(), Some("quote-signing-2026-06"));
        assert_eq!(locator.id(), Some([0x00, 0xff, b'z'].as_slice()));
        assert!(Locator::parse("pkcs11:id=%01").is_ok());
        assert!(Locator::parse("pkcs11:object=a%3Bb").is_ok_and(|locator| locator.object() == Some("a;b")));
    }

    #[test]
    fn what_does_not_belong_is_refused_by_name() {
        let config = |name: &str| LocatorError::Config(name.to_owned());
        let unknown = |name: &str| LocatorError::Unknown(name.to_owned());
        for (uri, error) in [
            ("", LocatorError::Scheme),
            ("PKCS11:object=a", LocatorError::Scheme),
            ("https://a.example", LocatorError::Scheme),
            ("pkcs11:", unknown("")),
            ("pkcs11:object=a;", unknown("")),
            ("pkcs11:object=a?pin-value=1234", config("pin-value")),
            ("pkcs11:object=a;pin-value=1234", config("pin-value")),
            ("pkcs11:object=a?pin-source=file:/pin", config("pin-source")),
            ("pkcs11:object=a?module-path=/m.so", config("module-path")),
            ("pkcs11:object=a?", unknown("")),
            ("pkcs11:object=a;slot-id=1", unknown("slot-id")),
            ("pkcs11:object=a;Token=b", unknown("Token")),
            ("pkcs11:object=a;object=a", LocatorError::Repeated("object")),
            ("pkcs11:object=", LocatorError::Empty("object")),
            ("pkcs11:object", LocatorError::Empty("object")),
            ("pkcs11:object=a b", LocatorError::Encoding("object")),
            ("pkcs11:object=a%", LocatorError::Encoding("object")),
            ("pkcs11:object=a%4", LocatorError::Encoding("object")),
            ("pkcs11:object=a%+4", LocatorError::Encoding("object")),
            ("pkcs11:object=%ff", LocatorError::Encoding("object")),
            ("pkcs11:object=a/b", LocatorError::Encoding("object")),
            ("pkcs11:object=a;type=public", LocatorError::Type),
            ("pkcs11:token=a;type=private", LocatorError::NoKey),
        ] {
            assert_eq!(Locator::parse(uri), Err(error), "{uri}");
        }
    }
}
