//! `quotesign audit`: reads the journal of a ledger, also while the gateway writes it, and what was exported of it.

use std::{
    collections::{BTreeSet, VecDeque},
    fs::OpenOptions,
    io::{self, BufWriter, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand, builder::PossibleValuesParser};
use serde_json::Value;
use uuid::Uuid;

use crate::{
    audit::{Event, Record},
    clock::UtcTime,
    config,
    domain::{Caller, CorrelationId, Kid, PartnerId, QuoteId},
    ledger::Journal,
    review::{
        exported,
        journal::{Summary, Wanted},
    },
};

use super::{
    ConfigPath, Failure, Format,
    noted::{Noted, filter},
    out,
    out::say,
};

mod prove;
mod verify;

pub(super) use verify::verified;

#[derive(Debug, Subcommand)]
pub(super) enum AuditCommand {
    /// Print one record by its id.
    Show(Show),
    /// Print the newest records, a JSON line each.
    Tail(Tail),
    /// Write the journal with its hash chain, so that it can be verified anywhere; or, with a filter, the records alone.
    Export(Export),
    /// Tell what the records come to: how many of what, and every act.
    Summary(Summarise),
    /// Recompute the whole hash chain of the ledger, or of an export, and say up to where it holds.
    Verify(verify::Verify),
    /// List the records that no collector would take: lane, index, what it said. They are in the journal.
    Quarantine(Quarantine),
    /// Print the newest signed checkpoint, to be kept where nobody who can change the ledger can change it.
    Checkpoint(prove::Newest),
    /// Write a proof that a record is in the journal, for a holder of a checkpoint, which tells of no other record.
    Prove(prove::Prove),
    /// Hold such a proof against the key that signs checkpoints, offline.
    VerifyProof(prove::VerifyProof),
}

#[derive(Debug, Args)]
pub(super) struct Show {
    #[command(flatten)]
    path: ConfigPath,
    /// The record's id, as an answer of the gateway gave it.
    id: Uuid,
}

#[derive(Debug, Args)]
pub(super) struct Tail {
    #[command(flatten)]
    path: ConfigPath,
    /// How many.
    #[arg(short = 'n', long, default_value_t = 10)]
    count: u32,
    #[command(flatten)]
    filter: Filter,
}

#[derive(Debug, Args)]
pub(super) struct Export {
    #[command(flatten)]
    path: ConfigPath,
    /// Write it here, never over a file that is there; to standard output where it is not given.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    filter: Filter,
}

#[derive(Debug, Args)]
pub(super) struct Summarise {
    #[command(flatten)]
    path: ConfigPath,
    /// How to print.
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    #[command(flatten)]
    filter: Filter,
}

#[derive(Debug, Args)]
pub(super) struct Quarantine {
    #[command(flatten)]
    path: ConfigPath,
}

/// Which records; all of what is given must hold.
#[derive(Debug, Args)]
struct Filter {
    /// Of this quote.
    #[arg(long, value_name = "ID")]
    quote: Option<QuoteId>,
    /// Of this partner, its halts included.
    #[arg(long, value_name = "ID")]
    partner: Option<PartnerId>,
    /// Of what this caller asked for, and of its suspension.
    #[arg(long, value_name = "ID")]
    caller: Option<Caller>,
    /// About this key.
    #[arg(long)]
    kid: Option<Kid>,
    /// Of this event.
    #[arg(long, value_parser = PossibleValuesParser::new(Event::ALL.iter().map(|event| event.name())), hide_possible_values = true)]
    event: Option<String>,
    /// Of this call.
    #[arg(long, value_name = "ID")]
    correlation_id: Option<CorrelationId>,
    /// Of quotes for this customer of --partner, by the subscription reference; needs the key of `audit.reference_key`.
    #[arg(long, value_name = "REFERENCE", requires = "partner")]
    customer: Option<String>,
    /// A key of customers' references that was in use before the config's; may be given again.
    #[arg(long, value_name = "FILE", requires = "customer")]
    earlier_key: Vec<PathBuf>,
    /// Made then or later: RFC 3339, UTC.
    #[arg(long, value_name = "TIME", value_parser = UtcTime::parse)]
    since: Option<UtcTime>,
    /// Made before.
    #[arg(long, value_name = "TIME", value_parser = UtcTime::parse)]
    until: Option<UtcTime>,
}

impl Filter {
    /// What a note of the read says of it: a customer's reference is nobody's to know.
    fn told(&self) -> Vec<String> {
        let Self { quote, partner, caller, kid, event, correlation_id, customer, earlier_key: _, since, until } = self;
        let told = [
            filter("quote", quote.as_ref()),
            filter("partner", partner.as_ref()),
            filter("caller", caller.as_ref()),
            filter("kid", kid.as_ref()),
            filter("event", event.as_ref()),
            filter("correlation-id", correlation_id.as_ref()),
            customer.as_ref().map(|_| "customer".to_owned()),
            filter("since", since.as_ref()),
            filter("until", until.as_ref()),
        ];
        told.into_iter().flatten().collect()
    }

    fn wanted(self, path: &ConfigPath) -> Result<Wanted, Failure> {
        let customer_refs = self.customer_refs(path)?;
        let Self { quote: quote_id, partner, caller, kid, event, correlation_id, since, until, .. } = self;
        Ok(Wanted { quote_id, partner, caller, kid, event, correlation_id, customer_refs, since, until })
    }

    /// What records call the customer that is asked for, under each key that is known.
    fn customer_refs(&self, path: &ConfigPath) -> Result<Vec<String>, Failure> {
        let (Some(reference), Some(partner)) = (&self.customer, &self.partner) else { return Ok(Vec::new()) };
        let mut keys: Vec<_> = path.load()?.reference_key().map_err(Failure::unfit)?.into_iter().collect();
        for file in &self.earlier_key {
            let fault = |fault| Failure::unfit(format!("--earlier-key {}: {fault}", file.display()));
            keys.push(config::reference_key(file).map_err(fault)?);
        }
        if keys.is_empty() {
            return Err(Failure::unfit("--customer: the config has no `audit.reference_key`"));
        }
        Ok(keys.iter().map(|key| key.of(partner.as_str(), reference)).collect())
    }
}

/// How many rows are read at once.
const PAGE: u32 = 1000;

impl AuditCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self {
            Self::Show(show) => show.run(),
            Self::Tail(tail) => tail.run(),
            Self::Export(export) => export.run(),
            Self::Summary(summary) => summary.run(),
            Self::Verify(verify) => verify.run(),
            Self::Quarantine(quarantine) => quarantine.run(),
            Self::Checkpoint(newest) => newest.run(),
            Self::Prove(prove) => prove.run(),
            Self::VerifyProof(verify) => verify.run(),
        }
    }
}

