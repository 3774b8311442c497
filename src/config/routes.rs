//! Reads `[[routes]]`: which requests go to which service.

use super::{
    parse::{did_you_mean, parse_path},
    reader::Reader,
    services::ServiceSettings,
};
use crate::domain::routing::route::{HostPattern, Rewrite, Route, RouteTie, Router};

/// Reads the routes. Without any, every request goes to the only service.
pub(super) fn read_routes(reader: &mut Reader, services: &[ServiceSettings]) -> Router<String> {
    if reader.has("routes") {
        // An empty list is accepted, as no routes.
        let items: Vec<String> = reader.list("routes", |text| Ok(text.to_owned()));
        if !items.is_empty() {
            reader.add_problem("routes", "expected [[routes]] tables");
        }
    }
    let mut tables = reader.table_names("routes");
    tables.sort_by_key(|table| table.parse::<usize>().unwrap_or(usize::MAX));
    if tables.is_empty() {
        if services.len() > 1 {
            let advice = "are required with several services: add [[routes]] tables that choose a \
                          service";
            reader.add_problem_in_table("routes", advice);
        }
        return Router::default();
    }
    let routes: Vec<Route<String>> =
        tables.iter().map(|table| read_route(reader, table, services)).collect();
    Router::new(routes).unwrap_or_else(|RouteTie { first, second }| {
        let advice = format!(
            "is as specific as routes.{}, and a request can match both: change host, path_prefix or \
             methods of one of them",
            tables[first]
        );
        reader.add_problem_in_table(&format!("routes.{}", tables[second]), advice);
        Router::default()
    })
}

fn read_route(reader: &mut Reader, table: &str, services: &[ServiceSettings]) -> Route<String> {
    let key = |name: &str| format!("routes.{table}.{name}");
    let host = reader.optional(&key("host"), HostPattern::parse);
    let segments = |text: &str| Ok(parse_path(text)?.trim_end_matches('/').to_owned());
    let path_prefix = reader.optional(&key("path_prefix"), segments).unwrap_or_default();
    let methods = match reader.has(&key("methods")) {
        true => reader.list(&key("methods"), |text| {
            let is_valid = text.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-');
            let advice = || "expected methods such as GET".to_owned();
            is_valid.then(|| text.to_owned()).ok_or_else(advice)
        }),
        false => Vec::new(),
    };
    let strip = reader.optional(&key("strip_prefix"), segments).filter(|prefix| !prefix.is_empty());
    if let Some(prefix) = &strip
        && !(path_prefix == *prefix || path_prefix.starts_with(&format!("{prefix}/")))
    {
        let advice = format!(
            "must be path_prefix ({path_prefix:?}) or its first segments: other paths that match \
             cannot be stripped"
        );
        reader.add_problem(&key("strip_prefix"), advice);
    }
    let rewrite = match (strip, reader.optional(&key("replace_path"), parse_path)) {
        (None, None) => Rewrite::Keep,
        (Some(prefix), None) => Rewrite::Strip(prefix),
        (None, Some(path)) => Rewrite::Replace(path),
        (Some(_), Some(path)) => {
            let advice = "cannot be used together with strip_prefix: choose one";
            reader.add_problem(&key("replace_path"), advice);
            Rewrite::Replace(path)
        }
    };
    let known_service = |name: &str| {
        let names = || services.iter().map(|service| service.name.as_str());
        names().find(|known| *known == name).map(str::to_owned).ok_or_else(|| {
            let all = names().collect::<Vec<_>>().join(", ");
            format!("expected one of the services {all}{}", did_you_mean(name, names()))
        })
    };
    let service = reader.optional(&key("service"), known_service);
    if service.is_none() && !reader.has(&key("service")) {
        reader
            .add_problem_in_table(&key("service"), "is required: set it to the name of a service");
    }
    Route { host, path_prefix, methods, rewrite, service: service.unwrap_or_default() }
}
