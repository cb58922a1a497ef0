//! Reads a TOML document into a type, and where it does not fit says which field, on which line, and why.

use serde::de::DeserializeOwned;

/// Where and why a document does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misfit {
    /// The path of the field, such as `keys[1].kid`; empty where the document is no TOML.
    pub field: String,
    /// The line, from 1, where it is known.
    pub line: Option<usize>,
    /// Why, in one line.
    pub why: String,
}

impl Misfit {
    /// In a line, of the file of this name.
    #[must_use]
    pub fn of_file(&self, name: &str) -> String {
        let line = self.line.map(|line| format!(":{line}")).unwrap_or_default();
        let field = if self.field.is_empty() { String::new() } else { format!(" `{}`:", self.field) };
        format!("{name}{line}:{field} {}", self.why)
    }
}

/// Reads `text` as a `T`. Unknown fields are refused where `T` denies them.
///
/// # Errors
/// The first field that does not fit.
pub fn read<T: DeserializeOwned>(text: &str) -> Result<T, Misfit> {
    let document = toml::Deserializer::parse(text).map_err(|fault| misfit(text, String::new(), &fault))?;
    serde_path_to_error::deserialize(document).map_err(|fault| {
        let field = match fault.path().to_string() {
            root if root == "." => String::new(),
            path => path,
        };
        misfit(text, field, fault.inner())
    })
}

fn misfit(text: &str, field: String, fault: &toml::de::Error) -> Misfit {
    let line = fault.span().and_then(|span| text.get(..span.start)).map(|before| before.matches('\n').count() + 1);
    Misfit { field, line, why: plain(fault.message()) }
}

/// One line, without the names that Rust has for numbers.
fn plain(why: &str) -> String {
    let mut why = why.replace('\n', "; ").replace(" as i128", "");
    for number in ["expected usize", "expected u64", "expected u32"] {
        why = why.replace(number, "expected a whole number that is not negative");
    }
    let why = why.replace("expected a nonzero u32", "expected a whole number above zero");
    why.replace("invalid socket address syntax", "not an address and port; write it as `127.0.0.1:8443`")
}
