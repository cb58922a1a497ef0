//! `quotesign policy calendar`.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use crate::{
    cli::{dev::write_private, out::say},
    review::calendar::{self, Window},
};

use super::{At, Dir, Failure, Format};

#[derive(Debug, Args)]
pub(in crate::cli) struct Calendar {
    #[command(flatten)]
    dir: Dir,
    #[command(flatten)]
    at: At,
    /// Draw it to this file as well, as an SVG that needs nothing but itself.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

impl Calendar {
    pub(super) fn run(self) -> Result<(), Failure> {
        let bundle = self.dir.load()?;
        let window = Window::of(&bundle, self.at.time()?);
        if let Some(path) = &self.svg {
            write_private(path, calendar::svg(&bundle, None, window).as_bytes())?;
        }
        match self.dir.format {
            Format::Text => say!("{}", calendar::text(&bundle, window)),
            Format::Json => {
                let partners = bundle.partners().map(|partner| {
                    let spans = bundle.timeline.spans(&partner.id, (window.from, window.until), |_| false);
                    let spans = spans.into_iter().map(|span| {
                        json!({
                            "from": span.from.to_string(),
                            "until": span.until.map(|until| until.to_string()),
                            "kid": span.key.map(|key| key.kid.to_string()),
                        })
                    });
                    json!({ "partner": partner.id, "spans": spans.collect::<Vec<_>>() })
                });
                say!("{:#}", json!({ "partners": partners.collect::<Vec<_>>() }));
            }
        }
        Ok(())
    }
}
