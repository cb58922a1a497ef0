//! The headers that a collector wants, from a file: they are secrets, and are never told.

use std::{fs, path::PathBuf, sync::Arc};

use arc_swap::ArcSwap;
use http::{HeaderMap, HeaderName, HeaderValue};
use secrecy::{ExposeSecret as _, SecretString};

/// Headers, and where they are from.
#[derive(Debug, Default)]
pub struct Headers {
    file: Option<PathBuf>,
    kept: ArcSwap<HeaderMap>,
}

impl Headers {
    /// Those of a file; none where there is no file.
    ///
    /// # Errors
    /// Where it cannot be read, or which of its lines is no header.
    pub fn read(file: Option<PathBuf>) -> Result<Self, String> {
        let headers = Self { file, kept: ArcSwap::default() };
        headers.again().map(|()| headers)
    }

    /// Reads the file again.
    pub(super) fn again(&self) -> Result<(), String> {
        let Some(file) = &self.file else { return Ok(()) };
        let fault = |fault: &dyn std::fmt::Display| format!("`otlp.headers_file` = `{}`: {fault}", file.display());
        let text = SecretString::from(fs::read_to_string(file).map_err(|error| fault(&error))?);
        let headers = parsed(text.expose_secret()).map_err(|why| fault(&why))?;
        self.kept.store(Arc::new(headers));
        Ok(())
    }

    pub(super) fn get(&self) -> HeaderMap {
        HeaderMap::clone(&self.kept.load())
    }
}

/// `name: value` lines, empty ones aside.
fn parsed(text: &str) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let fault = || format!("line {} is no header; write `name: value`", at.saturating_add(1));
        let (name, value) = line.split_once(':').ok_or_else(fault)?;
        let name = HeaderName::try_from(name.trim()).map_err(|_| fault())?;
        let mut value = HeaderValue::try_from(value.trim()).map_err(|_| fault())?;
        value.set_sensitive(true);
        headers.append(name, value);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_lines_and_never_told() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("headers");
        fs::write(&file, "Authorization: Bearer not-a-real-one\n\nx-scope: a\n").unwrap();
        let headers = Headers::read(Some(file.clone())).unwrap();
        assert_eq!((headers.get().len(), &headers.get()["x-scope"]), (2, &HeaderValue::from_static("a")));
        assert!(!format!("{headers:?}").contains("not-a-real-one"));
        // One that is being written leaves what was there.
        fs::write(&file, "a: b\nsecret").unwrap();
        let fault = headers.again().unwrap_err();
        assert!(fault.ends_with("line 2 is no header; write `name: value`") && headers.get().len() == 2, "{fault}");
        fs::write(&file, "a: b").unwrap();
        headers.again().unwrap();
        assert_eq!(headers.get().len(), 1);
    }
}
