//! Environment variables over the config file: `QUOTESIGN__GRPC__LISTEN` sets `grpc.listen`. Two underscores follow
//! the name, since an orchestrator makes variables such as `QUOTESIGN_PORT` of its own for a service of that name.

use toml_edit::{DocumentMut, Item, Value};

const PREFIX: &str = "QUOTESIGN__";

/// The document with every override applied. A value is read as TOML where it is TOML, else as a string.
pub(super) fn apply(text: &str, vars: impl Iterator<Item = (String, String)>) -> Result<String, String> {
    let mut document: DocumentMut = match text.parse() {
        Ok(document) => document,
        // The strict reader says it better, with its line.
        Err(_) => return Ok(text.to_owned()),
    };
    let mut changed = false;
    for (name, value) in vars {
        let Some(path) = name.strip_prefix(PREFIX) else { continue };
        let path = path.to_ascii_lowercase();
        let parts: Vec<&str> = path.split("__").collect();
        set(document.as_item_mut(), &parts, &value).ok_or_else(|| {
            format!("the environment variable `{name}` names no field that can be set; lists such as signers are set in the file")
        })?;
        changed = true;
    }
    Ok(if changed { document.to_string() } else { text.to_owned() })
}

/// The variable that sets this field.
pub(super) fn variable(field: &str) -> String {
    format!("{PREFIX}{}", field.replace('.', "__").to_ascii_uppercase())
}

fn set(item: &mut Item, path: &[&str], value: &str) -> Option<()> {
    let (head, rest) = path.split_first().filter(|(head, _)| !head.is_empty())?;
    let table = item.as_table_like_mut()?;
    if rest.is_empty() {
        let value = value.parse::<Value>().unwrap_or_else(|_| Value::from(value));
        table.insert(head, Item::Value(value));
        return Some(());
    }
    if !table.contains_key(head) {
        table.insert(head, Item::Table(toml_edit::Table::new()));
    }
    set(table.get_mut(head)?, rest, value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: &str, value: &str) -> Result<String, String> {
        apply("a = 1\n[b]\nc = \"x\"\n", std::iter::once((name.to_owned(), value.to_owned())))
    }

    #[test]
    fn variables_set_fields_by_their_path() {
        assert_eq!(with("QUOTESIGN__A", "2").unwrap(), "a = 2\n[b]\nc = \"x\"\n");
        assert!(with("QUOTESIGN__B__C", "127.0.0.1:1").unwrap().contains("c = \"127.0.0.1:1\""));
        assert!(with("QUOTESIGN__D__E", "true").unwrap().contains("[d]\ne = true"));
        assert_eq!(with("OTHER", "2").unwrap(), "a = 1\n[b]\nc = \"x\"\n");
        assert!(with("QUOTESIGN__A__B", "2").is_err());
        assert_eq!(with("QUOTESIGN_PORT", "tcp://10.0.0.1:443").unwrap(), "a = 1\n[b]\nc = \"x\"\n");
    }
}
