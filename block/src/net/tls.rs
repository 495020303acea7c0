//! TLS credentials: a folder of certificates laid out as QEMU's `tls-creds-x509` has it.
//!
//! `ca-cert.pem` says whom to believe, `server-cert.pem` and `server-key.pem` are shown by a server,
//! `client-cert.pem` and `client-key.pem` by a client. Keys that both sides know beforehand (PSK) are
//! not to be had: rustls has none. Whoever asks for them is told so, see [`no_psk`].

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::rc::Rc;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection,
};
use serde::{Deserialize, Serialize};

use super::socket::Socket;
use crate::error::{Error, ErrorKind, Result};
use crate::executor::Executor;
use crate::graph::BlockGraph;

/// The answer to `tls-creds-psk`.
pub fn no_psk() -> Error {
    let context = "TLS with pre-shared keys ('tls-creds-psk') is not supported: \
                   use certificates ('tls-creds-x509')";
    Error::new(ErrorKind::Unsupported, context)
}

/// Which side of a connection the credentials are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TlsEndpoint {
    /// The side that connects.
    #[default]
    Client,
    /// The side that listens.
    Server,
}

/// The properties of a `tls-creds-x509` object.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct TlsCredsOptions {
    /// The folder with the certificates.
    pub dir: String,
    /// Which side they are for.
    #[serde(default)]
    pub endpoint: TlsEndpoint,
    /// Whether the other side must show a certificate that the authority signed. Off, a server asks
    /// its clients for none; a client always checks its server.
    #[serde(default = "yes")]
    pub verify_peer: bool,
}

fn yes() -> bool {
    true
}

/// Loaded credentials of one side.
#[derive(Clone)]
pub struct TlsCreds(Side);

#[derive(Clone)]
enum Side {
    Client(Arc<ClientConfig>),
    Server(Arc<ServerConfig>),
}

impl TlsCreds {
    /// The state of one connection of a server.
    pub(crate) fn accept(&self) -> Result<TlsSession> {
        let Side::Server(config) = &self.0 else { return Err(wrong_side("server")) };
        let session = ServerConnection::new(Arc::clone(config)).map_err(|error| failed(&error))?;
        Ok(TlsSession(session.into()))
    }

    /// The state of one connection to a server whose certificate must bear that name.
    pub(crate) fn connect(&self, name: &str) -> Result<TlsSession> {
        let Side::Client(config) = &self.0 else { return Err(wrong_side("client")) };
        let name = ServerName::try_from(name.to_owned()).map_err(|error| {
            let context = format!("'{name}' is not the name of a TLS server: {error}");
            Error::new(ErrorKind::InvalidArgument, context)
        })?;
        let session = ClientConnection::new(Arc::clone(config), name);
        Ok(TlsSession(session.map_err(|error| failed(&error))?.into()))
    }
}

/// One connection's TLS, above a socket that never blocks.
pub(crate) struct TlsSession(Connection);

impl TlsSession {
    pub(super) fn is_handshaking(&self) -> bool {
        self.0.is_handshaking()
    }

    /// Whether it waits to send, not to receive.
    pub(super) fn wants_write(&self) -> bool {
        self.0.wants_write()
    }

    /// Receives into bytes; 0 at the end of the stream, also of one that was cut off.
    pub(super) fn recv(&mut self, socket: &Socket, into: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.reader().read(into) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.receive(socket)?,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                other => return other,
            }
        }
    }

    /// Takes what the socket has and works on it.
    pub(super) fn receive(&mut self, socket: &Socket) -> io::Result<()> {
        let ended = self.0.read_tls(&mut Wire(socket))? == 0;
        if let Err(error) = self.0.process_new_packets() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
        if ended && self.0.is_handshaking() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // Answers of the protocol itself. If they cannot leave now, they go with the next data.
        match self.flush(socket) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        }
    }

    /// Takes bytes to encrypt; how many.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.writer().write(bytes)
    }

    /// Sends everything that is encrypted.
    pub(super) fn flush(&mut self, socket: &Socket) -> io::Result<()> {
        while self.0.wants_write() {
            self.0.write_tls(&mut Wire(socket))?;
        }
        Ok(())
    }

    pub(super) fn close(&mut self) {
        self.0.send_close_notify();
    }
}

/// The socket as rustls wants it.
struct Wire<'a>(&'a Socket);

impl Read for Wire<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.recv_bytes(into)
    }
}

