use std::io::Write as _;

use log::LevelFilter;

use super::*;
use crate::{
    config::AffinitySettings,
    domain::balance::settings::Capacity,
    net::dns::{DnsSource, HostName},
};

fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn resolve(file: Option<&str>, variables: &[(&str, &str)]) -> Result<Config, Problems> {
    let path = file.map(|text| {
        let name = format!("wsbalancer-{}-{:x}.toml", std::process::id(), fastrand::u64(..));
        let path = std::env::temp_dir().join(name);
        std::fs::File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
        path
    });
    let layers = Layers::new(path.as_deref(), env(variables));
    if let Some(path) = path {
        std::fs::remove_file(path).unwrap();
    }
    Config::resolve(layers?)
}

#[test]
fn the_services_variable_is_enough() {
    let config =
        resolve(None, &[("WSBALANCER_SERVICES", "http://127.0.0.1:3001,http://127.0.0.1:3002")])
            .unwrap();
    let [service] = &config.services[..] else { panic!("not one service") };
    let addresses: Vec<_> = service.backends.iter().map(|pod| pod.address.as_str()).collect();
    assert_eq!(addresses, ["127.0.0.1:3001", "127.0.0.1:3002"]);
    assert_eq!(config.server.listen.to_string(), "0.0.0.0:8080");
    assert_eq!(service.balancer.pool.stale_after, Duration::from_secs(30));
    assert!(config.server.workers >= 1);
}

#[test]
fn the_environment_overrides_the_file_and_the_file_the_defaults() {
    let file = "services = [\"http://a:3001\"]\n[server]\nworkers = 3\nlisten = \"127.0.0.1:1\"";
    let variables = [("WSBALANCER__SERVER__LISTEN", "127.0.0.1:2"), ("WSBALANCER__LOG__LEVEL", "")];
    let config = resolve(Some(file), &variables).unwrap();
    assert_eq!(config.server.listen.to_string(), "127.0.0.1:2");
    assert_eq!(config.server.workers, 3);
    assert_eq!(config.log.level, LevelFilter::Info, "an empty variable counts as unset");
    assert!(
        config
            .to_string()
            .contains("server.listen = \"127.0.0.1:2\"  # WSBALANCER__SERVER__LISTEN")
    );
}

#[test]
fn all_problems_are_reported_together() {
    let file = "[servr]\n[server]\nlisen = \"x\"\n[balancer]\npoll_interval = 3\nretries = -1\n[log]\nlevel = \"inf\"";
    let variables = [
        (
            "WSBALANCER_SERVICES",
            "http://a:3001,ftp://b,http://a:3001,http://c/path,http://:1,http://d#x",
        ),
        ("WSBALANCER__ADMIN__LISTEN", "9090"),
    ];
    let problems = resolve(Some(file), &variables).unwrap_err().to_string();
    for expected in [
        "11 problems",
        "servr (from ",
        "unknown key; did you mean \"server.listen\"?",
        "balancer.poll_interval = \"3\"",
        "expected a duration with its unit, 100ms to 1h",
        "balancer.retries = \"-1\"",
        "expected one of error, warn, info, debug, trace; did you mean \"info\"?",
        "(from WSBALANCER__ADMIN__LISTEN): expected IP address and port",
        "\"ftp://b\": expected a pod's URL",
        "\"http://:1\": expected a pod's URL",
        "\"http://d#x\": expected a pod's URL such as http://pod:3001, without path",
        "\"http://a:3001\" is listed twice",
        "\"http://c/path\": expected a pod's URL such as http://pod:3001, without path",
    ] {
        assert!(problems.contains(expected), "{expected:?} is missing in:\n{problems}");
    }
}

