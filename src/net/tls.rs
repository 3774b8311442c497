//! TLS 1.2 and 1.3 on both sides, HTTP/1.1 only (ALPN, RFC 7301).

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use tokio_rustls::{
    TlsAcceptor, TlsConnector, client,
    rustls::{
        ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig, SignatureScheme,
        client::{
            WebPkiServerVerifier,
            danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        },
        crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring},
        pki_types::{
            CertificateDer, PrivateKeyDer, ServerName, UnixTime,
            pem::{self, PemObject as _},
        },
        server::{ClientHello, ResolvesServerCert},
        sign::CertifiedKey,
    },
};

use crate::relay::Io;

/// Longest PEM file that is read, in bytes: a bundle of all public authorities has a quarter.
const MAX_FILE_LEN: u64 = 1 << 20;

/// The protocols that we speak inside TLS.
fn alpn() -> Vec<Vec<u8>> {
    vec![b"http/1.1".to_vec()]
}

fn provider() -> Arc<CryptoProvider> {
    ring::default_provider().into()
}

/// Certificate chain and private key as PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPair {
    /// The certificate and those that lead from it to an authority.
    pub cert_file: PathBuf,
    /// Its key.
    pub key_file: PathBuf,
}

/// What is wrong with a file, by the part it plays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileError {
    /// The certificate chain.
    Cert(String),
    /// The private key, or how it goes with the chain.
    Key(String),
    /// The authorities.
    Authorities(String),
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Cert(text) | Self::Key(text) | Self::Authorities(text)) = self;
        f.write_str(text)
    }
}

/// Both files' bytes.
#[derive(PartialEq, Eq)]
struct PemBytes {
    chain: Vec<u8>,
    key: Vec<u8>,
}

impl KeyPair {
    fn read(&self) -> Result<PemBytes, FileError> {
        let chain = read_file(&self.cert_file).map_err(FileError::Cert)?;
        let key = read_file(&self.key_file).map_err(FileError::Key)?;
        Ok(PemBytes { chain, key })
    }
}

/// Whole, if it is of a size that a PEM file may have.
fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    let named = |error: &dyn fmt::Display| format!("{} cannot be read: {error}", path.display());
    let file = fs::metadata(path).map_err(|error| named(&error))?;
    if !file.is_file() || file.len() > MAX_FILE_LEN {
        return Err(named(&format_args!("not a file of at most {MAX_FILE_LEN} bytes")));
    }
    fs::read(path).map_err(|error| named(&error))
}

impl PemBytes {
    fn parse(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), FileError> {
        let chain = certificates(&self.chain).map_err(FileError::Cert)?;
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|error| FileError::Key(no_pem("private key", &error)))?;
        Ok((chain, key))
    }

    fn certified(&self) -> Result<CertifiedKey, FileError> {
        let (chain, key) = self.parse()?;
        CertifiedKey::from_der(chain, key, &provider()).map_err(|error| match error {
            Error::InvalidCertificate(_) => {
                FileError::Cert(format!("holds a certificate that cannot be read: {error}"))
            }
            _ => FileError::Key(format!("does not go with the certificate: {error}")),
        })
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match parsed {
        Ok(chain) if chain.is_empty() => Err(no_pem("certificate", &pem::Error::NoItemsFound)),
        Ok(chain) => Ok(chain),
        Err(error) => Err(no_pem("certificate", &error)),
    }
}

fn no_pem(item: &str, error: &pem::Error) -> String {
    match error {
        pem::Error::NoItemsFound => format!("holds no {item} in PEM"),
        // The library shows the marker as a list of bytes.
        pem::Error::MissingSectionEnd { .. } => {
            format!("holds no whole {item} in PEM: a section has no end")
        }
        other => format!("holds no {item} in PEM: {other}"),
    }
}

impl fmt::Debug for PemBytes {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PemBytes").finish_non_exhaustive()
    }
}

/// The listener's certificate, taken anew from its files when they change.
#[derive(Debug)]
pub struct ServerCertificate {
    files: KeyPair,
    interval: Duration,
    current: RwLock<Arc<CertifiedKey>>,
    /// What the files held when they were looked at last.
    seen: Mutex<Result<PemBytes, FileError>>,
}

impl ServerCertificate {
    fn load(files: KeyPair, interval: Duration) -> Result<Self, FileError> {
        let seen = files.read()?;
        let current = RwLock::new(seen.certified()?.into());
        Ok(Self { files, interval, current, seen: Mutex::new(Ok(seen)) })
    }

    /// Looks at the files again and again, for ever.
    pub async fn watch(self: Arc<Self>) {
        loop {
            tokio::time::sleep(self.interval).await;
            self.look();
        }
    }

    /// Takes changed files over. Contents are compared, because what mounts secrets swaps links and
    /// keeps times as it likes. Bad ones are logged once and change nothing.
    pub fn look(&self) {
        let read = self.files.read();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if read == *seen {
            return;
        }
        let KeyPair { cert_file, key_file } = &self.files;
        let (cert_file, key_file) = (cert_file.display(), key_file.display());
        match read.as_ref().map_err(Clone::clone).and_then(PemBytes::certified) {
            Ok(certified) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = certified.into();
                log::info!("{cert_file} and {key_file} hold for new connections");
            }
            Err(error) => {
                let file = if matches!(error, FileError::Key(_)) { key_file } else { cert_file };
                log::warn!("{file} has changed, and the certificate before stays: {error}");
            }
        }
        *seen = read;
    }
}

