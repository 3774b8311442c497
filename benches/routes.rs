//! The cost of finding the route of a request among 1, 20, 200 and 2,000, compared with a matcher that
//! tries them one by one.
//!
//!     cargo bench --bench routes
//!
//! Both get the same requests in the same order and must agree on every one.

use std::{hint::black_box, time::Instant};

use wsbalancer::domain::routing::route::{HostPattern, Route, Router};

/// Requests per round.
const REQUESTS: usize = 100_000;

/// Rounds; the fastest one counts, because other load on the machine only adds time.
const ROUNDS: usize = 7;

fn main() {
    println!("{:>7}  {:>12}  {:>12}", "routes", "router", "one by one");
    for count in [1, 20, 200, 2_000] {
        let routes = routes(count);
        let router = Router::new(routes.clone()).expect("no ties");
        let requests = requests(count);
        for (host, path) in &requests {
            let found = router.find(host, path, "GET").map(|route| route.service);
            assert_eq!(found, one_by_one(&routes, host, path), "{host}{path}");
        }
        let quick = nanoseconds(&requests, |host, path| {
            router.find(host, path, "GET").map(|route| route.service)
        });
        let slow = nanoseconds(&requests, |host, path| one_by_one(&routes, host, path));
        println!("{count:>7}  {quick:>9.0} ns  {slow:>9.0} ns");
    }
}

/// Returns routes: a third each by exact host, by wildcard and by path only, with prefixes of one to
/// three segments.
fn routes(count: usize) -> Vec<Route<usize>> {
    let route = |index: usize| {
        let host = match index % 3 {
            0 => Some(HostPattern::Exact(format!("host-{index}.example.org"))),
            1 => Some(HostPattern::Below(format!("group-{index}.example.org"))),
            _ => None,
        };
        let path_prefix = ["/app", "/app/v1", "/app/v1/socket"][index / 3 % 3];
        let path_prefix = match host {
            Some(_) => path_prefix.to_owned(),
            None => format!("/tenant-{index}{path_prefix}"),
        };
        Route { host, path_prefix, service: index, ..Route::default() }
    };
    (0..count).map(route).collect()
}

/// Returns a request for each route, and as many that match none.
fn requests(count: usize) -> Vec<(String, String)> {
    let request = |at: usize| {
        let index = at % count;
        let miss = if at.is_multiple_of(2) { "" } else { "x" };
        match index % 3 {
            0 => (format!("host-{index}{miss}.example.org"), "/app/v1/socket/room".to_owned()),
            1 => (format!("a.group-{index}{miss}.example.org:8080"), "/app/v1/socket".to_owned()),
            _ => ("any.test".to_owned(), format!("/tenant-{index}/app{miss}/v1/socket/room/17")),
        }
    };
    (0..REQUESTS).map(request).collect()
}

/// Returns the most specific matching route by the same rules, without an index.
fn one_by_one(routes: &[Route<usize>], host: &str, path: &str) -> Option<usize> {
    let name = host.split(':').next().unwrap_or_default();
    let specificity = |route: &Route<usize>| {
        let host = match &route.host {
            None => (0, 0),
            Some(pattern) if !pattern.matches(name) => return None,
            Some(HostPattern::Below(known)) => (1, known.len()),
            Some(HostPattern::Exact(_)) => (2, 0),
        };
        let rest = path.strip_prefix(route.path_prefix.as_str())?;
        (rest.is_empty() || rest.starts_with('/')).then_some((host, route.path_prefix.len()))
    };
    let matching = routes.iter().filter_map(|route| Some((specificity(route)?, route.service)));
    matching.max_by_key(|(specificity, _)| *specificity).map(|(_, service)| service)
}

/// Returns the time per request in the fastest round.
fn nanoseconds(requests: &[(String, String)], find: impl Fn(&str, &str) -> Option<usize>) -> f64 {
    let round = || {
        let start = Instant::now();
        for (host, path) in requests {
            black_box(find(black_box(host), black_box(path)));
        }
        start.elapsed().as_nanos() as f64 / requests.len() as f64
    };
    (0..ROUNDS).map(|_| round()).fold(f64::INFINITY, f64::min)
}