#[test]
fn pods_can_have_weights_and_limits() {
    let variables =
        [("WSBALANCER_SERVICES", "http://a:1 weight=2.5, http://b:1 max_connections=9,http://c:1")];
    let config = resolve(None, &variables).unwrap();
    let ServiceSettings { backends, balancer, .. } = &config.services[0];
    let capacities = &balancer.pool.capacities;
    let urls: Vec<_> = backends.iter().map(|pod| pod.url.as_str()).collect();
    assert_eq!(urls, ["http://a:1", "http://b:1", "http://c:1"]);
    assert_eq!(capacities["a:1"], Capacity { weight: 2.5, max_connections: None });
    assert_eq!(capacities["b:1"], Capacity { weight: 1.0, max_connections: Some(9) });
    assert_eq!(capacities.len(), 2);

    let wrong = "http://a:1 weight=0,http://b:1 max_connections=0,http://c:1 wieght=3";
    let problems = resolve(None, &[("WSBALANCER_SERVICES", wrong)]).unwrap_err().to_string();
    for expected in [
        "\"http://a:1 weight=0\": expected weight=0.01 to 1000",
        "\"http://b:1 max_connections=0\": expected a whole number, at least 1",
        "\"wieght=3\": unknown option, expected weight=3 or max_connections=500",
    ] {
        assert!(problems.contains(expected), "{expected:?} is missing in:\n{problems}");
    }
}

#[test]
fn passwords_in_urls_are_refused_and_not_printed() {
    for (url, shown) in [
        ("http://me:s3cret@a:1", "http://***@a:1"),
        ("http://a:1,https://s3cret@b,http://x:s3cret@c/?s3", "a:1,https://***@b,http://***@c/?s3"),
    ] {
        let problems = resolve(None, &[("WSBALANCER_SERVICES", url)]).map(drop).unwrap_err();
        let problems = problems.to_string();
        assert!(
            problems.contains("without user name and password") && !problems.contains("s3cret"),
            "{problems}"
        );
        assert!(problems.contains(shown), "{problems}");
    }
    let file = "[services.a]\ndiscovery = { dns = \"http://me:s3cret@a:1\" }\n";
    let problems = resolve(Some(file), &[]).map(drop).unwrap_err().to_string();
    assert!(problems.contains("***@a:1") && !problems.contains("s3cret"), "{problems}");
}

#[test]
fn an_invalid_port_is_refused_instead_of_using_the_default() {
    for (url, port) in [
        ("http://127.0.0.1:99999", "99999"),
        ("https://127.0.0.1:443000", "443000"),
        ("http://[::1]:65536", "65536"),
        ("http://a:0", "0"),
        ("http://a:x", "x"),
    ] {
        let problems = resolve(None, &[("WSBALANCER_SERVICES", url)]).map(drop).unwrap_err();
        let advice = "expected a port from 1 to 65535 in the pod's URL";
        let expected = format!("services = {url:?} (from WSBALANCER__SERVICES): {url:?}: {advice}");
        let problems = problems.to_string();
        assert!(
            problems.contains(&expected) && problems.contains(&format!("{port:?}\n")),
            "{problems}"
        );
    }
    for (kind, url) in [("dns", "http://feed:80800"), ("srv", "http://_ws._tcp.feed:80800")] {
        let file = format!("[services.feed]\ndiscovery = {{ {kind} = \"{url}\" }}\n");
        let problems = resolve(Some(&file), &[]).map(drop).unwrap_err().to_string();
        assert!(problems.contains("a port from 1 to 65535"), "{problems}");
    }
    let urls = "http://a,https://b,http://c:,http://[::1]:65535,ws://[::1],http://d:1";
    let config = resolve(None, &[("WSBALANCER_SERVICES", urls)]).unwrap();
    let pods = config.services[0].backends.iter();
    let addresses: Vec<_> = pods.map(|pod| pod.address.as_str()).collect();
    assert_eq!(addresses, ["a:80", "b:443", "c:80", "[::1]:65535", "[::1]:80", "d:1"]);
}

#[test]
fn the_problem_of_no_pods_names_the_variable() {
    let problems = resolve(None, &[]).unwrap_err();
    assert_eq!(problems.0.len(), 1);
    assert!(problems.to_string().contains("WSBALANCER_SERVICES"), "{problems}");
}

#[test]
fn a_missing_or_invalid_file_is_named() {
    let problems = resolve(Some("services = ["), &[]).unwrap_err().to_string();
    assert!(problems.contains(".toml") && problems.contains("TOML"), "{problems}");
    let missing = Layers::new(Some(std::path::Path::new("/no/such.toml")), []).unwrap_err();
    assert!(missing.to_string().contains("/no/such.toml"), "{missing}");
}

