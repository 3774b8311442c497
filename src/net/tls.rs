//! TLS 1.2 and 1.3 with clients and pods, for HTTP/1.1 only (ALPN, RFC 7301).

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

/// Longest PEM file that is read, in bytes. A bundle of all public authorities has a quarter of
/// that.
const MAX_FILE_LEN: u64 = 1 << 20;

fn alpn_protocols() -> Vec<Vec<u8>> {
    vec![b"http/1.1".to_vec()]
}

fn provider() -> Arc<CryptoProvider> {
    ring::default_provider().into()
}

/// PEM files with a certificate chain and its private key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPair {
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
}

/// A problem with a file, by the purpose of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsFileError {
    Cert(String),
    /// The private key, or that it does not match the certificate.
    Key(String),
    /// The file of trusted certificate authorities.
    Authorities(String),
}

impl fmt::Display for TlsFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Cert(text) | Self::Key(text) | Self::Authorities(text)) = self;
        f.write_str(text)
    }
}

/// The contents of both files.
#[derive(PartialEq, Eq)]
struct PemBytes {
    chain: Vec<u8>,
    key: Vec<u8>,
}

impl KeyPair {
    fn read(&self) -> Result<PemBytes, TlsFileError> {
        let chain = read_file(&self.cert_file).map_err(TlsFileError::Cert)?;
        let key = read_file(&self.key_file).map_err(TlsFileError::Key)?;
        Ok(PemBytes { chain, key })
    }
}

/// Reads a file of at most [`MAX_FILE_LEN`] bytes.
fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    let message = |error: &dyn fmt::Display| format!("{} cannot be read: {error}", path.display());
    let file = fs::metadata(path).map_err(|error| message(&error))?;
    if !file.is_file() || file.len() > MAX_FILE_LEN {
        return Err(message(&format_args!("not a file of at most {MAX_FILE_LEN} bytes")));
    }
    fs::read(path).map_err(|error| message(&error))
}

impl PemBytes {
    fn parse(
        &self,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsFileError> {
        let chain = certificates(&self.chain).map_err(TlsFileError::Cert)?;
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|error| TlsFileError::Key(pem_problem("private key", &error)))?;
        Ok((chain, key))
    }

    fn certified_key(&self) -> Result<CertifiedKey, TlsFileError> {
        let (chain, key) = self.parse()?;
        CertifiedKey::from_der(chain, key, &provider()).map_err(|error| match error {
            Error::InvalidCertificate(_) => {
                TlsFileError::Cert(format!("contains an invalid certificate: {error}"))
            }
            _ => TlsFileError::Key(format!("does not match the certificate: {error}")),
        })
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match parsed {
        Ok(chain) if chain.is_empty() => Err(pem_problem("certificate", &pem::Error::NoItemsFound)),
        Ok(chain) => Ok(chain),
        Err(error) => Err(pem_problem("certificate", &error)),
    }
}

fn pem_problem(item: &str, error: &pem::Error) -> String {
    match error {
        pem::Error::NoItemsFound => format!("contains no {item} in PEM format"),
        // The library prints the marker as a list of bytes.
        pem::Error::MissingSectionEnd { .. } => {
            format!("contains no complete {item} in PEM format: a section has no end")
        }
        other => format!("contains no valid {item} in PEM format: {other}"),
    }
}

impl fmt::Debug for PemBytes {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PemBytes").finish_non_exhaustive()
    }
}

/// The traffic listener's certificate, reloaded when its files change.
#[derive(Debug)]
pub struct ServerCertificate {
    files: KeyPair,
    interval: Duration,
    current: RwLock<Arc<CertifiedKey>>,
    /// Contents of the files when they were last read.
    seen: Mutex<Result<PemBytes, TlsFileError>>,
}

impl ServerCertificate {
    fn load(files: KeyPair, interval: Duration) -> Result<Self, TlsFileError> {
        let seen = files.read()?;
        let current = RwLock::new(seen.certified_key()?.into());
        Ok(Self { files, interval, current, seen: Mutex::new(Ok(seen)) })
    }

    /// Checks the files at each interval, without end.
    pub async fn watch_files(self: Arc<Self>) {
        loop {
            tokio::time::sleep(self.interval).await;
            self.reload_changed_files();
        }
    }

    /// Loads the files if they have changed. Contents are compared, because mounted secrets are
    /// swapped by links and have arbitrary times. Invalid files are logged once and are not used.
    pub fn reload_changed_files(&self) {
        let read = self.files.read();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if read == *seen {
            return;
        }
        let KeyPair { cert_file, key_file } = &self.files;
        let (cert_file, key_file) = (cert_file.display(), key_file.display());
        match read.as_ref().map_err(Clone::clone).and_then(PemBytes::certified_key) {
            Ok(certified) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = certified.into();
                log::info!(
                    "certificate {cert_file} and key {key_file} reloaded: new connections use them"
                );
            }
            Err(error) => {
                let file = if matches!(error, TlsFileError::Key(_)) { key_file } else { cert_file };
                log::warn!(
                    "{file} has changed and cannot be used, the previous certificate stays in use: {error}"
                );
            }
        }
        *seen = read;
    }
}

