//! `quotesign serve`.

use std::time::Duration;

use clap::Args;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{config::Config, gateway::Gateway, telemetry};

use super::{ConfigPath, Failure};

#[derive(Debug, Args)]
pub(super) struct Serve {
    #[command(flatten)]
    path: ConfigPath,
}

impl Serve {
    pub(super) fn run(self) -> Result<(), Failure> {
        serve(self.path.load()?, |_| {})
    }
}

/// Serves until told to end. `ready` is called once every address is bound.
pub(super) fn serve(config: Config, ready: impl FnOnce(&Gateway)) -> Result<(), Failure> {
    let _written_at_the_end = telemetry::start_logging(&config.log).map_err(Failure::unfit)?;
    telemetry::count_panics();
    refuse_core_dumps()?;
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::failed)?;
    let served = runtime.block_on(async {
        let _failpoints = cfg!(feature = "failpoints").then(fail::FailScenario::setup);
        if cfg!(feature = "failpoints") {
            tracing::warn!("this build has failpoints and is for tests alone");
        }
        let gateway = Gateway::prepare(config).await.map_err(Failure::unfit)?;
        ready(&gateway);
        gateway.run().await.map_err(Failure::failed)
    });
    // A look-up of a name, or a file that does not come, is waited for no longer.
    runtime.shutdown_timeout(Duration::from_secs(1));
    served
}

/// Raises the limit on open files as far as the system lets it: each connection is one.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(fault) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%fault, "the limit on open files cannot be raised");
    }
}

/// A core dump would hold PINs and quotes.
pub(super) fn refuse_core_dumps() -> Result<(), Failure> {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    setrlimit(Resource::Core, none)
        .map_err(|fault| Failure::failed(format!("core dumps cannot be turned off: {fault}")))
}
