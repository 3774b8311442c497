//! Reads the agent line of HAProxy's `agent-check` (configuration manual, 5.2): words in any order,
//! separated by blanks, tabs and commas, and a description after `#`.
//!
//! Unlike in HAProxy, each line is complete: a value that it does not contain is unknown, even if an
//! earlier line contained it.

use super::reader::{
    COUNT, MAX_CONNECTIONS, MAX_REPORT_LEN, MAX_WEIGHT, Reader, Report, ReportError, check_len,
    printable,
};

/// Reads agent lines, which contain a pod's state but not its number of connections.
#[derive(Clone, Copy, Debug, Default)]
pub struct AgentReader;

const PERCENTAGE: &str = "a whole percentage from 0% to 100000%";

impl Reader for AgentReader {
    fn read(&self, body: &[u8]) -> Result<Report, ReportError> {
        check_len(body, MAX_REPORT_LEN)?;
        let line = body.split(|byte| b"\r\n".contains(byte)).next().unwrap_or_default();
        let (words, description) = match line.iter().position(|byte| *byte == b'#') {
            Some(sharp) => (&line[..sharp], line[sharp + 1..].trim_ascii()),
            None => (line, &b""[..]),
        };
        let mut report = Report::default();
        let mut is_in_maintenance = false;
        let mut is_empty = true;
        let words = words.split(|byte| b" \t,".contains(byte)).filter(|word| !word.is_empty());
        for word in words {
            is_empty = false;
            let lower = String::from_utf8_lossy(word).to_ascii_lowercase();
            // If words contradict each other, the last one counts.
            match &*lower {
                "ready" => (report.draining, is_in_maintenance) = (Some(false), false),
                "drain" => (report.draining, is_in_maintenance) = (Some(true), false),
                "maint" => (report.draining, is_in_maintenance) = (None, true),
                "up" => report.down = None,
                "down" | "fail" | "failed" | "stopped" => report.down = Some(lower),
                _ => {
                    if let Some(digits) = lower.strip_suffix('%') {
                        let percentage = whole(digits).map(|whole| whole as f64 / 100.0);
                        let weight = percentage.filter(|weight| *weight <= MAX_WEIGHT);
                        report.weight =
                            Some(weight.ok_or_else(|| error("weight", word, PERCENTAGE))?);
                    } else if let Some(digits) = lower.strip_prefix("maxconn:") {
                        let count = whole(digits).filter(|count| *count <= MAX_CONNECTIONS);
                        let count = count.ok_or_else(|| error("maxconn", word, COUNT))?;
                        // In HAProxy a maxconn of 0 means no limit.
                        report.max_connections = (count > 0).then_some(count);
                    } else {
                        return Err(ReportError::Malformed(format!(
                            "unknown word {}",
                            printable(word)
                        )));
                    }
                }
            }
        }
        if is_empty {
            return Err(ReportError::Malformed("the agent line is empty".to_owned()));
        }
        if report.weight == Some(0.0) {
            (report.weight, report.draining) = (None, Some(true));
        }
        if is_in_maintenance {
            report.down.get_or_insert_with(|| "maint".to_owned());
        }
        if !description.is_empty() {
            report.down = report.down.map(|word| format!("{word} ({})", printable(description)));
        }
        Ok(report)
    }
}

/// Parses a number that consists of digits only.
fn whole(digits: &str) -> Option<u64> {
    let is_whole = digits.bytes().all(|byte| byte.is_ascii_digit());
    is_whole.then(|| digits.parse().ok()).flatten()
}

