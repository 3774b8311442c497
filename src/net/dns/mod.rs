//! Looks up the addresses of pods and replicas in DNS.
//!
//! [`Resolver`] completes a name and looks it up; `query` asks the name servers for one complete
//! name.

mod host_name;
mod lookup;
mod query;

pub use self::{
    host_name::HostName,
    lookup::{DnsSource, Resolver, ResolverSettings},
    query::NameServers,
};
