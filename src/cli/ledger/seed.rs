//! `quotesign ledger seed`: a sequence's floor, with no gateway at the ledger.

use clap::Args;

use crate::{
    clock::{Clock as _, SystemClock},
    domain::Corridor,
    ledger::{self, Done, Op, asked},
};

use super::{
    super::{ConfigPath, Failure, out::say},
    act,
};

#[derive(Debug, Args)]
pub(in crate::cli) struct Seed {
    #[command(flatten)]
    path: ConfigPath,
    /// The partner.
    #[arg(long)]
    partner: String,
    /// The corridor, where policy tells the partner's sequences apart by it.
    #[arg(long)]
    corridor: Option<String>,
    /// The last number that counts as taken: the first quote must carry a greater one.
    #[arg(long)]
    floor: u64,
    /// For the record: why.
    #[arg(long, value_parser = asked::reason_of)]
    reason: String,
}

impl Seed {
    pub(in crate::cli) fn run(self) -> Result<(), Failure> {
        let config = self.path.load()?;
        let bundle = act::policy(&config)?;
        let id = self.partner.parse().map_err(|fault| Failure::unfit(format!("--partner: {fault}")))?;
        let partner = bundle.partner(&id).ok_or_else(|| Failure::unfit(format!("--partner: policy has no `{id}`")))?;
        let corridor: Option<Corridor> = self
            .corridor
            .as_deref()
            .map(str::parse)
            .transpose()
            .map_err(|fault| Failure::unfit(format!("--corridor: {fault}")))?;
        if partner.numbers_by_corridor() != corridor.is_some() {
            let how = if corridor.is_some() {
                "one sequence for all corridors; leave it out"
            } else {
                "one for each; name it"
            };
            return Err(Failure::unfit(format!("--corridor: this partner has {how}")));
        }
        let floor = asked::floor_of(self.floor).map_err(|fault| Failure::unfit(format!("--floor {fault}")))?;
        let (scope, reason, now) = (bundle.scope(partner, corridor.as_ref()), self.reason, SystemClock.now());
        let done = act::alone(&config, |context| Op::Seed(ledger::Seed { scope, floor, reason, context, now }))?;
        let Done::Seeded(before, record) = done else {
            return Err(Failure::failed("the ledger answered another operation"));
        };
        match before {
            None => say!("the sequence was created with the floor {floor}"),
            Some(before) => say!("the floor was raised from {before} to {floor}"),
        }
        say!("audit record {record}");
        Ok(())
    }
}
