//! Values that unit tests, benchmarks and fuzz targets share.

use super::{
    balance::backend::{Backend, Transport},
    report::Report,
};

/// Returns a backend of the service `default` at this address.
pub fn backend(address: &str) -> Backend {
    Backend {
        service: "default".to_owned(),
        url: format!("http://{address}"),
        address: address.to_owned(),
        transport: Transport::Tcp,
    }
}

/// Returns a report that contains only a count.
pub fn report(connections: u64) -> Report {
    Report { connections: Some(connections), ..Report::default() }
}