impl Quarantine {
    fn run(self) -> Result<(), Failure> {
        let noted = Noted::open(&self.path.load()?, "audit quarantine", Vec::new())?;
        for record in noted.journal()?.quarantined().map_err(Failure::failed)? {
            say!("{}\t{}\t{}", record.lane, record.index, record.why);
        }
        Ok(())
    }
}

impl Show {
    fn run(self) -> Result<(), Failure> {
        let ledger = Noted::open(&self.path.load()?, "audit show", vec![format!("record={}", self.id)])?;
        let journal = ledger.journal()?;
        let stored = journal.record(&self.id).map_err(Failure::failed)?;
        let stored = stored.map_or_else(|| Err(absent(&*journal, &self.id)), Ok)?;
        let record: Value = serde_json::from_slice(&stored.bytes).map_err(Failure::failed)?;
        say!("{record:#}");
        Ok(())
    }
}

impl Tail {
    fn run(self) -> Result<(), Failure> {
        let told = self.filter.told();
        let wanted = self.filter.wanted(&self.path)?;
        let ledger = Noted::open(&self.path.load()?, "audit tail", told)?;
        if wanted == Wanted::default() {
            for stored in ledger.journal()?.tail(self.count).map_err(Failure::failed)? {
                say!("{}", String::from_utf8_lossy(&stored.bytes));
            }
            return Ok(());
        }
        let count = usize::try_from(self.count).map_err(Failure::unfit)?;
        let mut newest = VecDeque::new();
        each(&ledger, &wanted, |record| {
            newest.push_back(record);
            newest.drain(..newest.len().saturating_sub(count));
            Ok(())
        })?;
        for record in newest {
            say!("{}", line(&record)?);
        }
        Ok(())
    }
}

