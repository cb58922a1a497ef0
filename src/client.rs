//! How the project's own commands reach a gateway: gRPC over mutual TLS 1.3, and HTTPS for the JWKS.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{
    Request, Response, Uri,
    body::{Bytes, Incoming},
};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::{
    clock::UtcTime,
    domain::{Environment, PartnerId},
    key_set::Fetched,
    strict_toml,
    transport::tls,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
const JWKS_BYTES_MAX: usize = 1 << 20;
const OPERATIONS_BYTES_MAX: usize = 8 << 20;

/// `client.toml`: how client commands reach a gateway.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientFile {
    /// The gateway's environment.
    pub environment: Environment,
    /// The partner meant where a command names none.
    pub partner: Option<PartnerId>,
    /// The CA of the gateway's certificates, PEM.
    pub ca: PathBuf,
    /// The gRPC listener.
    pub grpc: Remote,
    /// The admin listener, where this client is an operator's.
    pub admin: Option<Remote>,
    /// The JWKS listener, as `https://127.0.0.1:8445`.
    pub jwks: String,
}

/// One gRPC listener and who calls it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remote {
    /// As `https://127.0.0.1:8443`.
    pub url: String,
    /// The client's certificate chain, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub private_key: PathBuf,
}

/// Why a gateway cannot be reached.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unreachable(pub String);

impl ClientFile {
    /// Reads a client file. Paths in it are relative to its own directory.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn load(path: &Path) -> Result<Self, Unreachable> {
        let fault = |text: String| Unreachable(format!("{}: {text}", path.display()));
        let text = fs::read_to_string(path).map_err(|cause| {
            fault(format!(
                "cannot be read: {cause}; name a client file with --client, or make one with `quotesign dev --prepare`"
            ))
        })?;
        let mut file: Self = strict_toml::read(&text).map_err(|misfit| {
            let line = misfit.line.map(|line| format!("line {line}: ")).unwrap_or_default();
            fault(format!("{line}`{}`: {}", misfit.field, misfit.why))
        })?;
        let base = path.parent().unwrap_or(Path::new(""));
        file.ca = base.join(&file.ca);
        for remote in [Some(&mut file.grpc), file.admin.as_mut()].into_iter().flatten() {
            remote.certificate = base.join(&remote.certificate);
            remote.private_key = base.join(&remote.private_key);
        }
        Ok(file)
    }

    /// A channel to the gRPC listener.
    ///
    /// # Errors
    /// Says which file or address is at fault.
    pub async fn grpc(&self) -> Result<Channel, Unreachable> {
        channel(&self.grpc, &self.ca).await
    }

    /// A channel to the admin listener.
    ///
    /// # Errors
    /// Says which file or address is at fault, or that this client is no operator's.
    pub async fn admin(&self) -> Result<Channel, Unreachable> {
        let remote = self.admin.as_ref();
        channel(
            remote.ok_or_else(|| Unreachable("the client file has no [admin]; use an operator's".to_owned()))?,
            &self.ca,
        )
        .await
    }

    /// The partner's JWKS, over HTTPS.
    ///
    /// # Errors
    /// Where it does not answer 200 with a body of bounded size.
    pub async fn jwks(&self, partner: &PartnerId) -> Result<Bytes, Unreachable> {
        fetch(&self.jwks_url(partner), &self.ca).await
    }

    /// The address of the partner's JWKS at the gateway itself.
    #[must_use]
    pub fn jwks_url(&self, partner: &PartnerId) -> String {
        format!("{}/partners/{partner}/.well-known/jwks.json", self.jwks.trim_end_matches('/'))
    }
}

/// What is at an https:// address, held against the CAs of the file `ca`. Follows no redirect.
///
/// # Errors
/// Where it does not answer 200 in time with a body of bounded size.
pub async fn fetch(url: &str, ca: &Path) -> Result<Bytes, Unreachable> {
    match look(url, ca).await? {
        (Fetched { status: 200, .. }, body) => Ok(body),
        (Fetched { status, .. }, _) => Err(Unreachable(format!("{url}: answered {status}"))),
    }
}