fn error(field: &str, word: &[u8], expected: &'static str) -> ReportError {
    ReportError::Value { field: field.to_owned(), value: printable(word), expected }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(line: &str) -> Result<Report, String> {
        AgentReader.read(line.as_bytes()).map_err(|error| error.to_string())
    }

    fn down(text: &str) -> Report {
        Report { down: Some(text.to_owned()), ..Report::default() }
    }

    #[test]
    fn each_word_sets_one_value() {
        let none = Report::default();
        for (line, expected) in [
            ("75%", Report { weight: Some(0.75), ..none.clone() }),
            ("100000%", Report { weight: Some(1000.0), ..none.clone() }),
            ("0%", Report { draining: Some(true), ..none.clone() }),
            ("maxconn:30", Report { max_connections: Some(30), ..none.clone() }),
            ("MaxConn:2147483647", Report { max_connections: Some(2147483647), ..none.clone() }),
            ("maxconn:0", none.clone()),
            ("ready", Report { draining: Some(false), ..none.clone() }),
            ("drain", Report { draining: Some(true), ..none.clone() }),
            ("maint", down("maint")),
            ("up", none.clone()),
            ("down", down("down")),
            ("FAIL", down("fail")),
            ("failed", down("failed")),
            ("stopped", down("stopped")),
        ] {
            for end in ["", "\n", "\r\n", "\nno such word", "\r#"] {
                assert_eq!(read(&format!("{line}{end}")), Ok(expected.clone()), "{line}{end:?}");
            }
        }
    }

    #[test]
    fn words_are_combined_in_any_order() {
        let expected = Report {
            weight: Some(0.5),
            max_connections: Some(7),
            draining: Some(false),
            ..Report::default()
        };
        for line in
            ["up ready 50% maxconn:7", "maxconn:7,50%\tready , up,", "  \tready,up,50%,maxconn:7"]
        {
            assert_eq!(read(line).as_ref(), Ok(&expected), "{line}");
        }
    }

    #[test]
    fn a_description_ends_with_the_line() {
        assert_eq!(
            read("stopped # new release, at #12\t\r\nup"),
            Ok(down("stopped (new release, at #12)"))
        );
        assert_eq!(read("maint#disk"), Ok(down("maint (disk)")));
        assert_eq!(read("down #"), Ok(down("down")));
        assert_eq!(read("down #a\x1b[0mb"), Ok(down("down (a\\u{1b}[0mb)")));
        assert_eq!(read("up # fine"), Ok(Report::default()));
    }

    #[test]
    fn the_last_of_contradicting_words_counts() {
        assert_eq!(read("down up"), Ok(Report::default()));
        assert_eq!(read("up maint"), Ok(down("maint")));
        assert_eq!(read("maint down"), Ok(down("down")));
        assert_eq!(read("maint ready").unwrap(), read("ready").unwrap());
        assert_eq!(read("drain maint").unwrap(), read("maint").unwrap());
        assert_eq!(read("0% 20%").unwrap().weight, Some(0.2));
        assert_eq!(read("20% 0% ready").unwrap(), read("drain").unwrap(), "a weight of 0 drains");
    }

    #[test]
    fn unknown_words_and_wrong_values_are_named_in_the_error() {
        for (line, expected) in [
            ("up upp", "cannot parse the report: unknown word upp"),
            ("75", "cannot parse the report: unknown word 75"),
            ("down: disk", "cannot parse the report: unknown word down:"),
            ("\x07", "cannot parse the report: unknown word \\u{7}"),
            ("", "cannot parse the report: the agent line is empty"),
            ("\nup", "cannot parse the report: the agent line is empty"),
            (" ,\t# up", "cannot parse the report: the agent line is empty"),
            ("-5%", "weight is -5%, expected a whole percentage from 0% to 100000%"),
            ("7.5%", "weight is 7.5%, expected a whole percentage from 0% to 100000%"),
            ("%", "weight is %, expected a whole percentage from 0% to 100000%"),
            ("100001%", "weight is 100001%, expected a whole percentage from 0% to 100000%"),
            ("maxconn:", "maxconn is maxconn:, expected a whole number from 0 to 2147483647"),
            ("maxconn:+1", "maxconn is maxconn:+1, expected a whole number from 0 to 2147483647"),
            ("maxconn: 5", "maxconn is maxconn:, expected a whole number from 0 to 2147483647"),
        ] {
            assert_eq!(read(line).unwrap_err(), expected, "{line:?}");
        }
        assert!(read("maxconn:2147483648").is_err());
        assert!(read("99999999999999999999999%").is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = AgentReader.read(&body);
        }

        #[test]
        fn all_words_of_a_line_are_read(
            weight in prop::option::of(1u64..=100_000),
            max in prop::option::of(1..=MAX_CONNECTIONS),
            admin in prop::sample::select(vec!["", "ready", "drain", "maint"]),
            health in prop::sample::select(vec!["", "up", "down", "fail", "failed", "stopped"]),
            upper in any::<bool>(),
            gaps in prop::collection::vec("[ \t,]{1,3}", 4),
            turn in 0usize..4,
            description in "[ -~]{0,200}",
        ) {
            let mut words = [
                weight.map_or_else(String::new, |weight| format!("{weight}%")),
                max.map_or_else(String::new, |max| format!("maxconn:{max}")),
                admin.to_owned(),
                health.to_owned(),
            ];
            prop_assume!(words.iter().any(|word| !word.is_empty()));
            words.rotate_left(turn);
            let mut line: String =
                words.iter().zip(&gaps).flat_map(|(word, gap)| [word.as_str(), gap]).collect();
            if upper {
                line.make_ascii_uppercase();
            }
            let report = read(&format!("{line}#{description}\n")).unwrap();
            prop_assert_eq!(report.weight, weight.map(|weight| weight as f64 / 100.0));
            prop_assert_eq!(report.max_connections, max);
            let draining = match admin { "ready" => Some(false), "drain" => Some(true), _ => None };
            prop_assert_eq!(report.draining, draining);
            let is_down = !matches!(health, "" | "up");
            let word = if is_down { Some(health) } else { Some(admin).filter(|word| *word == "maint") };
            let starts_with_word = |down: &String| word.is_some_and(|word| down.starts_with(word));
            prop_assert_eq!(report.down.as_ref().map(starts_with_word), word.map(|_| true));
            prop_assert!(report.down.is_none_or(|down| down.len() < 150));
            prop_assert_eq!(report.connections, None);
        }
    }
}