/// Speaks TLS with clients.
#[derive(Clone)]
pub struct ServerTls {
    /// What clients are shown.
    pub certificate: Arc<ServerCertificate>,
    /// Shakes hands.
    pub acceptor: TlsAcceptor,
}

impl ServerTls {
    /// Reads the files; [`ServerCertificate::watch`] looks at them every `interval`.
    ///
    /// # Errors
    /// What is wrong with which file.
    pub fn load(files: KeyPair, interval: Duration) -> Result<Self, FileError> {
        let certificate = Arc::new(ServerCertificate::load(files, interval)?);
        let other = |error: Error| FileError::Key(error.to_string());
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(other)?
            .with_no_client_auth()
            .with_cert_resolver(certificate.clone());
        config.alpn_protocols = alpn();
        // Tickets spare a storm of returning clients the dearest part of the handshake, without a
        // store of sessions.
        config.ticketer = ring::Ticketer::new().map_err(other)?;
        Ok(Self { certificate, acceptor: TlsAcceptor::from(Arc::new(config)) })
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ServerTls").field(&self.certificate.files).finish()
    }
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// How pods are made sure of.
#[derive(Clone, Debug)]
pub struct ClientSettings {
    /// Whether pods must prove who they are.
    pub verify: bool,
    /// The only authorities that are believed; without it, the system's.
    pub ca_file: Option<PathBuf>,
    /// Who we are, for pods that ask.
    pub identity: Option<KeyPair>,
    /// The name that is asked for and proven, in place of the host in the pod's URL.
    pub server_name: Option<ServerName<'static>>,
}

/// Speaks TLS with pods.
pub struct ClientTls {
    connector: TlsConnector,
    server_name: Option<ServerName<'static>>,
    /// Whether pods must prove who they are.
    pub verifies: bool,
    /// Who is believed.
    roots: Option<Arc<RootCertStore>>,
    /// What the files of our own identity held.
    identity: Option<PemBytes>,
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

impl ClientTls {
    /// Reads the files of `settings`.
    ///
    /// # Errors
    /// What is wrong with which file.
    pub fn new(settings: ClientSettings) -> Result<Self, FileError> {
        let other = |error: Error| FileError::Authorities(error.to_string());
        let provider = provider();
        let roots = match settings.verify {
            true => {
                Some(Arc::new(roots(settings.ca_file.as_deref()).map_err(FileError::Authorities)?))
            }
            false => None,
        };
        let verifier: Arc<dyn ServerCertVerifier> = match &roots {
            Some(roots) => {
                WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone())
                    .build()
                    .map_err(|error| FileError::Authorities(error.to_string()))?
            }
            None => Arc::new(Anyone(provider.signature_verification_algorithms)),
        };
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(other)?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let identity = settings.identity.as_ref().map(KeyPair::read).transpose()?;
        let mut config = match &identity {
            None => config.with_no_client_auth(),
            Some(bytes) => {
                // For its look at whether the two go together.
                bytes.certified()?;
                let (chain, key) = bytes.parse()?;
                config.with_client_auth_cert(chain, key).map_err(other)?
            }
        };
        config.alpn_protocols = alpn();
        let connector = TlsConnector::from(Arc::new(config));
        let ClientSettings { server_name, verify, .. } = settings;
        Ok(Self { connector, server_name, verifies: verify, roots, identity })
    }

    /// Whether `other` believes the same authorities, for the same name, and shows the same
    /// certificate.
    pub fn is_like(&self, other: &Self) -> bool {
        let roots = |tls: &Self| tls.roots.as_ref().map(|roots| roots.roots.clone());
        self.server_name == other.server_name
            && self.identity == other.identity
            && roots(self) == roots(other)
    }

    /// Shakes hands with the pod at `address` (`host:port`) over `io`.
    ///
    /// # Errors
    /// What is wrong with the pod's certificate, or with how it speaks.
    pub async fn connect<S: Io>(&self, address: &str, io: S) -> io::Result<client::TlsStream<S>> {
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => host_name(address).map_err(io::Error::other)?,
        };
        self.connector.connect(name, io).await
    }
}

/// The name that the pod at `address` must prove.
fn host_name(address: &str) -> Result<ServerName<'static>, String> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    ServerName::try_from(host.to_owned()).map_err(|error| format!("{host}: {error}"))
}

fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    match ca_file {
        Some(file) => {
            for certificate in certificates(&read_file(file)?)? {
                let broken = |error| format!("holds a certificate that cannot be read: {error}");
                roots.add(certificate).map_err(broken)?;
            }
        }
        None => {
            let (usable, _) =
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if usable == 0 {
                return Err("the system has no certificate authorities: name a file".to_owned());
            }
        }
    }
    Ok(roots)
}

/// Takes any certificate; signatures are still checked, as the protocol cannot do without.
#[derive(Debug)]
struct Anyone(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tokio_rustls::rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tokio_rustls::rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
