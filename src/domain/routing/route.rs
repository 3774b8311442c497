//! Routes requests to services by host, path and method. The most specific route wins.
//!
//! The order is that of the Kubernetes Gateway API (`HTTPRouteMatch`): an exact host comes before a
//! wildcard, a longer wildcard before a shorter one, and a route for any host last; then the longer
//! path prefix comes first; then a route with methods before one without.

use std::{borrow::Cow, collections::HashMap};

/// Assigns requests with certain hosts, paths and methods to a service, which `S` names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route<S> {
    /// The hosts that match; `None` means any.
    pub host: Option<HostPattern>,
    /// The segments at the start of matching paths, without a final slash; empty means any path.
    pub path_prefix: String,
    /// The methods that match; empty means any.
    pub methods: Vec<String>,
    pub rewrite: Rewrite,
    pub service: S,
}

/// The hosts of a route, in lower case and without port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostPattern {
    /// This host alone.
    Exact(String),
    /// All names with at least one more label before this one (`*.`).
    Below(String),
}

impl HostPattern {
    /// Parses a name or address, or `*.` and a name, in any case.
    ///
    /// # Errors
    /// Returns what a host looks like.
    pub fn parse(text: &str) -> Result<Self, String> {
        let expected = "expected a host such as chat.example.org or *.example.org, without port";
        let (name, below) = match text.strip_prefix("*.") {
            Some(name) => (name, true),
            None => (text, false),
        };
        let is_address = name.starts_with('[') && name.ends_with(']');
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        if name.is_empty() || name.starts_with('.') || !(is_address || name.bytes().all(is_name)) {
            return Err(expected.to_owned());
        }
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        Ok(if below { Self::Below(name) } else { Self::Exact(name) })
    }

    /// Returns whether `host`, in lower case and without port, matches.
    pub fn matches(&self, host: &str) -> bool {
        match self {
            Self::Exact(name) => host == name,
            Self::Below(name) => {
                let labels = host.strip_suffix(name).and_then(|rest| rest.strip_suffix('.'));
                labels.is_some_and(|labels| !labels.is_empty())
            }
        }
    }
}

/// How a route changes the path. Query and percent-encoding stay as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Rewrite {
    /// The path stays as it is.
    #[default]
    Keep,
    /// Removes these segments at the start, which are also the start of the route's prefix.
    Strip(String),
    /// Uses this path instead.
    Replace(String),
}

impl Rewrite {
    /// Returns the path that the pod gets.
    pub fn apply<'a>(&'a self, path: &'a str) -> Cow<'a, str> {
        match self {
            Self::Keep => path.into(),
            Self::Replace(path) => path.as_str().into(),
            Self::Strip(prefix) => match path.strip_prefix(prefix.as_str()) {
                // A path that starts with `//` would mean another host to a URL parser
                // (RFC 3986 §4.2).
                Some(rest) => match rest.trim_start_matches('/') {
                    "" => "/".into(),
                    trimmed => rest[rest.len() - trimmed.len() - 1..].into(),
                },
                None => path.into(),
            },
        }
    }
}

/// Returns whether `path` has segments of one or two dots, percent-encoded or not, between slashes or
/// backslashes. Software that resolves them (RFC 3986 §5.2.4) sees another path than the router.
pub fn has_dot_segments(path: &str) -> bool {
    let is_dots = |segment: &str| {
        let plain = segment.replace("%2e", ".").replace("%2E", ".");
        plain == "." || plain == ".."
    };
    // A quick check: such segments start with `.` or `%` and have at most six characters.
    let suspicious = |segment: &&str| segment.len() <= 6 && segment.starts_with(['.', '%']);
    path.split(['/', '\\']).filter(suspicious).any(is_dots)
}

/// The indexes of routes by path prefix; routes with methods come first.
type Paths = HashMap<String, Vec<usize>>;

/// The indexes of two routes that match the same requests equally well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteTie {
    pub first: usize,
    pub second: usize,
}

/// Finds the route of a request.
#[derive(Clone, Debug)]
pub struct Router<S> {
    routes: Vec<Route<S>>,
    exact: HashMap<String, Paths>,
    below: HashMap<String, Paths>,
    any: Paths,
    /// The lengths of the longest prefix and of the longest wildcard host. Longer parts of a request
    /// are not looked up, so that a hostile path of a thousand segments costs no more than others.
    longest_prefix: usize,
    longest_host: usize,
}

impl<S> Default for Router<S> {
    fn default() -> Self {
        Self {
            routes: Vec::new(),
            exact: HashMap::new(),
            below: HashMap::new(),
            any: HashMap::new(),
            longest_prefix: 0,
            longest_host: 0,
        }
    }
}

