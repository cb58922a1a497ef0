//! A collector that takes everything and keeps nothing, so that a gateway has one to send to. It runs on a thread of its own, whose
//! processor time is told, since it is none of the clients'.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    thread,
    time::Duration,
};

use axum::Router;

use super::host::used;

/// Where it listens, and its thread.
pub(super) struct Collector {
    address: SocketAddr,
    /// Its directory in `/proc`.
    thread: PathBuf,
}

impl Collector {
    /// Starts one; it lasts for as long as the process.
    pub(super) fn start() -> Result<Self, String> {
        let said = |fault: std::io::Error| format!("the benchmark's own collector: {fault}");
        let listener = TcpListener::bind("127.0.0.1:0").map_err(said)?;
        listener.set_nonblocking(true).map_err(said)?;
        let address = listener.local_addr().map_err(said)?;
        let (tell, told) = std::sync::mpsc::channel();
        let serve = move || {
            let _gone = tell.send(fs::read_link("/proc/thread-self"));
            let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
            runtime.block_on(async {
                let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
                // The body is read, as a collector would; an answer without a field is one that took everything.
                let all = Router::new().fallback(|_body: axum::body::Bytes| async {
                    ([(http::header::CONTENT_TYPE, "application/x-protobuf")], ())
                });
                let _until_the_process_ends = axum::serve(listener, all).await;
            });
        };
        thread::Builder::new().name("collector".to_owned()).spawn(serve).map_err(said)?;
        let thread = told.recv().map_err(|fault| fault.to_string())?.map_err(said)?;
        Ok(Self { address, thread: PathBuf::from("/proc").join(thread) })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it has used.
    pub(super) fn processor_time(&self) -> Duration {
        used(&self.thread.join("stat"))
    }
}