impl Export {
    fn run(self) -> Result<(), Failure> {
        let told = self.filter.told();
        let wanted = self.filter.wanted(&self.path)?;
        let ledger = Noted::open(&self.path.load()?, "audit export", told)?;
        let put = |out: &mut dyn Write| {
            if wanted == Wanted::default() {
                return chained(&*ledger.journal()?, out);
            }
            each(&ledger, &wanted, |record| writeln!(out, "{}", line(&record)?).map_err(Failure::failed))
        };
        let Some(file) = self.out else {
            let mut out = BufWriter::new(out::Out);
            put(&mut out)?;
            return out.flush().map_err(Failure::failed);
        };
        into_file(&file, put)
    }
}

impl Summarise {
    fn run(self) -> Result<(), Failure> {
        let mut summary = Summary::default();
        let told = self.filter.told();
        let wanted = self.filter.wanted(&self.path)?;
        let ledger = Noted::open(&self.path.load()?, "audit summary", told)?;
        each(&ledger, &wanted, |record| {
            summary.take(&record);
            Ok(())
        })?;
        if !wanted.has_refusals() {
            summary.signed_percent = None;
        }
        match self.format {
            Format::Text => out::write(format_args!("{}", summary.text())),
            Format::Json => say!("{}", serde_json::to_string_pretty(&summary).map_err(Failure::failed)?),
        }
        Ok(())
    }
}

/// That the journal does not hold a record, and whether it may have.
fn absent(journal: &dyn Journal, id: &Uuid) -> Failure {
    match exported::pruned(journal) {
        Ok(pruned) => Failure::failed(format!("the journal holds no record {id}{pruned}")),
        Err(fault) => Failure::failed(fault),
    }
}

/// Every lane with its links, as it stands now.
fn chained(journal: &dyn Journal, out: &mut dyn Write) -> Result<(), Failure> {
    let lanes = journal.lanes().map_err(Failure::failed)?;
    for stretch in &lanes {
        let page = |from| {
            let page = journal.records(&stretch.lane, from, PAGE).map_err(io::Error::other)?;
            let is_whole = page.first().is_none_or(|first| first.index == from);
            if !is_whole && exported::pruned_since(journal, stretch).map_err(io::Error::other)?.is_some() {
                return Err(io::Error::other("the journal was pruned meanwhile: export it again"));
            }
            Ok(page)
        };
        exported::write(out, stretch, page).map_err(Failure::failed)?;
    }
    Ok(())
}

/// Writes a file for its owner alone; what could not be written whole is not left behind.
fn into_file(path: &Path, put: impl FnOnce(&mut dyn Write) -> Result<(), Failure>) -> Result<(), Failure> {
    let named = |fault: io::Error| Failure::failed(format!("{}: {fault}", path.display()));
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(named)?;
    let mut buffer = BufWriter::new(file);
    let written = put(&mut buffer)
        .and_then(|()| buffer.into_inner().map_err(|fault| named(fault.into_error())))
        .and_then(|file| file.sync_all().map_err(named));
    if written.is_err() {
        drop(std::fs::remove_file(path));
    }
    written
}

/// Gives every wanted record, by its id, which rises with time.
fn each(ledger: &Noted, wanted: &Wanted, mut give: impl FnMut(Record) -> Result<(), Failure>) -> Result<(), Failure> {
    let mut reads = ledger.reads()?;
    let (mut after, mut untried) = (wanted.after(), BTreeSet::new());
    loop {
        let page = reads.records_after(after, PAGE).map_err(Failure::failed)?;
        let Some(last) = page.last() else { break };
        after = last.id;
        untried.extend(page.iter().filter_map(|record| wanted.untried_key(record)).map(str::to_owned));
        for record in page.into_iter().filter(|record| wanted.is(record)) {
            give(record)?;
        }
    }
    if !untried.is_empty() {
        let keys = untried.into_iter().collect::<Vec<_>>().join(", ");
        out::warn(format_args!(
            "records tell customers under other keys as well, and may be of this one: {keys}; give those keys with --earlier-key"
        ));
    }
    Ok(())
}

fn line(record: &Record) -> Result<String, Failure> {
    serde_json::to_string(record).map_err(Failure::failed)
}
