//! Settings that change while the balancer serves.

use std::{fs, io::Write as _, os::unix::fs::symlink, path::PathBuf};

use futures_util::{SinkExt as _, StreamExt as _, future::join_all};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::support::{
    Balancer,
    certificate::Certificate,
    client::{Client, connect, connect_with},
    dns::NameServer,
    eventually,
    pod::{Pod, answer, read_head, report},
    program::{Program, command},
};

/// A balancer with a configuration file.
struct Reloadable {
    program: Program,
    file: PathBuf,
}

impl Reloadable {
    /// Starts a balancer that reloads on request only.
    async fn start(toml: &str) -> Self {
        Self::start_with(toml, &[("WSBALANCER__ADMIN__WATCH_CONFIG", "false")]).await
    }

    /// Starts a balancer that watches its file.
    async fn watching(toml: &str) -> Self {
        Self::start_with(toml, &[("WSBALANCER__ADMIN__WATCH_CONFIG", "true")]).await
    }

    async fn start_with(toml: &str, variables: &[(&str, &str)]) -> Self {
        let name = format!("wsbalancer-reload-{}-{:x}", std::process::id(), fastrand::u64(..));
        let folder = std::env::temp_dir().join(name);
        fs::create_dir(&folder).unwrap();
        let file = folder.join("balancer.toml");
        fs::write(&file, toml).unwrap();
        Self { program: Self::run(&file, variables).await, file }
    }

    async fn run(file: &PathBuf, variables: &[(&str, &str)]) -> Program {
        let mut command = command();
        command.arg("run").arg("--config").arg(file).envs(variables.iter().copied());
        Program::start(command).await
    }

    fn admin(&self, path: &str) -> String {
        format!("http://{}{path}", self.program.admin)
    }

    /// Requests a reload and returns status, result and problems.
    async fn post(&self) -> (u16, String, Vec<String>) {
        let url = self.admin("/api/reload");
        let mut response = awc::Client::new().post(url).send().await.unwrap();
        let outcome: Value = response.json().await.unwrap();
        let at = outcome["at"].as_str().unwrap();
        assert!(humantime::parse_rfc3339(at).is_ok(), "{at}");
        let problems = outcome["problems"].as_array().unwrap();
        let problems = problems.iter().map(|problem| problem.as_str().unwrap().to_owned());
        let result = outcome["result"].as_str().unwrap().to_owned();
        (response.status().as_u16(), result, problems.collect())
    }

    /// Writes the file and applies it.
    async fn apply(&self, toml: &str) {
        fs::write(&self.file, toml).unwrap();
        assert_eq!(self.post().await, (200, "applied".to_owned(), vec![]));
    }

    async fn metrics(&self) -> Value {
        let url = self.admin("/balancer-metrics");
        awc::Client::new().get(url).send().await.unwrap().json().await.unwrap()
    }

    /// Returns the entry of `pod` in the metrics.
    async fn pod(&self, pod: &Pod) -> Value {
        let metrics = self.metrics().await;
        let all = metrics["services"].as_array().unwrap().clone();
        all.into_iter().find(|known| known["url"] == pod.url()).unwrap_or_default()
    }

    async fn text(&self, path: &str) -> String {
        let mut response = awc::Client::new().get(self.admin(path)).send().await.unwrap();
        String::from_utf8(response.body().await.unwrap().to_vec()).unwrap()
    }

    async fn reloads(&self, result: &str) -> u64 {
        let text = self.text("/telemetry").await;
        let name = format!("wsbalancer_reloads_total{{result=\"{result}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse().unwrap()
    }

    async fn connect(&self) -> Client {
        connect(self.program.traffic).await
    }

    async fn status(&self) -> u16 {
        match connect_with(self.program.traffic, &[]).await {
            Ok(_) => 101,
            Err(Error::Http(answer)) => answer.status().as_u16(),
            Err(error) => panic!("{error}"),
        }
    }
}

impl Drop for Reloadable {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.file.parent().unwrap());
    }
}

