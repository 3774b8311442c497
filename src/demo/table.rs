//! The live table of the demo.

use std::{
    fmt::Write as _,
    io::{IsTerminal as _, Write as _, stdout},
    time::Duration,
};

use actix_rt::time::sleep;
use awc::Client;
use serde_json::Value;

/// Length of the longest bar, in characters.
const BAR: u64 = 40;

/// Shows the distribution at `url` until it is dropped: every second in place on a terminal, else
/// every 5 seconds below the last one.
pub async fn show(url: String) {
    let client = Client::new();
    let is_terminal = stdout().is_terminal();
    let interval = Duration::from_secs(if is_terminal { 1 } else { 5 });
    let mut printed_lines = 0;
    loop {
        sleep(interval).await;
        let Ok(mut response) = client.get(&url).send().await else { continue };
        let Ok(distribution) = response.json::<Value>().await else { continue };
        let table = format_table(&distribution);
        if is_terminal && printed_lines > 0 {
            // Moves the cursor up over the last table; each line is then cleared and printed anew.
            print!("\x1b[{printed_lines}A");
        }
        printed_lines = table.lines().count();
        for line in table.lines() {
            println!("{}{line}", if is_terminal { "\x1b[2K" } else { "" });
        }
        let _ = stdout().flush();
    }
}

fn format_table(distribution: &Value) -> String {
    let services = distribution["services"].as_array().map_or(&[][..], Vec::as_slice);
    let count = |service: &Value| service["connections"].as_u64().unwrap_or_default();
    let highest = services.iter().map(count).max().unwrap_or_default().max(1);
    let mut table = String::new();
    for service in services {
        let url = service["url"].as_str().unwrap_or_default();
        let name = distribution["podMetrics"][url][0]["podName"].as_str().unwrap_or(url);
        let connections = count(service);
        let bar = "#".repeat((connections * BAR / highest) as usize);
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
        assert_eq!(format_table(&distribution), expected);
    }
}
