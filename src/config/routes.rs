//! The routes: which requests are for which service.

use super::{
    reader::{Reader, did_you_mean, path},
    services::Service,
};
use crate::domain::routing::route::{HostPattern, Rewrite, Route, Router};

/// `[[routes]]`; without any, everything is for the only service.
pub(super) fn routes(read: &mut Reader, services: &[Service]) -> Router {
    if read.has("routes") {
        // An empty list, which is as good as none.
        let items: Vec<String> = read.list("routes", |text| Ok(text.to_owned()));
        if !items.is_empty() {
            read.complain("routes", "expected [[routes]] tables");
        }
    }
    let mut tables = read.names_below("routes");
    tables.sort_by_key(|table| table.parse::<usize>().unwrap_or(usize::MAX));
    if tables.is_empty() {
        if services.len() > 1 {
            let advice =
                "are missing: with several services, [[routes]] must say whose a request is";
            read.complain_of_table("routes", advice);
        }
        return Router::default();
    }
    let routes: Vec<Route> = tables.iter().map(|table| route(read, table, services)).collect();
    Router::new(routes).unwrap_or_else(|(one, other)| {
        let advice = format!(
            "is as specific as routes.{}, and a request may match both: give one another host, \
             path_prefix or methods",
            tables[one]
        );
        read.complain_of_table(&format!("routes.{}", tables[other]), advice);
        Router::default()
    })
}

fn route(read: &mut Reader, table: &str, services: &[Service]) -> Route {
    let key = |name: &str| format!("routes.{table}.{name}");
    let host = read.optional(&key("host"), HostPattern::parse);
    let segments = |text: &str| Ok(path(text)?.trim_end_matches('/').to_owned());
    let path_prefix = read.optional(&key("path_prefix"), segments).unwrap_or_default();
    let methods = match read.has(&key("methods")) {
        true => read.list(&key("methods"), |text| {
            let right = text.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-');
            right.then(|| text.to_owned()).ok_or_else(|| "expected methods such as GET".to_owned())
        }),
        false => Vec::new(),
    };
    let strip = read.optional(&key("strip_prefix"), segments).filter(|prefix| !prefix.is_empty());
    if let Some(prefix) = &strip
        && !(path_prefix == *prefix || path_prefix.starts_with(&format!("{prefix}/")))
    {
        let advice = format!(
            "is no leading part of the path_prefix {path_prefix:?}, so some paths would not have it"
        );
        read.complain(&key("strip_prefix"), advice);
    }
    let rewrite = match (strip, read.optional(&key("replace_path"), path)) {
        (None, None) => Rewrite::Keep,
        (Some(prefix), None) => Rewrite::Strip(prefix),
        (None, Some(path)) => Rewrite::Replace(path),
        (Some(_), Some(path)) => {
            let advice = "and strip_prefix cannot both hold: choose one";
            read.complain(&key("replace_path"), advice);
            Rewrite::Replace(path)
        }
    };
    let index_of = |name: &str| {
        let names = || services.iter().map(|service| service.name.as_str());
        names().position(|known| known == name).ok_or_else(|| {
            let all = names().collect::<Vec<_>>().join(", ");
            format!("expected one of the services {all}{}", did_you_mean(name, names()))
        })
    };
    let service = read.optional(&key("service"), index_of);
    if service.is_none() && !read.has(&key("service")) {
        read.complain_of_table(&key("service"), "is missing: name one of the services");
    }
    Route { host, path_prefix, methods, rewrite, service: service.unwrap_or_default() }
}