impl<S> Router<S> {
    /// Creates a router for `routes`.
    ///
    /// # Errors
    /// Returns a [`RouteTie`] if a request may match two routes and neither is more specific.
    pub fn new(routes: Vec<Route<S>>) -> Result<Self, RouteTie> {
        let mut router = Self::default();
        for (index, route) in routes.iter().enumerate() {
            router.longest_prefix = router.longest_prefix.max(route.path_prefix.len());
            let paths = match &route.host {
                Some(HostPattern::Exact(host)) => router.exact.entry(host.clone()).or_default(),
                Some(HostPattern::Below(host)) => {
                    router.longest_host = router.longest_host.max(host.len());
                    router.below.entry(host.clone()).or_default()
                }
                None => &mut router.any,
            };
            let equals = paths.entry(route.path_prefix.clone()).or_default();
            let ties = |other: &&usize| may_match_same(&routes[**other].methods, &route.methods);
            if let Some(other) = equals.iter().find(ties) {
                return Err(RouteTie { first: *other, second: index });
            }
            equals.push(index);
            equals.sort_by_key(|index| routes[*index].methods.is_empty());
        }
        router.routes = routes;
        Ok(router)
    }

    /// Returns the most specific route for a request to `host` (as in the `Host` field) and `path`
    /// (without query, percent-encoding as received).
    pub fn find(&self, host: &str, path: &str, method: &str) -> Option<&Route<S>> {
        let find_path = |paths: &Paths| self.find_path(paths, path, method);
        // Most configurations route by path only.
        if !(self.exact.is_empty() && self.below.is_empty()) {
            let name = host_name(host);
            let exact = self.exact.get(name.as_ref()).and_then(find_path);
            let below = || {
                let dots = name.match_indices('.').filter(|(at, _)| *at > 0);
                let suffixes = dots.map(|(at, _)| &name[at + 1..]);
                let known = suffixes.filter(|suffix| suffix.len() <= self.longest_host);
                known.filter_map(|suffix| self.below.get(suffix)).find_map(find_path)
            };
            if let Some(route) = exact.or_else(below) {
                return Some(route);
            }
        }
        find_path(&self.any)
    }

    fn find_path(&self, paths: &Paths, path: &str, method: &str) -> Option<&Route<S>> {
        let cuts = path.rmatch_indices('/').map(|(at, _)| at);
        let lengths = std::iter::once(path.len()).chain(cuts).chain([0]);
        lengths.filter(|length| *length <= self.longest_prefix).find_map(|length| {
            let mut routes = paths.get(&path[..length])?.iter().map(|index| &self.routes[*index]);
            routes.find(|route| route.methods.is_empty() || has_method(&route.methods, method))
        })
    }