/// What is at an https:// address, whatever the status, with what the answer and the certificate say. Follows no
/// redirect.
///
/// # Errors
/// Where the server cannot be reached, its certificate is not of a CA in `ca`, or nothing of bounded size comes in time.
pub async fn look(url: &str, ca: &Path) -> Result<(Fetched, Bytes), Unreachable> {
    let got = tokio::time::timeout(FETCH_TIMEOUT, get(url, ca)).await;
    let got = got.unwrap_or_else(|_| Err("no answer in time".into()));
    got.map_err(|fault| Unreachable(format!("{url}: {fault}")))
}

async fn channel(remote: &Remote, ca: &Path) -> Result<Channel, Unreachable> {
    let fault = |why: String| Unreachable(format!("{}: {why}", remote.url));
    let files = (remote.certificate.as_path(), remote.private_key.as_path());
    let connector = TlsConnector::from(tls::client(ca, Some(files), b"h2").map_err(|cause| fault(cause.to_string()))?);
    let endpoint = Endpoint::from_shared(remote.url.clone())
        .map_err(|cause| fault(cause.to_string()))?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(Duration::from_secs(30));
    let connect = service_fn(move |uri: Uri| {
        let connector = connector.clone();
        async move { dial(&uri, &connector).await.map(TokioIo::new) }
    });
    endpoint.connect_with_connector(connect).await.map_err(|cause| fault(innermost(&cause)))
}

/// The cause at the bottom, which is the one that says something.
fn innermost(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), innermost)
}

async fn dial(uri: &Uri, connector: &TlsConnector) -> io::Result<TlsStream<TcpStream>> {
    let host = uri.host().ok_or_else(|| io::Error::other("the URL has no host"))?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let socket = TcpStream::connect((host.as_str(), uri.port_u16().unwrap_or(443))).await?;
    socket.set_nodelay(true)?;
    let name = ServerName::try_from(host).map_err(io::Error::other)?;
    connector.connect(name, socket).await
}

async fn get(url: &str, ca: &Path) -> Result<(Fetched, Bytes), Box<dyn std::error::Error + Send + Sync>> {
    let uri: Uri = url.parse()?;
    if uri.scheme_str() != Some("https") {
        return Err("keys are fetched over https:// alone".into());
    }
    let connector = TlsConnector::from(tls::client(ca, None, b"http/1.1")?);
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, dial(&uri, &connector)).await??;
    let certificate_ends = ends(&stream);
    let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    let response = ask(stream, &authority, target).await?;
    let text = |name| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let fetched = Fetched {
        status: response.status().as_u16(),
        content_type: text(hyper::header::CONTENT_TYPE),
        cache_control: text(hyper::header::CACHE_CONTROL),
        location: text(hyper::header::LOCATION),
        certificate_ends,
    };
    let body = Limited::new(response.into_body(), JWKS_BYTES_MAX).collect().await?.to_bytes();
    Ok((fetched, body))
}

/// What is at a plain HTTP address of the operations listener: status and body.
///
/// # Errors
/// Where nothing of bounded size comes in time.
pub async fn plain(address: SocketAddr, target: &str) -> Result<(u16, Bytes), Unreachable> {
    let got = async {
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await??;
        let response = ask(stream, &address.to_string(), target).await?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), OPERATIONS_BYTES_MAX).collect().await?.to_bytes();
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>((status, body))
    };
    let got = tokio::time::timeout(FETCH_TIMEOUT, got).await.unwrap_or_else(|_| Err("no answer in time".into()));
    got.map_err(|fault| Unreachable(format!("{address}: {fault}")))
}

async fn ask<S>(
    stream: S,
    authority: &str,
    target: &str,
) -> Result<Response<Incoming>, Box<dyn std::error::Error + Send + Sync>>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::get(target).header(hyper::header::HOST, authority).body(Empty::<Bytes>::new())?;
    Ok(sender.send_request(request).await?)
}

/// When the certificate ends that the server has shown.
fn ends(stream: &TlsStream<TcpStream>) -> Option<UtcTime> {
    let certificate = stream.get_ref().1.peer_certificates()?.first()?;
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(UtcTime::from_millis(certificate.validity().not_after.timestamp().checked_mul(1000)?))
}
