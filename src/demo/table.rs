//! The live table that the demo keeps on the terminal.

use std::{
    fmt::Write as _,
    io::{IsTerminal as _, Write as _, stdout},
    time::Duration,
};

use actix_rt::time::sleep;
use awc::Client;
use serde_json::Value;

/// Widest bar, in characters.
const BAR: u64 = 40;

/// Shows the distribution at `url` until it is dropped: in place on a terminal, as a line now and
/// then elsewhere.
pub async fn show(url: String) {
    let client = Client::new();
    let terminal = stdout().is_terminal();
    let every = Duration::from_secs(if terminal { 1 } else { 5 });
    let mut drawn = 0;
    loop {
        sleep(every).await;
        let Ok(mut response) = client.get(&url).send().await else { continue };
        let Ok(distribution) = response.json::<Value>().await else { continue };
        let table = table(&distribution);
        if terminal && drawn > 0 {
            // Up over the last table; each line then clears itself.
            print!("\x1b[{drawn}A");
        }
        drawn = table.lines().count();
        for line in table.lines() {
            println!("{}{line}", if terminal { "\x1b[2K" } else { "" });
        }
        let _ = stdout().flush();
    }
}

fn table(distribution: &Value) -> String {
    let services = distribution["services"].as_array().map_or(&[][..], Vec::as_slice);
    let count = |service: &Value| service["connections"].as_u64().unwrap_or_default();
    let most = services.iter().map(count).max().unwrap_or_default().max(1);
    let mut table = String::new();
    for service in services {
        let url = service["url"].as_str().unwrap_or_default();
        let name = distribution["podMetrics"][url][0]["podName"].as_str().unwrap_or(url);
        let connections = count(service);
        let bar = "#".repeat((connections * BAR / most) as usize);
        let _ = writeln!(table, "{name:<12} {connections:>5}  {bar}");
    }
    let total = distribution["totalConnections"].as_u64().unwrap_or_default();
    let _ = writeln!(table, "{:<12} {total:>5}", "total");
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fullest_pod_has_the_longest_bar() {
        let distribution = serde_json::json!({
            "services": [
                {"url": "http://a", "connections": 10},
                {"url": "http://b", "connections": 5},
            ],
            "podMetrics": {"http://a": [{"podName": "pod-a"}], "http://b": [{}]},
            "totalConnections": 15,
        });
        let expected = format!(
            "pod-a           10  {}\nhttp://b         5  {}\ntotal           15\n",
            "#".repeat(40),
            "#".repeat(20)
        );
        assert_eq!(table(&distribution), expected);
    }
}
