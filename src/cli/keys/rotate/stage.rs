//! The change of a bundle that a rotation asks for, made beside the bundle for people to review, and checked.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use toml_edit::{ArrayOfTables, DocumentMut, InlineTable, Item, Table, Value, value};

use crate::{
    clock::{Clock as _, SystemClock, UtcTime},
    control::keeps_keys,
    disk,
    domain::Kid,
    policy::{Bundle, Files, files, timeline::TimedKey},
    published::Standings,
    review::{cases, diff::diff},
    signer::provision::Provisioned,
};

use super::super::Failure;

const DAY: Duration = Duration::from_hours(24);

/// A bundle and the change that is made to it.
pub(super) struct Stage<'b> {
    pub dir: &'b Path,
    pub bundle: &'b Bundle,
    files: Files,
    policy: DocumentMut,
}

/// The new key's place in time.
pub(super) struct Plan {
    pub publish_at: UtcTime,
    pub sign_from: UtcTime,
    /// How long it signs.
    pub signs_for: Duration,
    /// How long the key before it may still sign, so that nothing depends on one instant.
    pub overlap: Duration,
    /// Why there is no time to wait for caches.
    pub emergency: Option<String>,
}

impl<'b> Stage<'b> {
    pub fn new(dir: &'b Path, bundle: &'b Bundle) -> Result<Self, Failure> {
        let files = files::read(dir).map_err(|_| Failure::unfit(format!("{}: cannot be read again", dir.display())))?;
        let text = files.get("policy.toml").and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default();
        let policy = text.parse().map_err(|fault| Failure::unfit(format!("policy.toml: {fault}")))?;
        Ok(Self { dir, bundle, files, policy })
    }

    /// Adds the new key, and lets the one before it end after it.
    pub fn add(&mut self, key: &Provisioned, partner: &str, signer: &str, plan: &Plan, old: Option<&TimedKey>) {
        let kid = key.public.kid();
        self.files.insert(format!("keys/{kid}.jwk.json"), format!("{:#}\n", key.public.to_jwk()).into_bytes());
        let retirement = self.bundle.validity.retirement();
        let sign_until = plan.sign_from.plus(plan.signs_for);
        let mut entry = Table::new();
        set(&mut entry, "kid", value(kid.as_str()));
        set(&mut entry, "partner", value(partner));
        set(&mut entry, "signer", value(signer));
        set(&mut entry, "locator", value(&key.locator));
        set(&mut entry, "publish_at", time(plan.publish_at));
        set(&mut entry, "sign_from", time(plan.sign_from));
        set(&mut entry, "sign_until", time(sign_until));
        set(&mut entry, "retire_at", time(whole_day_after(sign_until.plus(retirement))));
        if let Some(why) = &plan.emergency {
            set(&mut entry, "emergency", value(why));
        }
        entry.decor_mut().set_prefix("\n");
        if let Some(keys) = self.keys() {
            keys.push(entry);
        }
        let ends = plan.sign_from.plus(plan.overlap);
        // What has passed cannot be moved: the old one has ended by itself.
        if let (Some(old), None) = (old.filter(|old| plan.publish_at < old.sign_until), &plan.emergency)
            && let Some(entry) = self.key(&old.kid)
        {
            set(entry, "sign_until", time(ends));
            set(entry, "retire_at", time(whole_day_after(ends.plus(retirement))));
        }
    }

    /// Writes that the operator has confirmed `kid`.
    pub fn confirm(&mut self, kid: &Kid, at: UtcTime, reference: &str) {
        let mut confirmed = InlineTable::new();
        let at = at.to_string().parse::<Value>().unwrap_or_else(|_| at.to_string().into());
        confirmed.insert("at", at);
        confirmed.insert("ref", reference.into());
        if let Some(entry) = self.key(kid) {
            set(entry, "confirmed", value(confirmed));
        }
    }

    fn keys(&mut self) -> Option<&mut ArrayOfTables> {
        self.policy.entry("keys").or_insert(Item::ArrayOfTables(ArrayOfTables::new())).as_array_of_tables_mut()
    }

    fn key(&mut self, kid: &Kid) -> Option<&mut Table> {
        self.keys()?.iter_mut().find(|entry| entry.get("kid").and_then(Item::as_str) == Some(kid.as_str()))
    }

    /// Checks the change as a gateway would, and says what it changes.
    pub fn check(&mut self) -> Result<Vec<String>, Failure> {
        let serial = i64::try_from(self.bundle.serial.saturating_add(1)).unwrap_or(i64::MAX);
        set(self.policy.as_table_mut(), "serial", value(serial));
        let before = files::read(self.dir).map_err(|_| Failure::unfit("the bundle cannot be read again"))?;
        self.files.insert("policy.toml".to_owned(), self.policy.to_string().into_bytes());
        let after = Bundle::check(&self.files).map_err(|problems| {
            let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
            Failure::failed(format!("the change would not be taken:\n{}", lines.join("\n")))
        })?;
        let refused = keeps_keys(&after, self.bundle, &Standings::default(), SystemClock.now());
        if !refused.is_empty() {
            return Err(Failure::failed(format!("no reload would take the change:\n{}", refused.join("\n"))));
        }
        let changes = diff((self.bundle, &before), (&after, &self.files));
        Ok(changes.iter().map(ToString::to_string).collect())
    }