/// Accepts TLS connections of clients.
#[derive(Clone)]
pub struct ServerTls {
    pub certificate: Arc<ServerCertificate>,
    pub acceptor: TlsAcceptor,
}

impl ServerTls {
    /// Reads the files; [`ServerCertificate::watch_files`] checks them every `interval`.
    ///
    /// # Errors
    /// A file cannot be used.
    pub fn load(files: KeyPair, interval: Duration) -> Result<Self, TlsFileError> {
        let certificate = Arc::new(ServerCertificate::load(files, interval)?);
        let other = |error: Error| TlsFileError::Key(error.to_string());
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(other)?
            .with_no_client_auth()
            .with_cert_resolver(certificate.clone());
        config.alpn_protocols = alpn_protocols();
        // With tickets, reconnecting clients skip the most expensive part of the
        // handshake, and the server stores no sessions.
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

/// How TLS connections to pods are set up and verified.
#[derive(Clone, Debug)]
pub struct ClientTlsSettings {
    /// Whether the certificates of pods are verified.
    pub verify: bool,
    /// File with the trusted authorities; `None` for those of the system.
    pub ca_file: Option<PathBuf>,
    /// Client certificate, for pods that require one.
    pub identity: Option<KeyPair>,
    /// Name that is sent (SNI) and verified; `None` for the host in the pod's URL.
    pub server_name: Option<ServerName<'static>>,
}

/// Opens TLS connections to pods.
pub struct ClientTls {
    connector: TlsConnector,
    server_name: Option<ServerName<'static>>,
    /// Whether the certificates of pods are verified.
    pub verifies: bool,
    /// The trusted authorities.
    roots: Option<Arc<RootCertStore>>,
    /// Contents of the client certificate's files.
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
    /// A file cannot be used.
    pub fn new(settings: ClientTlsSettings) -> Result<Self, TlsFileError> {
        let other = |error: Error| TlsFileError::Authorities(error.to_string());
        let provider = provider();
        let roots = match settings.verify {
            true => Some(Arc::new(
                roots(settings.ca_file.as_deref()).map_err(TlsFileError::Authorities)?,
            )),
            false => None,
        };
        let verifier: Arc<dyn ServerCertVerifier> = match &roots {
            Some(roots) => {
                WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone())
                    .build()
                    .map_err(|error| TlsFileError::Authorities(error.to_string()))?
            }
            None => Arc::new(AcceptAnyCertificate(provider.signature_verification_algorithms)),
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
                // Checks that key and certificate match.
                bytes.certified_key()?;
                let (chain, key) = bytes.parse()?;
                config.with_client_auth_cert(chain, key).map_err(other)?
            }
        };
        config.alpn_protocols = alpn_protocols();
        let connector = TlsConnector::from(Arc::new(config));
        let ClientTlsSettings { server_name, verify, .. } = settings;
        Ok(Self { connector, server_name, verifies: verify, roots, identity })
    }

    /// Whether `other` trusts the same authorities for the same name and uses the same client
    /// certificate.
    pub fn is_equivalent(&self, other: &Self) -> bool {
        let roots = |tls: &Self| tls.roots.as_ref().map(|roots| roots.roots.clone());
        self.server_name == other.server_name
            && self.identity == other.identity
            && roots(self) == roots(other)
    }

    /// Performs the TLS handshake with the pod at `address` (`host:port`) over `io`.
    ///
    /// # Errors
    /// The pod's certificate is not valid, or the handshake failed.
    pub async fn connect<S: Io>(&self, address: &str, io: S) -> io::Result<client::TlsStream<S>> {
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => host_name(address).map_err(io::Error::other)?,
        };
        self.connector.connect(name, io).await
    }
}

/// Returns the name that the certificate of the pod at `address` must contain.
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
                let invalid = |error| format!("contains an invalid certificate: {error}");
                roots.add(certificate).map_err(invalid)?;
            }
        }
        None => {
            let (usable, _) =
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if usable == 0 {
                return Err(
                    "the system has no certificate authorities: set it to a file".to_owned()
                );
            }
        }
    }
    Ok(roots)
}

/// Accepts any certificate. Signatures are still verified, which the protocol requires.
#[derive(Debug)]
struct AcceptAnyCertificate(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AcceptAnyCertificate {
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
