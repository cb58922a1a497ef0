//! How long each stage of the path took by the gateway's own metrics, from two looks at `/metrics`. These are times on the wall, with
//! all waiting in them, and none of the processor.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, body::Bytes};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

const PATIENCE: Duration = Duration::from_secs(5);
const BYTES_MAX: usize = 4 << 20;
const METRIC: &str = "quotesign_stage_duration_seconds_";

/// For each stage how often it ran and how many seconds that took.
pub(super) type Stages = BTreeMap<String, (u64, f64)>;

/// Status and body of a GET on the operations listener.
pub(super) async fn get(address: SocketAddr, path: &str) -> Result<(u16, String), String> {
    let ask = async {
        let stream = TcpStream::connect(address).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = Request::get(path).header(hyper::header::HOST, address.to_string());
        let response = sender.send_request(request.body(Empty::<Bytes>::new())?).await?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), BYTES_MAX).collect().await?.to_bytes();
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>((status, String::from_utf8_lossy(&body).into_owned()))
    };
    let got = timeout(PATIENCE, ask).await.unwrap_or_else(|_| Err("no answer in time".into()));
    got.map_err(|fault| format!("http://{address}{path}: {fault}"))
}

/// What the gateway counts now.
pub(super) async fn look(address: SocketAddr) -> Result<Stages, String> {
    Ok(read(&get(address, "/metrics").await?.1))
}

fn read(text: &str) -> Stages {
    let mut stages = Stages::new();
    for line in text.lines().filter_map(|line| line.strip_prefix(METRIC)) {
        let Some((kind, rest)) = line.split_once("{stage=\"") else { continue };
        let Some((stage, value)) = rest.split_once("\"} ") else { continue };
        let entry = stages.entry(stage.to_owned()).or_default();
        match kind {
            "count" => entry.0 = value.parse().unwrap_or_default(),
            "sum" => entry.1 = value.parse().unwrap_or_default(),
            _ => {}
        }
    }
    stages
}

/// The runs of each stage between two looks, with their mean in microseconds.
pub(super) fn between(before: &Stages, after: &Stages) -> BTreeMap<String, (u64, f64)> {
    let mean = |(stage, (count, sum)): (&String, &(u64, f64))| {
        let (count_before, sum_before) = before.get(stage).copied().unwrap_or_default();
        let count = count.saturating_sub(count_before);
        #[expect(clippy::cast_precision_loss, reason = "fewer than 2^52 calls")]
        let mean = (sum - sum_before) * 1e6 / count as f64;
        (count > 0).then(|| (stage.clone(), (count, mean)))
    };
    after.iter().filter_map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_between_two_looks_is_told() {
        let text = |count: u64, sum: f64| {
            format!(
                "# TYPE quotesign_stage_duration_seconds histogram\n\
                 {METRIC}sum{{stage=\"sign\"}} {sum}\n{METRIC}count{{stage=\"sign\"}} {count}\n\
                 {METRIC}bucket{{le=\"+Inf\",stage=\"sign\"}} {count}\n"
            )
        };
        let between = between(&read(&text(2, 0.5)), &read(&text(6, 0.7)));
        let (count, mean) = between["sign"];
        assert_eq!((between.len(), count), (1, 4));
        assert!((mean - 50_000.0).abs() < 1e-6, "{mean}");
    }
}
