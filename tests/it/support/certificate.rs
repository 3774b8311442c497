//! Self-signed certificates in files.

use std::{fs, io, net::SocketAddr, path::PathBuf, sync::Arc};

use rcgen::{CertifiedKey, KeyPair};
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector, client,
    rustls::{
        ClientConfig, RootCertStore,
        pki_types::{CertificateDer, ServerName},
    },
};

/// A certificate in files that are removed when it is dropped.
pub struct Certificate {
    pub folder: PathBuf,
    pub der: CertificateDer<'static>,
}

impl Certificate {
    pub fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!(
            "wsbalancer-tls-{}-{:x}",
            std::process::id(),
            fastrand::u64(..)
        ));
        fs::create_dir(&folder).unwrap();
        let mut certificate = Self { folder, der: CertificateDer::from(Vec::new()) };
        certificate.renew(name);
        certificate
    }

    pub fn renew(&mut self, name: &str) {
        let CertifiedKey::<KeyPair> { cert, signing_key } =
            rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        fs::write(self.folder.join("key.pem"), signing_key.serialize_pem()).unwrap();
        fs::write(self.folder.join("cert.pem"), cert.pem()).unwrap();
        self.der = cert.der().clone();
    }

    pub fn file(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// Connects as a client that trusts only this certificate.
    pub async fn connect(&self, address: SocketAddr) -> io::Result<client::TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).unwrap();
        let provider = tokio_rustls::rustls::crypto::ring::default_provider();
        let config = ClientConfig::builder_with_provider(provider.into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, TcpStream::connect(address).await?).await
    }
}

impl Drop for Certificate {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}