fn services(pods: &[&Pod]) -> String {
    let urls: Vec<String> = pods.iter().map(|pod| pod.url()).collect();
    format!("services = {urls:?}\n")
}

async fn echoes(client: &mut Client, text: &str) {
    client.send(Message::text(text)).await.unwrap();
    assert_eq!(client.next().await.unwrap().unwrap(), Message::text(text));
}

#[actix_rt::test]
async fn adding_and_removing_pods_keeps_sessions_and_counts() {
    let [a, b, c] = [Pod::echo().await, Pod::echo().await, Pod::echo().await];
    let balancer = Reloadable::start(&services(&[&a, &b])).await;
    let mut clients = join_all((0..4).map(|_| balancer.connect())).await;
    assert_eq!((a.open(), b.open()), (2, 2));

    balancer.apply(&services(&[&b, &c])).await;
    let own = async |pod: &Pod| balancer.pod(pod).await["own"].clone();
    eventually("two sessions on each of the first pods", async || {
        (own(&a).await, own(&b).await, own(&c).await) == (json!(2), json!(2), json!(0))
    })
    .await;
    let left = balancer.pod(&a).await;
    let reason = "no longer among the service's pods";
    assert_eq!((&left["state"], &left["reason"]), (&json!("draining"), &json!(reason)));
    clients.extend(join_all((0..2).map(|_| balancer.connect())).await);
    assert_eq!((a.open(), b.open(), c.open()), (2, 2, 2));

    balancer.apply(&services(&[&a, &b, &c])).await;
    assert_eq!(own(&a).await, json!(2), "unchanged");
    for (index, client) in clients.iter_mut().enumerate() {
        echoes(client, &index.to_string()).await;
    }
    eventually("six sessions", async || balancer.metrics().await["ownSessions"] == 6).await;
}

#[actix_rt::test]
async fn a_pod_with_an_equivalent_url_is_the_same_pod() {
    let pod = Pod::reporting(report(1)).await;
    let moves = "[balancer]\npoll_interval = \"100ms\"\npod_drain_time = \"1ms\"\n";
    let balancer = Reloadable::start(&(services(&[&pod]) + moves)).await;
    let mut client = balancer.connect().await;
    let url = pod.url().replace("http:", "ws:");
    balancer.apply(&format!("services = [{url:?}]\n{moves}")).await;
    pod.set_metric(report(5));
    eventually("a report", async || balancer.metrics().await["totalConnections"] == 5).await;
    let metrics = balancer.metrics().await;
    let pods = metrics["services"].as_array().unwrap();
    let entries = pods.iter().map(|pod| (&pod["url"], &pod["state"], &pod["own"]));
    assert_eq!(entries.collect::<Vec<_>>(), [(&json!(url), &json!("up"), &json!(1))]);
    echoes(&mut client, "not moved").await;
}