#[test]
fn nested_lists_are_refused_at_any_depth() {
    let text = format!("services = {}1{}\n", "[".repeat(60), "]".repeat(60));
    let problems = resolve(Some(&text), &[]).unwrap_err().to_string();
    assert!(problems.contains("services = \"[…]\""), "{problems}");
}

#[test]
fn parse_errors_do_not_quote_the_file() {
    let text = "services = []\n[balancer]\nset_headers = [\"Authorization: Bearer s3cret]\n";
    let problems = resolve(Some(text), &[]).unwrap_err().to_string();
    assert!(problems.contains("line 3, column ") && !problems.contains("s3cret"), "{problems}");
}

#[test]
fn variables_that_kubernetes_sets_for_a_service_are_ignored() {
    let variables = [
        ("WSBALANCER_SERVICES", "http://a:3001"),
        ("WSBALANCER_SERVICE_HOST", "10.0.0.1"),
        ("WSBALANCER_PORT", "tcp://10.0.0.1:8080"),
    ];
    resolve(None, &variables).unwrap();
}

const TWO: &str = "[services.chat]\nbackends = [\"https://a\", \"unix:/run/b.sock\"]\n\
                   affinity = \"cookie\"\nretries = 5\n\
                   [services.web]\nbackends = [\"http://a\"]\n";

#[test]
fn a_service_table_overrides_the_balancer_section() {
    let routes = "[[routes]]\npath_prefix = \"/chat/\"\nstrip_prefix = \"/chat\"\n\
                  service = \"chat\"\n[[routes]]\nservice = \"web\"\n";
    let file = format!("[balancer]\nretries = 7\ntls_verify = false\n{TWO}{routes}");
    let variables = [
        ("WSBALANCER__SERVICES__CHAT__COOKIE_KEY", "a secret of some length"),
        ("WSBALANCER__BALANCER__READ_TIMEOUT", "7s"),
    ];
    let config = resolve(Some(&file), &variables).unwrap();
    let [chat, web] = &config.services[..] else { panic!("not two services") };
    assert_eq!((chat.name.as_str(), web.name.as_str()), ("chat", "web"));
    assert_eq!((chat.balancer.retries, web.balancer.retries), (5, 7));
    assert_eq!(web.balancer.read_timeout, Duration::from_secs(7));
    let addresses: Vec<_> = chat.backends.iter().map(|pod| pod.address.as_str()).collect();
    assert_eq!(addresses, ["a:443", "/run/b.sock"]);
    assert!(chat.balancer.connect.tls.is_some() && web.balancer.connect.tls.is_none());
    assert!(
        matches!(&chat.balancer.affinity, AffinitySettings::Cookie(cookie) if cookie.key_is_shared)
    );
    let service = |path| config.router.find("any", path, "GET").map(|route| route.service.as_str());
    assert_eq!((service("/chat/x"), service("/chatter")), (Some("chat"), Some("web")));
    assert!(!config.to_string().contains("some length"), "secrets are not printed");
    let printed = config.to_string();
    let again = Layers::from_texts(Some(&printed), []).and_then(Config::resolve);
    assert_eq!(
        again.map(|config| config.services.len()),
        Ok(2),
        "the printed settings are a valid file:\n{printed}"
    );
}

