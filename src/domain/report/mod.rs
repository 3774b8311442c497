//! Reads the reports of pods: the counts and states that they publish of themselves.
//!
//! Reports are untrusted input: status, size, type and range are checked. There is one [`Reader`] per
//! format: JSON, Prometheus text and HAProxy agent lines. Readers do no I/O.

mod agent;
mod json;
mod prometheus;
pub mod query;
mod reader;

pub use self::{
    agent::AgentReader,
    json::{JsonReader, Pointer},
    prometheus::{LabelMatch, MetricName, PrometheusReader},
    reader::{MAX_REPORT_LEN, Reader, Report, ReportError, SettingError, check_status},
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reader_reads_up_to_its_limit() {
        let prometheus = PrometheusReader { name: "sessions".parse().unwrap(), labels: Vec::new() };
        let readers: [(Box<dyn Reader>, &[u8], u8); 3] = [
            (Box::new(JsonReader::default()), br#"{"agentsConnections":1}"#, b' '),
            (Box::new(prometheus), b"sessions 1\n", b'\n'),
            (Box::new(AgentReader), b"up\n", b'\n'),
        ];
        for (reader, body, padding) in readers {
            let expected = reader.read(body).unwrap();
            let mut body = body.to_vec();
            body.resize(reader.max_len(), padding);
            assert_eq!(reader.read(&body), Ok(expected), "{reader:?}");
            body.push(padding);
            assert_eq!(reader.read(&body), Err(ReportError::TooLong(reader.max_len())));
        }
    }
}
