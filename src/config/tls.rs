//! TLS settings of both sides: the files and how problems in them are reported.

use std::{path::PathBuf, sync::Arc};

use tokio_rustls::rustls::pki_types::ServerName;

use super::{discovery::DiscoverySettings, reader::Reader};
use crate::{
    domain::balance::backend::{Backend, Transport},
    net::tls::{ClientTls, ClientTlsSettings, KeyPair, TlsFileError},
};

/// Reads the TLS settings for pods. The files are read only if a pod uses TLS.
///
/// Pods that are discovered must prove the name that was looked up: their certificates do not
/// contain their addresses.
pub(super) fn read_client_tls(
    reader: &mut Reader,
    backends: &[Backend],
    discovery: Option<&DiscoverySettings>,
) -> Option<Arc<ClientTls>> {
    let mut settings = ClientTlsSettings {
        verify: reader.boolean("balancer.tls_verify"),
        ca_file: reader.optional_text("balancer.tls_ca_file").map(PathBuf::from),
        identity: read_key_pair(reader, "balancer"),
        server_name: reader.value("balancer.tls_server_name", |text| match text {
            "" => Ok(None),
            name => ServerName::try_from(name.to_owned())
                .map(Some)
                .map_err(|_| "expected a DNS name or an IP address".to_owned()),
        }),
    };
    let mut pods = backends.iter().chain(discovery.map(|discovery| &discovery.pod));
    if !pods.any(|pod| pod.transport == Transport::Tls) {
        return None;
    }
    if discovery.is_some() && settings.server_name.is_none() {
        settings.server_name = discovery.and_then(DiscoverySettings::server_name);
        if settings.server_name.is_none() {
            let advice = "is required: a certificate cannot contain the name that is looked up";
            reader.add_problem("balancer.tls_server_name", advice);
        }
    }
    let tls = ClientTls::new(settings);
    tls.map_err(|error| add_tls_file_problem(reader, "balancer", &error)).ok().map(Arc::new)
}

/// Reads `tls_cert_file` and `tls_key_file` of `table`: both or neither.
pub(super) fn read_key_pair(reader: &mut Reader, table: &str) -> Option<KeyPair> {
    let [cert, key] = ["cert", "key"].map(|part| format!("{table}.tls_{part}_file"));
    match (reader.optional_text(&cert), reader.optional_text(&key)) {
        (Some(cert_file), Some(key_file)) => {
            Some(KeyPair { cert_file: cert_file.into(), key_file: key_file.into() })
        }
        (None, None) => None,
        (Some(_), None) => {
            // Named next to the key that is set, in the service's table or not.
            let missing = reader.effective_key(&cert).replace("_cert_", "_key_");
            reader.add_problem_in_table(&missing, "is required when tls_cert_file is set");
            None
        }
        (None, Some(_)) => {
            let missing = reader.effective_key(&key).replace("_key_", "_cert_");
            reader.add_problem_in_table(&missing, "is required when tls_key_file is set");
            None
        }
    }
}

/// Adds a problem with one of the files that the `tls_` keys of `table` name.
pub(super) fn add_tls_file_problem(reader: &mut Reader, table: &str, error: &TlsFileError) {
    let part = match error {
        TlsFileError::Cert(_) => "cert",
        TlsFileError::Key(_) => "key",
        TlsFileError::Authorities(_) => "ca",
    };
    reader.add_problem(&format!("{table}.tls_{part}_file"), error.to_string());
}