#[test]
fn problems_in_services_and_routes_are_reported() {
    let file = format!(
        "[balancer]\ncookie_key = \"short\"\ntls_verify = false\n{TWO}\
         polls = 3\n[services.Empty]\n\
         [services.hashed]\nbackends = [\"http://c\"]\naffinity = \"header\"\n\
         tls_cert_file = \"/no/such.pem\"\n\
         allowed_origins = [\"chat.example\"]\n\
         [[routes]]\nservice = \"chta\"\n\
         [[routes]]\nhost = \"a:80\"\npath_prefix = \"/a\"\nstrip_prefix = \"/b\"\n\
         [[routes]]\nservice = \"web\"\nmethods = [\"get\"]\npath = \"/x\"\n"
    );
    let variables = [("WSBALANCER_SERVICES", "http://d")];
    let problems = resolve(Some(&file), &variables).unwrap_err().to_string();
    for expected in [
        "services = \"http://d\" (from WSBALANCER__SERVICES): a list of pods and [services.NAME] tables",
        "services.Empty.backends (from /",
        "balancer.cookie_key (from ",
        "has 5 characters, expected at least 16",
        "services.web.polls (from ",
        "balancer.affinity_header = \"\" (from default): is required by affinity",
        "services.hashed.tls_key_file (from ",
        "\"chat.example\": expected an origin such as https://chat.example.org",
        "routes.0.service = \"chta\"",
        "did you mean \"chat\"?",
        "routes.1.host = \"a:80\"",
        "routes.1.strip_prefix = \"/b\"",
        "must be path_prefix (\"/a\") or its first segments",
        "): is required: set it to the name of a service",
        "\"get\": expected methods such as GET",
        "routes.2.path (from ",
        "did you mean \"routes.2.path_prefix\"?",
    ] {
        assert!(problems.contains(expected), "{expected:?} is missing in:\n{problems}");
    }
    assert!(!problems.contains("\"short\""), "secrets are not printed");
    let shared = problems.matches("balancer.cookie_key").count();
    assert_eq!(shared, 1, "a shared key is reported once:\n{problems}");
}

#[test]
fn a_service_needs_a_name() {
    let file = "[services.\"\"]\nbackends = [\"http://a\"]\n[[routes]]\nservice = \"\"\n";
    let problems = resolve(Some(file), &[]).map(drop).unwrap_err().to_string();
    assert!(problems.contains("services. (from /"), "{problems}");
    assert!(problems.contains("): expected a service name of lower-case"), "{problems}");
}

#[test]
fn several_services_need_routes_without_ties() {
    let problems = resolve(Some(&format!("[balancer]\ntls_verify = false\n{TWO}")), &[]);
    let problems = problems.unwrap_err().to_string();
    assert!(problems.contains("): are required with several services"), "{problems}");
    let tie = "[[routes]]\nservice = \"web\"\n[[routes]]\nservice = \"chat\"\n";
    let problems = resolve(Some(&format!("[balancer]\ntls_verify = false\n{TWO}{tie}")), &[]);
    let problems = problems.unwrap_err().to_string();
    assert!(problems.contains("): is as specific as routes.0"), "{problems}");
}

#[test]
fn a_cookie_that_browsers_reject_is_a_problem() {
    let with = |key: &str, value: &str| {
        let key = format!("WSBALANCER__BALANCER__{key}");
        let variables = [
            ("WSBALANCER_SERVICES", "http://a"),
            ("WSBALANCER__BALANCER__AFFINITY", "cookie"),
            ("WSBALANCER__BALANCER__COOKIE_SECURE", "false"),
            (&key, value),
        ];
        resolve(None, &variables).map(drop).map_err(|problems| problems.to_string())
    };
    assert_eq!(with("COOKIE_PATH", "/chat"), Ok(()));
    for (key, value, named) in [
        ("COOKIE_SAME_SITE", "none", "balancer.cookie_secure = \"false\""),
        ("COOKIE_NAME", "__Secure-pod", "balancer.cookie_name = \"__Secure-pod\""),
        ("COOKIE_NAME", "a b", "balancer.cookie_name = \"a b\""),
        ("COOKIE_PATH", "/a;b", "balancer.cookie_path = \"/a;b\""),
        ("REPLICAS", "2", "balancer.cookie_key (from default): is required"),
    ] {
        let problems = with(key, value).unwrap_err();
        assert!(problems.contains(named), "{named:?} is missing in:\n{problems}");
    }
}