    /// Writes the whole bundle with the change to `out`, which must not be there.
    pub fn write(&self, out: &Path) -> Result<(), Failure> {
        if out.exists() {
            return Err(Failure::unfit(format!("{}: is there already; review or remove it", out.display())));
        }
        for (name, bytes) in &self.files {
            put(&out.join(name), bytes)?;
        }
        // What the bundle must do is no part of it, and is tried on the change before that is put in place.
        put_all(&self.dir.join(cases::FOLDER), &out.join(cases::FOLDER))
    }

    /// Writes the change into the bundle itself, what refers to a file after the file. A bundle that is another than the
    /// one that the change was made to is left alone: making a key takes minutes, and others change bundles too.
    pub fn apply(&self) -> Result<(), Failure> {
        let named = |fault: io::Error| Failure::failed(format!("{}: cannot be locked: {fault}", self.dir.display()));
        let dir = File::open(self.dir).map_err(named)?;
        // Held until the change is in place, so that of two commands one finds what the other wrote.
        dir.lock().map_err(named)?;
        let is_as_before = files::read(self.dir).is_ok_and(|now| files::digest(&now) == self.bundle.digest);
        if !is_as_before {
            return Err(Failure::failed(format!(
                "{}: the bundle changed meanwhile, and was left as it is; run the command again with another --kid",
                self.dir.display()
            )));
        }
        let is_new = |name: &&String| !self.dir.join(name).exists();
        for name in self.files.keys().filter(is_new).chain([&"policy.toml".to_owned()]) {
            if let Some(bytes) = self.files.get(name) {
                put(&self.dir.join(name), bytes)?;
            }
        }
        let digest = self.dir.join(crate::policy::DIGEST_FILE);
        if digest.exists() {
            put(&digest, format!("{}\n", files::digest(&self.files)).as_bytes())?;
        }
        Ok(())
    }
}

/// Writes all that is in the folder `from`, which need not be there, to `to`.
fn put_all(from: &Path, to: &Path) -> Result<(), Failure> {
    let named = |fault: io::Error| Failure::failed(format!("{}: {fault}", from.display()));
    let entries = match fs::read_dir(from) {
        Err(fault) if fault.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(named)?,
    };
    for entry in entries {
        let entry = entry.map_err(named)?;
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            put_all(&path, &to)?;
        } else {
            put(&to, &fs::read(&path).map_err(named)?)?;
        }
    }
    Ok(())
}

fn put(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let named = |fault: io::Error| Failure::failed(format!("{}: {fault}", path.display()));
    fs::create_dir_all(disk::folder_of(path)).map_err(named)?;
    disk::put(path, bytes).map_err(named)
}

/// Sets a field; comments that stand before it stay.
fn set(table: &mut Table, field: &str, item: Item) {
    match table.get_mut(field) {
        Some(present) => *present = item,
        None => drop(table.insert(field, item)),
    }
}

fn time(at: UtcTime) -> Item {
    value(at.to_string().parse::<Value>().unwrap_or_else(|_| at.to_string().into()))
}

/// Midnight after `at`: a time that people can read.
fn whole_day_after(at: UtcTime) -> UtcTime {
    let day = i64::try_from(DAY.as_millis()).unwrap_or(i64::MAX);
    UtcTime::from_millis(at.millis().div_euclid(day).saturating_add(1).saturating_mul(day))
}

/// Where a change is written when nobody says.
pub(super) fn beside(dir: &Path) -> PathBuf {
    dir.with_added_extension("next")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_that_changed_meanwhile_is_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        put_all(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/policy")), dir.path()).unwrap();
        let (bundle, file) = (Bundle::load(dir.path()).unwrap(), dir.path().join("policy.toml"));
        let mut stage = Stage::new(dir.path(), &bundle).unwrap();
        stage.check().unwrap();
        let changed = fs::read_to_string(&file).unwrap() + "# by somebody else\n";
        fs::write(&file, &changed).unwrap();
        let refused = stage.apply().unwrap_err();
        assert!(refused.text.contains("the bundle changed meanwhile"), "{}", refused.text);
        assert_eq!(fs::read_to_string(&file).unwrap(), changed);

        let bundle = Bundle::load(dir.path()).unwrap();
        let [mut first, mut second] = [(); 2].map(|()| Stage::new(dir.path(), &bundle).unwrap());
        first.check().unwrap();
        second.check().unwrap();
        first.apply().unwrap();
        assert!(second.apply().is_err(), "of two commands at once one finds what the other wrote");
        assert_eq!(Bundle::load(dir.path()).unwrap().serial, bundle.serial + 1);
    }
}
