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
    /// Whether it is about what stands on one line.
    fn is_of_a_line(&self) -> bool {
        self.line.is_some() && !self.field.is_empty() && !self.why.starts_with("missing field")
    }

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

/// As [`read`], and tells all that does not fit as far as one fault does not hide another: the line at fault is left out,
/// and what remains is read again.
///
/// # Errors
/// The fields that do not fit, in the order of their lines.
pub fn read_all<T: DeserializeOwned>(text: &str) -> Result<T, Vec<Misfit>> {
    let mut found = match read(text) {
        Ok(read) => return Ok(read),
        Err(first) => vec![first],
    };
    let mut left: Vec<&str> = text.lines().collect();
    while found.len() < MISFITS_MAX {
        let Some(last) = found.last().filter(|misfit| misfit.is_of_a_line()) else { break };
        // Without its header a section would be part of the one before.
        let line = last.line.and_then(|line| left.get_mut(line - 1)).filter(|line| !line.starts_with('['));
        let Some(line) = line else { break };
        *line = "";
        match read::<T>(&left.join("\n")) {
            // What is missing may be what was left out, and what is no TOML may be its rest.
            Err(next) if next.is_of_a_line() => found.push(next),
            _ => break,
        }
    }
    found.sort_by_key(|misfit| misfit.line);
    Err(found)
}

/// As many are told at once.
const MISFITS_MAX: usize = 20;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Shape {
        #[serde(rename = "number")]
        _number: u32,
        #[serde(rename = "word", default)]
        _word: Option<String>,
    }

    #[test]
    fn each_line_that_does_not_fit_is_told() {
        let told = |text: &str| -> Vec<(usize, String)> {
            let faults = read_all::<Shape>(text).unwrap_err();
            faults.into_iter().map(|misfit| (misfit.line.unwrap_or(0), misfit.field)).collect()
        };
        assert!(read_all::<Shape>("number = 1").is_ok());
        let three = [(2, "wrod".to_owned()), (3, "word".to_owned()), (5, "x".to_owned())];
        assert_eq!(told("number = 1\nwrod = 'a'\nword = 7\n\nx = []\n"), three);
        // No TOML is told alone, and so is what goes on over lines.
        assert_eq!(told("number = -1\nx = 1\n"), [(1, "number".to_owned()), (2, "x".to_owned())]);
        assert_eq!(told("number = = 1\nx = 1\n"), [(1, String::new())]);
        assert_eq!(told("x = [1,\n2]\nnumber = 1\n"), [(1, "x".to_owned())]);
    }
}