#[test]
fn pods_can_be_discovered() {
    let file = "[balancer]\ntls_verify = false\nnameservers = [\"10.0.0.2\", \"[::1]:5353\"]\n\
                replicas = \"dns:balancers.\"\ndiscovery_max_ttl = \"5s\"\n\
                [services.chat]\ndiscovery = { dns = \"https://chat-headless.\" }\n\
                [services.video]\ndiscovery.srv = \"https://_ws._tcp.video\"\n\
                tls_server_name = \"pod.video\"\nreplicas = 2\nnameservers = []\n\
                [services.voice]\ndiscovery.srv = \"wss://_ws._tcp.voice\"\n\
                [[routes]]\nservice = \"chat\"\n";
    let config = resolve(Some(file), &[]).unwrap();
    let [chat, video, voice] = &config.services[..] else { panic!("not three services") };
    let pod = chat.discovery.clone().unwrap().pod;
    assert_eq!((pod.url.as_str(), pod.service.as_str()), ("https://chat-headless.", "chat"));
    assert!(chat.backends.is_empty());
    let Some(DnsSource::Host { name, port }) = chat.discovery.as_ref().map(|found| &found.source)
    else {
        panic!("{:?}", chat.discovery)
    };
    assert_eq!((name.as_str(), *port), ("chat-headless.", 443));
    assert_eq!(
        video.discovery.as_ref().map(|found| &found.source),
        Some(&DnsSource::Srv(HostName::parse("_ws._tcp.video").unwrap()))
    );
    let named = |service: &ServiceSettings| format!("{:?}", service.balancer.connect.tls);
    for (service, name) in [(chat, "chat-headless"), (video, "pod.video"), (voice, "voice")] {
        assert!(named(service).contains(&format!("(\"{name}\")")), "{}", named(service));
    }
    let counted = |service: &ServiceSettings| {
        let name = service.balancer.replicas_name.as_ref().map(|name| name.as_str().to_owned());
        (service.balancer.pool.replicas, name)
    };
    assert_eq!(counted(chat), (1, Some("balancers.".to_owned())));
    assert_eq!(counted(video), (2, None));
    let servers: Vec<_> = ["10.0.0.2:53", "[::1]:5353"].map(|text| text.parse().unwrap()).into();
    assert_eq!(chat.balancer.resolver.servers.clone().unwrap().addresses, servers);
    assert_eq!(video.balancer.resolver.servers, None, "the system's name servers");
    assert_eq!(chat.balancer.resolver.bounds.max, Duration::from_secs(5));
}

#[test]
fn problems_in_discovery_are_reported() {
    let file = "[balancer]\ndiscovery_min_ttl = \"1m\"\nnameservers = [\"dns.local\"]\n\
                [services.a]\nbackends = [\"http://a\"]\ndiscovery = { dns = \"http://a\" }\n\
                [services.b]\ndiscovery = { dns = \"http://b\", srv = \"http://_b._tcp.b\" }\n\
                [services.c]\ndiscovery = {}\n\
                [services.d]\ndiscovery = { dsn = \"http://d\" }\n\
                [services.e]\ndiscovery = { dns = \"unix:/e\" }\n\
                [services.f]\ndiscovery = { srv = \"http://_f._tcp.f:80\" }\n\
                [services.g]\ndiscovery = { srv = \"http://[::1]\" }\n\
                [services.h]\ndiscovery = { dns = \"http://h..h/x\" }\n\
                [services.i]\ndiscovery = { dns = \"http://i..i\" }\n\
                replicas = \"dns:\"\n\
                [services.j]\ndiscovery = { dns = \"https://j.1\" }\ntls_verify = false\n\
                replicas = \"dns:j\"\naffinity = \"cookie\"\n\
                [[routes]]\nservice = \"a\"\n";
    let problems = resolve(Some(file), &[]).unwrap_err().to_string();
    for expected in [
        "balancer.discovery_max_ttl = \"30s\" (from default): must not be shorter than",
        "\"dns.local\": expected the IP address of a name server",
        "services.a.discovery.dns = \"http://a\"",
        "cannot be used together with backends",
        "services.b.discovery.srv = \"http://_b._tcp.b\"",
        "cannot be used together with dns",
        "services.c.discovery = \"\"",
        "expected a table: { dns = ",
        "services.d.discovery.dsn (from ",
        "did you mean \"services.d.discovery.dns\"?",
        "services.d.backends (from ",
        "expected a URL with a name to look up",
        "expected no port: SRV records contain the ports",
        "IP addresses have no SRV records",
        "without path: requests keep their own paths",
        "services.i.discovery.dns = \"http://i..i\"",
        "services.i.replicas = \"dns:\"",
        "expected a DNS name such as chat-headless",
        "balancer.tls_server_name = \"\" (from default): is required",
        "balancer.cookie_key (from default): is required",
    ] {
        assert!(problems.contains(expected), "{expected:?} is missing in:\n{problems}");
    }
}