    /// Replaces the service of each route by `name(service)`.
    pub fn map_services<T>(self, name: impl Fn(S) -> T) -> Router<T> {
        let routes = self.routes.into_iter().map(|route| Route {
            host: route.host,
            path_prefix: route.path_prefix,
            methods: route.methods,
            rewrite: route.rewrite,
            service: name(route.service),
        });
        Router {
            routes: routes.collect(),
            exact: self.exact,
            below: self.below,
            any: self.any,
            longest_prefix: self.longest_prefix,
            longest_host: self.longest_host,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }
}

fn has_method(methods: &[String], method: &str) -> bool {
    methods.iter().any(|known| known == method)
}

/// Returns whether a request may match two routes with the same host and prefix and these methods.
fn may_match_same(some: &[String], others: &[String]) -> bool {
    match (some, others) {
        ([], []) => true,
        ([], _) | (_, []) => false,
        _ => some.iter().any(|method| has_method(others, method)),
    }
}

/// Returns the name in a `Host` field in lower case, without port and final dot.
fn host_name(host: &str) -> Cow<'_, str> {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => name,
        _ => host,
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        name.to_ascii_lowercase().into()
    } else {
        name.into()
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, sample::select};

    use super::*;

    fn route(host: &str, prefix: &str, methods: &[&str], service: usize) -> Route<usize> {
        let host = (!host.is_empty()).then(|| HostPattern::parse(host).unwrap());
        let methods = methods.iter().map(|method| (*method).to_owned()).collect();
        Route { host, path_prefix: prefix.to_owned(), methods, service, ..Route::default() }
    }

    fn found(router: &Router<usize>, host: &str, path: &str, method: &str) -> Option<usize> {
        router.find(host, path, method).map(|route| route.service)
    }

    #[test]
    fn prefixes_match_whole_segments() {
        let router = Router::new(vec![route("", "/ws", &[], 0)]).unwrap();
        for path in ["/ws", "/ws/", "/ws/echo", "/ws//x"] {
            assert_eq!(found(&router, "a", path, "GET"), Some(0), "{path}");
        }
        for path in ["/", "/wsx", "/w", "/WS", "/%77s", "*", "//ws"] {
            assert_eq!(found(&router, "a", path, "GET"), None, "{path}");
        }
    }

    #[test]
    fn the_most_specific_route_wins() {
        let router = Router::new(vec![
            route("", "", &[], 0),
            route("", "/a/b", &[], 1),
            route("*.example", "", &[], 2),
            route("*.b.example", "", &[], 3),
            route("x.b.example", "/a", &[], 4),
            route("x.b.example", "/a", &["PUT"], 5),
        ])
        .unwrap();
        for (host, path, method, service) in [
            ("other", "/", "GET", 0),
            ("other", "/a/b/c", "GET", 1),
            ("a.example:8080", "/a/b", "GET", 2),
            ("A.EXAMPLE.", "/a/b", "GET", 2),
            ("example", "/", "GET", 0),
            ("y.b.example", "/a", "GET", 3),
            ("x.b.example", "/a/c", "GET", 4),
            ("x.b.example", "/a/c", "PUT", 5),
            ("x.b.example", "/other", "GET", 3),
            ("[::1]:80", "/", "GET", 0),
        ] {
            assert_eq!(found(&router, host, path, method), Some(service), "{method} {host}{path}");
        }
    }

    #[test]
    fn equal_routes_are_rejected() {
        let new = |routes| Router::new(routes).map(drop);
        let wide = route("a", "/x", &[], 0);
        assert_eq!(
            new(vec![wide.clone(), route("b", "/x", &[], 0), wide.clone()]),
            Err(RouteTie { first: 0, second: 2 })
        );
        let (get, put) = (route("a", "/x", &["GET"], 0), route("a", "/x", &["PUT"], 0));
        assert_eq!(new(vec![get.clone(), put, wide]), Ok(()));
        assert_eq!(
            new(vec![route("a", "/x", &["PUT", "GET"], 0), get]),
            Err(RouteTie { first: 0, second: 1 })
        );
    }

    #[test]
    fn rewriting_keeps_the_rest_of_the_path() {
        let strip = Rewrite::Strip("/ws".to_owned());
        for (path, rewritten) in
            [("/ws", "/"), ("/ws/", "/"), ("/ws/a%20b", "/a%20b"), ("/ws///x//y", "/x//y")]
        {
            assert_eq!(strip.apply(path), rewritten);
        }
        assert_eq!(Rewrite::Replace("/socket".to_owned()).apply("/ws/a"), "/socket");
        assert_eq!(Rewrite::Keep.apply("/ws/a"), "/ws/a");
    }

    #[test]
    fn dot_segments_are_found_in_any_notation() {
        for with in ["/..", "/a/../b", "/a/./b", "/%2e%2E/a", "/.%2e", "/a/%2e", "/a\\..\\b"] {
            assert!(has_dot_segments(with), "{with}");
        }
        for without in ["/", "/a..", "/...", "/.well-known/x", "/a.b/c", "/%2ea", "/a//b", "*"] {
            assert!(!has_dot_segments(without), "{without}");
        }
    }

    /// A simple reference: compares all matching routes by host, path and methods.
    fn naive(routes: &[Route<usize>], host: &str, path: &str, method: &str) -> Option<usize> {
        let specificity = |route: &Route<usize>| {
            let host = match &route.host {
                None => (0, 0),
                Some(pattern) if !pattern.matches(host) => return None,
                Some(HostPattern::Below(name)) => (1, name.len()),
                Some(HostPattern::Exact(_)) => (2, 0),
            };
            let prefix = &route.path_prefix;
            if !(path == prefix || path.starts_with(&format!("{prefix}/")) || prefix.is_empty()) {
                return None;
            }
            let methods = !route.methods.is_empty();
            if methods && !route.methods.contains(&method.to_owned()) {
                return None;
            }
            Some((host, prefix.len(), methods))
        };
        let matching = routes.iter().filter_map(|route| Some((specificity(route)?, route.service)));
        matching.max_by_key(|(specificity, _)| *specificity).map(|(_, service)| service)
    }

    proptest! {
        #[test]
        fn the_router_agrees_with_a_naive_matcher(
            routes in prop::collection::vec(
                (select(vec!["", "a", "b.a", "*.a", "*.b.a", "c.b.a"]),
                 select(vec!["", "/x", "/x/y", "/x/y/z", "/y", "/xx", "/x/%2F"]),
                 select(vec![&[][..], &["GET"], &["PUT", "POST"]])),
                0..200),
            requests in prop::collection::vec(
                (select(vec!["a", "b.a", "c.b.a", "d.c.b.a", "x", ".a", "a.", ""]),
                 "(/|/x|/y|/z|/%2F|/xx|x){0,5}",
                 select(vec!["GET", "PUT", "POST", "HEAD"])),
                1..50),
        ) {
            // Leaves out routes that tie with an earlier one, because `new` would fail.
            let mut untied: Vec<Route<usize>> = Vec::new();
            for (host, prefix, methods) in routes {
                let mut with = untied.clone();
                with.push(route(host, prefix, methods, untied.len()));
                if Router::new(with.clone()).is_ok() {
                    untied = with;
                }
            }
            let router = Router::new(untied.clone()).unwrap();
            for (host, path, method) in requests {
                let name = host.strip_suffix('.').unwrap_or(host);
                prop_assert_eq!(
                    found(&router, host, &path, method), naive(&untied, name, &path, method),
                    "{} {} {}", method, host, path
                );
            }
        }
    }
}