#[actix_rt::test]
async fn a_removed_service_cannot_be_drained() {
    let [a, b] = [Pod::echo().await, Pod::echo().await];
    let service = |name: &str, pod: &Pod| {
        let url = pod.url();
        format!("[services.{name}]\nbackends = [\"{url}\"]\n[[routes]]\nservice = \"{name}\"\n")
    };
    let chat = service("chat", &a);
    let both = chat.clone() + &service("web", &b) + "path_prefix = \"/web\"\n";
    let balancer = Reloadable::start(&both).await;
    let drain = async |name: &str| {
        let url = balancer.admin(&format!("/api/services/{name}/drain"));
        let mut answer = awc::Client::new().post(url).send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    balancer.apply(&chat).await;
    let unknown =
        |name: &str| (404, json!({"error": format!("no service with the name {name:?}")}));
    assert_eq!(drain("web").await, unknown("web"));
    assert_eq!(drain("never").await, unknown("never"));
    balancer.apply(&both).await;
    assert_eq!(drain("web").await.0, 200, "it is back");
    assert_eq!(drain("chat").await.0, 200);
}

/// A new service may have the same name.
#[actix_rt::test]
async fn the_drain_of_a_service_ends_when_the_service_is_removed() {
    let [old, web, new] = [Pod::echo().await, Pod::echo().await, Pod::echo().await];
    let service = |name: &str, pod: &Pod, path: &str| {
        let url = pod.url();
        format!(
            "[services.{name}]\nbackends = [\"{url}\"]\n\
             [[routes]]\nservice = \"{name}\"\npath_prefix = \"{path}\"\n"
        )
    };
    let rest = service("web", &web, "/web");
    let balancer = Reloadable::start(&(service("chat", &old, "/") + &rest)).await;
    let url = balancer.admin("/api/services/chat/drain");
    assert_eq!(awc::Client::new().post(url).send().await.unwrap().status(), 200);
    assert_eq!(balancer.status().await, 503);
    balancer.apply(&rest).await;
    balancer.apply(&(service("chat", &new, "/") + &rest)).await;
    assert_eq!(balancer.status().await, 101);
    assert_eq!((old.upgrades(), new.upgrades()), (0, 1));
}

#[actix_rt::test]
async fn a_configuration_that_is_not_a_text_file_is_refused() {
    let pod = Pod::echo().await;
    let balancer = Reloadable::start(&services(&[&pod])).await;
    fs::write(&balancer.file, [services(&[&pod]).as_bytes(), b"# caf\xe9\n"].concat()).unwrap();
    let (status, _, problems) = balancer.post().await;
    assert!(status == 422 && problems[0].contains("UTF-8"), "{problems:?}");
    fs::remove_file(&balancer.file).unwrap();
    fs::create_dir(&balancer.file).unwrap();
    let (status, _, problems) = balancer.post().await;
    assert!(status == 422 && problems[0].contains("not a regular file"), "{problems:?}");
}

#[actix_rt::test]
async fn an_invalid_file_changes_nothing_and_is_reported_everywhere() {
    let pod = Pod::echo().await;
    let balancer = Reloadable::start(&services(&[&pod])).await;
    let mut client = balancer.connect().await;
    assert_eq!(balancer.metrics().await.get("reload"), None, "no reload yet");
    let bad = services(&[&pod]) + "[balancer]\nretries = \"many\"\nmax_sessions = 1\nretreis = 1\n";
    fs::write(&balancer.file, bad).unwrap();
    let (status, result, problems) = balancer.post().await;
    assert_eq!((status, result.as_str()), (422, "invalid"));
    assert!(problems.iter().any(|problem| problem.contains("balancer.retries = \"many\"")));
    assert!(problems.iter().any(|problem| problem.contains("did you mean")), "{problems:?}");
    let reload = balancer.metrics().await["reload"].clone();
    assert_eq!((&reload["result"], &reload["problems"]), (&json!("invalid"), &json!(problems)));
    assert_eq!(balancer.reloads("invalid").await, 1);
    assert_eq!(balancer.status().await, 101, "max_sessions is not taken from it");
    echoes(&mut client, "still here").await;

    fs::write(&balancer.file, services(&[&pod])).unwrap();
    assert_eq!(balancer.post().await, (200, "unchanged".to_owned(), vec![]));
    assert_eq!(balancer.metrics().await["reload"]["result"], "unchanged");
    fs::remove_file(&balancer.file).unwrap();
    assert_eq!(balancer.post().await.0, 422);
    balancer.program.terminate();
}

#[actix_rt::test]
async fn a_change_that_needs_a_restart_is_named_and_the_whole_reload_is_refused() {
    let pod = Pod::echo().await;
    let balancer = Reloadable::start(&services(&[&pod])).await;
    let toml = "[admin]\nbalancer_metric_path = \"/where\"\n[log]\nformat = \"json\"\n\
                [server]\nmax_sessions = 1\n";
    fs::write(&balancer.file, services(&[&pod]) + toml).unwrap();
    let (status, result, problems) = balancer.post().await;
    assert_eq!((status, result.as_str()), (409, "refused"));
    assert_eq!(
        problems,
        [
            "admin.balancer_metric_path: \"/balancer-metrics\" -> \"/where\" requires a restart",
            "log.format: \"text\" -> \"json\" requires a restart",
        ]
    );
    let _held = [balancer.connect().await, balancer.connect().await];
    assert!(balancer.text("/api/config").await.contains("server.max_sessions = \"0\""));
    assert_eq!(balancer.reloads("refused").await, 1);
}

#[actix_rt::test]
async fn changed_limits_apply_immediately_and_count_existing_sessions() {
    let pod = Pod::echo().await;
    let base = services(&[&pod]);
    let balancer = Reloadable::start(&base).await;
    let mut held = vec![balancer.connect().await, balancer.connect().await];
    for (settings, status) in [
        ("[server]\nmax_sessions = 2\n", 503),
        ("[server]\nmax_sessions = 3\n", 101),
        ("[server]\nmax_sessions_per_address = 2\n", 429),
        ("[balancer]\nmax_sessions = 2\n", 503),
        ("[balancer]\nmax_sessions_per_pod = 2\n", 503),
        ("[balancer]\nallowed_origins = [\"https://chat.example\"]\n", 101),
    ] {
        balancer.apply(&(base.clone() + settings)).await;
        assert_eq!(balancer.status().await, status, "{settings}");
        eventually("the end of the extra session", async || pod.open() == held.len()).await;
    }
    for client in &mut held {
        echoes(client, "still in").await;
    }
    assert!(balancer.text("/api/config").await.contains("[\"https://chat.example\"]"));
}

#[actix_rt::test]
async fn a_changed_token_applies_immediately_and_is_never_shown() {
    let pod = Pod::echo().await;
    let base = services(&[&pod]);
    let mut balancer = Reloadable::start(&base).await;
    balancer.apply(&(base + "[admin]\ntoken = \"s3cret\"\n")).await;
    let url = balancer.admin("/api/reload");
    let client = awc::Client::new();
    assert_eq!(client.post(&url).send().await.unwrap().status(), 401);
    let with_token = client.post(&url).bearer_auth("s3cret").send().await.unwrap();
    assert_eq!(with_token.status(), 200);
    assert!(!balancer.text("/api/config").await.contains("s3cret"));
    let line = balancer.program.logs("reload applied").await;
    assert!(line.contains("admin.token: \"\" -> ***"), "{line}");
}

#[actix_rt::test]
async fn a_signal_and_a_changed_file_trigger_a_reload() {
    let [a, b] = [Pod::echo().await, Pod::echo().await];
    let balancer = Reloadable::watching(&services(&[&a])).await;
    fs::write(&balancer.file, services(&[&b])).unwrap();
    eventually("the changed file", async || balancer.reloads("applied").await == 1).await;
    let _client = balancer.connect().await;
    assert_eq!((a.open(), b.open()), (0, 1));

    fs::write(&balancer.file, "services = [").unwrap();
    eventually("the broken file", async || balancer.reloads("invalid").await == 1).await;
    let off = services(&[&b]) + "[admin]\nwatch_config = false\n";
    fs::write(&balancer.file, off).unwrap();
    eventually("the repaired file", async || balancer.reloads("unchanged").await == 1).await;
    balancer.program.signal("-HUP");
    eventually("the signal", async || balancer.reloads("unchanged").await == 2).await;
}

/// The process reads the file again as soon as it watches it, in case that the first read was too early.
#[actix_rt::test]
async fn a_file_that_is_being_written_during_the_start_is_read_completely() {
    let [a, b] = [Pod::echo().await, Pod::echo().await];
    let balancer = Reloadable::watching(&services(&[&a])).await;
    let mut writer = fs::File::create(&balancer.file).unwrap();
    writer.write_all(b"services = [").unwrap();
    let _first = balancer.connect().await;
    writer.write_all(services(&[&b]).trim_start_matches("services = [").as_bytes()).unwrap();
    drop(writer);
    eventually("the whole file", async || balancer.reloads("applied").await == 1).await;
    assert_eq!((a.open(), balancer.reloads("invalid").await), (1, 0));
    let _second = balancer.connect().await;
    assert_eq!(b.open(), 1);
}

#[actix_rt::test]
async fn a_swapped_config_map_triggers_a_reload() {
    let [a, b] = [Pod::echo().await, Pod::echo().await];
    let folder = std::env::temp_dir().join(format!(
        "wsbalancer-map-{}-{:x}",
        std::process::id(),
        fastrand::u64(..)
    ));
    fs::create_dir(&folder).unwrap();
    let version = |name: &str, toml: &str| {
        fs::create_dir(folder.join(name)).unwrap();
        fs::write(folder.join(name).join("balancer.toml"), toml).unwrap();
        symlink(name, folder.join("..data_tmp")).unwrap();
        fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
    };
    version("..1", &services(&[&a]));
    let file = folder.join("balancer.toml");
    symlink("..data/balancer.toml", &file).unwrap();
    let program = Reloadable::run(&file, &[]).await;
    let balancer = Reloadable { program, file };
    for (name, before, pod) in [("..2", "..1", &b), ("..3", "..2", &a)] {
        version(name, &services(&[pod]));
        fs::remove_dir_all(folder.join(before)).unwrap();
        eventually("the swap", async || balancer.pod(pod).await["state"] == "up").await;
    }
    assert_eq!(balancer.reloads("applied").await, 2);
}

#[actix_rt::test]
async fn services_and_routes_can_be_added_and_removed_and_keep_their_pods() {
    let [chat, web, feed] =
        [Pod::named("chat").await, Pod::named("web").await, Pod::named("feed").await];
    let service = |name: &str, pod: &Pod| {
        format!("[services.{name}]\nbackends = [\"{}\"]\nmetric_path = \"none\"\n", pod.url())
    };
    let route = |path: &str, name: &str| {
        format!("[[routes]]\npath_prefix = \"{path}\"\nservice = \"{name}\"\n")
    };
    let toml =
        [service("chat", &chat), service("web", &web), route("/ws", "chat"), route("/", "web")];
    let balancer = Reloadable::start(&toml.concat()).await;
    let _client = balancer.connect().await;
    let mut tunnel = chat.accept().await.into_websocket().await;
    // This connection stays open across the reload.
    let mut plain = TcpStream::connect(balancer.program.traffic).await.unwrap();
    assert_eq!(get(&mut plain, "/").await, "web");

    // "feed" sorts before "web" and must not be mistaken for it; "chat" is removed.
    let toml =
        [service("feed", &feed), service("web", &web), route("/f", "feed"), route("/", "web")];
    balancer.apply(&toml.concat()).await;
    assert_eq!(get(&mut plain, "/f").await, "feed");
    assert_eq!(get(&mut plain, "/ws").await, "web");
    let left = balancer.pod(&chat).await;
    assert_eq!((&left["own"], &left["state"]), (&json!(1), &json!("draining")));
    tunnel.send(Message::text("from a service that is no more")).await.unwrap();

    let toml = [service("chat", &chat), route("/ws", "chat")];
    balancer.apply(&toml.concat()).await;
    assert_eq!(balancer.pod(&chat).await["own"], 1, "it is back with its session");
    assert!(get(&mut plain, "/f").await.contains("no route"));
}

/// Sends a request on an open connection and returns the body of the response.
async fn get(stream: &mut TcpStream, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let head = read_head(stream).await.expect("an answer");
    let length = crate::support::pod::header(&head, "content-length").expect("a length");
    let mut body = vec![0; length.parse().unwrap()];
    stream.read_exact(&mut body).await.unwrap();
    String::from_utf8(body).unwrap()
}

#[actix_rt::test]
async fn a_reload_changes_metric_requests_and_starts_discovery() {
    let dns = NameServer::start().await;
    let whole = "{\"agentsConnections\": 2, \"other\": 7}";
    let pod = Pod::reporting(answer("200 OK", whole)).await;
    dns.set_a("chat.", 0, &["127.0.0.1"]);
    let base = services(&[&pod]);
    let balancer = Reloadable::start(&base).await;
    let reported = async |count: u64| {
        let what = format!("a report of {count}");
        eventually(&what, async || balancer.pod(&pod).await["reported"] == count).await;
    };
    reported(2).await;
    balancer.apply(&(base + "[balancer]\nmetric_count = \"/other\"\n")).await;
    reported(7).await;

    let discovered = |name: &str, replicas: &str| {
        format!(
            "[balancer]\nnameservers = [\"{}\"]\ndiscovery_min_ttl = \"100ms\"\n{replicas}\
             [services.default]\ndiscovery = {{ dns = \"http://{name}:{}\" }}\n",
            dns.address,
            pod.address.port()
        )
    };
    balancer.apply(&discovered("chat", "")).await;
    let names = async |count: usize| {
        eventually(&format!("{count} names"), async || {
            let metrics = balancer.metrics().await;
            let lookups = metrics["lookups"].as_array().cloned().unwrap_or_default();
            lookups.iter().filter(|name| name["known"] == 1).count() == count
        })
        .await;
    };
    names(1).await;
    let mut client = balancer.connect().await;
    echoes(&mut client, "found by name").await;
    dns.set_a("balancers.", 0, &["127.0.0.1"]);
    balancer.apply(&discovered("chat", "replicas = \"dns:balancers\"\n")).await;
    names(2).await;
    echoes(&mut client, "still there").await;
    eventually("one session", async || balancer.metrics().await["ownSessions"] == 1).await;

    balancer.apply(&discovered("missing", "")).await;
    eventually("no pod", async || balancer.status().await == 503).await;
    let pods = balancer.metrics().await["services"].clone();
    let states: Vec<&Value> = pods.as_array().unwrap().iter().map(|pod| &pod["state"]).collect();
    assert!(states.iter().all(|state| *state == "draining"), "{pods}");
    echoes(&mut client, "as long as it lives").await;
}

#[actix_rt::test]
async fn renewed_certificate_authorities_apply_to_new_connections() {
    let pod = Pod::reporting(report(0)).await;
    let (old, new) = (Certificate::new("localhost"), Certificate::new("localhost"));
    let settings = [
        ("server.tls_cert_file", &*new.file("cert.pem")),
        ("server.tls_key_file", &new.file("key.pem")),
    ];
    let inner = Balancer::with([&pod], &settings).await;
    let believed = old.file("believed.pem");
    fs::copy(old.file("cert.pem"), &believed).unwrap();
    let toml = format!(
        "services = [\"https://{}\"]\n[balancer]\nretries = 0\nmetric_path = \"none\"\n\
         eject_after = 0\ntls_ca_file = {believed:?}\ntls_server_name = \"localhost\"\n",
        inner.address()
    );
    let balancer = Reloadable::watching(&toml).await;
    assert_eq!(balancer.status().await, 502, "another authority");
    fs::copy(new.file("cert.pem"), &believed).unwrap();
    eventually("the renewed file", async || balancer.reloads("applied").await == 1).await;
    assert_eq!(balancer.status().await, 101);
    assert_eq!(balancer.post().await, (200, "unchanged".to_owned(), vec![]));
}

/// Files of new settings are not watched before these settings are applied.
#[actix_rt::test]
async fn a_missing_certificate_file_is_loaded_when_it_appears() {
    let pod = Pod::echo().await;
    let authorities = Certificate::new("localhost");
    let balancer = Reloadable::watching(&services(&[&pod])).await;
    let late = authorities.file("late.pem");
    let secure = pod.url().replace("http:", "https:");
    let toml = format!("services = [{secure:?}]\n[balancer]\ntls_ca_file = {late:?}\n");
    fs::write(&balancer.file, toml).unwrap();
    eventually("an invalid reload", async || balancer.reloads("invalid").await == 1).await;
    let problems = balancer.metrics().await["reload"]["problems"].to_string();
    assert!(problems.contains("late.pem"), "{problems}");
    fs::copy(authorities.file("cert.pem"), &late).unwrap();
    eventually("the file", async || balancer.reloads("applied").await == 1).await;
    assert_eq!(balancer.reloads("invalid").await, 1, "reported once");
}

#[actix_rt::test]
async fn a_reload_can_enable_tls_and_keeps_cookies_valid() {
    let [a, b] = [Pod::echo().await, Pod::echo().await];
    let certificate = Certificate::new("localhost");
    let toml = services(&[&a, &b]) + "[balancer]\naffinity = \"cookie\"\n";
    let balancer = Reloadable::start(&toml).await;
    let (_client, answer) = connect_with(balancer.program.traffic, &[]).await.unwrap();
    let cookie = answer.headers()["set-cookie"].to_str().unwrap().split(';').next().unwrap();
    let fields = [("cookie", cookie)];
    let (first, second) = if a.open() == 1 { (&a, &b) } else { (&b, &a) };

    let tls = format!(
        "[server]\ntls_cert_file = {:?}\ntls_key_file = {:?}\n",
        certificate.file("cert.pem"),
        certificate.file("key.pem")
    );
    balancer.apply(&(toml.clone() + &tls)).await;
    certificate.connect(balancer.program.traffic).await.expect("TLS");
    balancer.apply(&(toml + "retries = 1\n")).await;
    let (_again, answer) = connect_with(balancer.program.traffic, &fields).await.unwrap();
    assert_eq!(answer.headers().get("set-cookie"), None, "the cookie is still valid");
    assert_eq!((first.open(), second.open()), (2, 0));
}

#[actix_rt::test]
async fn a_reload_changes_the_log_level() {
    let pod = Pod::echo().await;
    let base = services(&[&pod]);
    let mut balancer = Reloadable::start(&base).await;
    drop(balancer.connect().await);
    balancer.apply(&(base + "[log]\nlevel = \"debug\"\n")).await;
    drop(balancer.connect().await);
    let line = balancer.program.logs("reload applied").await;
    assert!(line.contains("log.level: \"info\" -> \"debug\""), "{line}");
    balancer.program.logs("session 2 of ").await;
}

#[actix_rt::test]
async fn a_log_level_set_through_the_api_survives_other_reloads() {
    let pod = Pod::echo().await;
    let base = services(&[&pod]);
    let mut balancer = Reloadable::start(&base).await;
    let url = balancer.admin("/api/log-level");
    assert_eq!(awc::Client::new().put(url).send_body("debug").await.unwrap().status(), 200);
    balancer.apply(&(base + "[balancer]\nretries = 1\n")).await;
    drop(balancer.connect().await);
    balancer.program.logs("session 1 of ").await;
}

#[actix_rt::test]
async fn twenty_valid_and_invalid_reloads_disturb_no_session() {
    let pods = [Pod::echo().await, Pod::echo().await, Pod::echo().await];
    let all: Vec<&Pod> = pods.iter().collect();
    let balancer = Reloadable::start(&services(&all)).await;
    let address = balancer.program.traffic;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let talks = (0..50).map(|_| {
        let stopped = stopped.clone();
        tokio::spawn(async move {
            let mut client = connect(address).await;
            let mut count = 0;
            while !*stopped.borrow() {
                echoes(&mut client, &count.to_string()).await;
                count += 1;
            }
            count
        })
    });
    let talks: Vec<_> = talks.collect();
    eventually("all sessions", async || balancer.metrics().await["ownSessions"] == 50).await;
    for round in 0..20 {
        let toml = match round % 4 {
            0 => services(&all[..1]) + "[balancer]\nmetric_path = \"none\"\n",
            1 => "services = 7 [".to_owned(),
            2 => services(&all) + "[server]\nmax_sessions = 1\n",
            _ => services(&all) + "[log]\nformat = \"json\"\n",
        };
        fs::write(&balancer.file, toml).unwrap();
        assert_eq!(balancer.post().await.0, [200, 422, 200, 409][round % 4]);
        let metrics = balancer.metrics().await;
        let own: u64 = metrics["services"]
            .as_array()
            .unwrap()
            .iter()
            .map(|pod| pod["own"].as_u64().unwrap())
            .sum();
        assert_eq!((own, metrics["ownSessions"].as_u64()), (50, Some(50)));
    }
    stop.send(true).unwrap();
    for talk in talks {
        assert!(talk.await.unwrap() > 0);
    }
}