#[test]
fn problems_of_drain_and_token_are_reported_without_the_token() {
    let with = |key: &str, value: &str| {
        let variables = [("WSBALANCER_SERVICES", "http://a"), (key, value)];
        let config = resolve(None, &variables);
        config.map(|config| config.to_string()).map_err(|problems| problems.to_string())
    };
    for (key, value, named) in [
        (
            "WSBALANCER__SERVER__SHUTDOWN_TIMEOUT",
            "19s",
            "server.drain_time = \"20s\" (from default): must not be longer than shutdown_timeout",
        ),
        (
            "WSBALANCER__BALANCER__CLOSE_CODE_DRAIN",
            "1006",
            "balancer.close_code_drain = \"1006\" (from WSBALANCER__BALANCER__CLOSE_CODE_DRAIN): \
             expected 1000 to 4999, but not",
        ),
        ("WSBALANCER__BALANCER__ON_EJECTED", "stay", "expected one of leave, close"),
        ("WSBALANCER__ADMIN__TOKEN", "two words", "admin.token (from WSBALANCER__ADMIN__TOKEN)"),
    ] {
        let problems = with(key, value).unwrap_err();
        assert!(problems.contains(named), "{named:?} is missing in:\n{problems}");
        assert!(!problems.contains("two words"), "{problems}");
    }
    let printed = with("WSBALANCER__ADMIN__TOKEN", "s3cret").unwrap();
    assert!(printed.contains("admin.token = ***") && !printed.contains("s3cret"), "{printed}");
}

#[test]
fn header_fields_are_printed_without_their_values() {
    let file = "[balancer]\nset_headers = [\"Authorization: Bearer s3cret, s3cret\", \"X-A:s3cret\"]\n\
                [services.web]\nbackends = [\"http://a\"]\n\
                [[routes]]\nservice = \"web\"\n";
    let variables = [("WSBALANCER__SERVICES__WEB__ADD_HEADERS", "X-Key: s3cret,X-B: s3cret")];
    let printed = resolve(Some(file), &variables).unwrap().to_string();
    for expected in [
        "# balancer.set_headers = [\"Authorization: ***\", \"X-A: ***\"]  # /",
        "# services.web.add_headers = [\"X-Key: ***\", \"X-B: ***\"]  # WSBALANCER__",
        "\nbalancer.add_headers = []  # default",
    ] {
        assert!(printed.contains(expected), "{expected:?} is missing in:\n{printed}");
    }
    assert!(!printed.contains("s3cret"), "{printed}");
    let again = Layers::from_texts(Some(&printed), []).and_then(Config::resolve);
    assert!(
        again.unwrap().services[0].balancer.header_changes.set.is_empty(),
        "redacted values are comments"
    );

    // In a variable a comma within a value separates two items.
    let variables = [
        ("WSBALANCER_SERVICES", "http://a"),
        ("WSBALANCER__BALANCER__SET_HEADERS", "Authorization: Digest s3cret, s3cret"),
        ("WSBALANCER__BALANCER__ADD_HEADERS", "X A: s3cret,X-B: s3cret\u{7f}"),
    ];
    let problems = resolve(None, &variables).map(drop).unwrap_err().to_string();
    for expected in [
        "balancer.set_headers = \"Authorization: ***,***\" (from WSBALANCER__BALANCER__SET_HEADERS): \
         \"***\": expected \"Name: value\"",
        "\"X A: ***\": expected the name of a header field",
        "\"X-B: ***\": the value contains",
    ] {
        assert!(problems.contains(expected), "{expected:?} is missing in:\n{problems}");
    }
    assert!(!problems.contains("s3cret"), "{problems}");
}

#[test]
fn both_listeners_on_one_address_are_a_problem() {
    let variables =
        [("WSBALANCER_SERVICES", "http://a:3001"), ("WSBALANCER__ADMIN__LISTEN", "0.0.0.0:8080")];
    let problems = resolve(None, &variables).unwrap_err().to_string();
    assert!(problems.contains("admin.listen = \"0.0.0.0:8080\""), "{problems}");
}