impl Write for Wire<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[io::IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.0.send_slices(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether the other side has said that it does not go on. With TLS 1.3 a client takes the handshake for
/// done before its certificate is looked at, so it hears of that where it expects data.
pub(super) fn is_refusal(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    matches!(inner, Some(rustls::Error::AlertReceived(_)))
}

/// What a handshake that failed means to people.
pub(super) fn handshake_error(error: &io::Error) -> Error {
    let context = if error.kind() == io::ErrorKind::UnexpectedEof {
        "TLS handshake failed: the other side hung up".to_owned()
    } else {
        format!("TLS handshake failed: {error}")
    };
    Error::new(ErrorKind::PermissionDenied, context)
}

fn wrong_side(side: &str) -> Error {
    let context = format!("Expecting TLS credentials with a {side} endpoint");
    Error::new(ErrorKind::InvalidArgument, context)
}

fn failed(error: &rustls::Error) -> Error {
    Error::new(ErrorKind::InvalidArgument, format!("TLS cannot be set up: {error}"))
}

/// The credentials of a graph by object id.
#[derive(Default)]
struct Registry(RefCell<BTreeMap<String, Rc<TlsCreds>>>);

impl TlsCreds {
    /// Reads the certificates, on another thread.
    pub async fn load(executor: &Executor, options: &TlsCredsOptions) -> Result<TlsCreds> {
        let options = options.clone();
        let loaded = executor.engine().blocking(move || Ok(load(&options))).await;
        loaded.map_err(|error| Error::from_io(error, "cannot load TLS credentials"))?
    }

    /// Which side they are for.
    pub fn endpoint(&self) -> TlsEndpoint {
        match self.0 {
            Side::Client(_) => TlsEndpoint::Client,
            Side::Server(_) => TlsEndpoint::Server,
        }
    }

    /// Makes them known to `graph` under an object id.
    pub fn register(self, graph: &BlockGraph, id: &str) -> Result<()> {
        let registry = graph.extension(Registry::default);
        if registry.0.borrow().contains_key(id) {
            let context = format!("attempt to add duplicate property '{id}' to object");
            return Err(Error::new(ErrorKind::AlreadyExists, context));
        }
        registry.0.borrow_mut().insert(id.to_owned(), Rc::new(self));
        Ok(())
    }

    /// The ids of all credentials.
    pub fn ids(graph: &BlockGraph) -> Vec<String> {
        graph.extension(Registry::default).0.borrow().keys().cloned().collect()
    }

    /// Forgets an id; connections that use the credentials go on. Whether it was known.
    pub fn unregister(graph: &BlockGraph, id: &str) -> bool {
        graph.extension(Registry::default).0.borrow_mut().remove(id).is_some()
    }

    /// The credentials of that id, which must be for `endpoint`.
    pub fn find(graph: &BlockGraph, id: &str, endpoint: TlsEndpoint) -> Result<Rc<TlsCreds>> {
        let found = graph.extension(Registry::default).0.borrow().get(id).cloned();
        let creds = found.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("No TLS credentials with id '{id}'"))
        })?;
        if creds.endpoint() == endpoint {
            return Ok(creds);
        }
        Err(wrong_side(match endpoint {
            TlsEndpoint::Client => "client",
            TlsEndpoint::Server => "server",
        }))
    }
}

fn load(options: &TlsCredsOptions) -> Result<TlsCreds> {
    let file = |name: &str| format!("{}/{name}", options.dir);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = [&rustls::version::TLS13, &rustls::version::TLS12];
    let failed = |error: rustls::Error| {
        let context = format!("TLS credentials in '{}' cannot be used: {error}", options.dir);
        Error::new(ErrorKind::InvalidArgument, context)
    };
    match options.endpoint {
        TlsEndpoint::Server => {
            let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
                .with_protocol_versions(&versions)
                .map_err(failed)?;
            let builder = if options.verify_peer {
                let roots = Arc::new(authorities(&file("ca-cert.pem"))?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider)
                    .build()
                    .map_err(|error| {
                        let context = format!("'{}' cannot be used: {error}", options.dir);
                        Error::new(ErrorKind::InvalidArgument, context)
                    })?;
                builder.with_client_cert_verifier(verifier)
            } else {
                builder.with_no_client_auth()
            };
            let (chain, key) = identity(&file("server-cert.pem"), &file("server-key.pem"))?;
            let config = builder.with_single_cert(chain, key).map_err(failed)?;
            Ok(TlsCreds(Side::Server(Arc::new(config))))
        }
        TlsEndpoint::Client => {
            let builder = ClientConfig::builder_with_provider(provider)
                .with_protocol_versions(&versions)
                .map_err(failed)?
                .with_root_certificates(authorities(&file("ca-cert.pem"))?);
            let (cert, key) = (file("client-cert.pem"), file("client-key.pem"));
            let config = if std::path::Path::new(&cert).exists() {
                let (chain, key) = identity(&cert, &key)?;
                builder.with_client_auth_cert(chain, key).map_err(failed)?
            } else {
                builder.with_no_client_auth()
            };
            Ok(TlsCreds(Side::Client(Arc::new(config))))
        }
    }
}

fn authorities(path: &str) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for cert in certificates(path)? {
        roots.add(cert).map_err(|error| {
            let context = format!("'{path}' is not a certificate authority: {error}");
            Error::new(ErrorKind::InvalidArgument, context)
        })?;
    }
    Ok(roots)
}

fn identity(
    cert: &str,
    key: &str,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let chain = certificates(cert)?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable(key, &error))?;
    Ok((chain, key))
}

fn certificates(path: &str) -> Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(path)
        .and_then(|found| found.collect::<std::result::Result<Vec<_>, _>>());
    let found = read.map_err(|error| unreadable(path, &error))?;
    if found.is_empty() {
        let context = format!("'{path}' has no certificate");
        return Err(Error::new(ErrorKind::InvalidArgument, context));
    }
    Ok(found)
}

fn unreadable(path: &str, error: &rustls::pki_types::pem::Error) -> Error {
    use rustls::pki_types::pem::Error as Pem;
    match error {
        Pem::Io(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Error::new(ErrorKind::NotFound, format!("Unable to access credentials {path}: {error}"))
        }
        error => {
            let context = format!("Unable to load credentials {path}: {error}");
            Error::new(ErrorKind::InvalidArgument, context)
        }
    }
}
