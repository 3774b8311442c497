//! The distribution as a page, which shows the JSON.

use std::sync::LazyLock;

use actix_web::{
    HttpResponse,
    http::header::{Accept, CONTENT_SECURITY_POLICY, ContentType, Quality},
    mime::{self, Mime},
};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use ring::digest::{SHA256, digest};
use serde::Deserialize;

const PAGE: &str = include_str!("dashboard.html");

/// Allows the page's own script and style only, so that names chosen by pods cannot add others (CSP
/// Level 3).
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = |tag| BASE64.encode(digest(&SHA256, element(tag).as_bytes()));
    format!(
        "default-src 'none'; connect-src 'self'; script-src 'sha256-{}'; style-src 'sha256-{}'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash("script"),
        hash("style"),
    )
});

/// Returns the content of the page's only element `tag`.
fn element(tag: &str) -> &'static str {
    let (_, after) = PAGE.split_once(&format!("<{tag}>")).expect("the page has the element");
    after.split_once(&format!("</{tag}>")).expect("the element has an end tag").0
}

/// Form of the distribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json,
    Html,
}

/// The query `?format=`, which overrides the Accept field.
#[derive(Debug, Deserialize)]
pub struct FormatQuery {
    format: Option<String>,
}

impl Format {
    /// Returns JSON, unless the query or the Accept field prefers the page.
    ///
    /// # Errors
    /// The query names another format.
    pub fn negotiate(query: &FormatQuery, accept: Option<&Accept>) -> Result<Self, String> {
        match query.format.as_deref() {
            Some("json") => Ok(Self::Json),
            Some("html") => Ok(Self::Html),
            Some(other) => Err(format!("format = {other:?}: expected json or html")),
            None => Ok(accept.map_or(Self::Json, Self::preferred)),
        }
    }

    fn preferred(accept: &Accept) -> Self {
        match quality(accept, &mime::TEXT_HTML) > quality(accept, &mime::APPLICATION_JSON) {
            true => Self::Html,
            false => Self::Json,
        }
    }
}

/// The quality of `format`: that of the most specific range that includes it (RFC 9110 §12.5.1).
fn quality(accept: &Accept, format: &Mime) -> Quality {
    let specificity = |range: &Mime| match (range.type_(), range.subtype()) {
        (mime::STAR, _) => Some(0),
        (type_, mime::STAR) => (type_ == format.type_()).then_some(1),
        _ => (range.essence_str() == format.essence_str()).then_some(2),
    };
    let ranges = accept.iter().filter_map(|one| Some((specificity(&one.item)?, one.quality)));
    ranges.max().map_or(Quality::ZERO, |(_, quality)| quality)
}

/// Returns the page, which requests the JSON itself.
pub fn page() -> HttpResponse {
    HttpResponse::Ok()
        .insert_header(ContentType::html())
        .insert_header((CONTENT_SECURITY_POLICY, POLICY.as_str()))
        .body(PAGE)
}

#[cfg(test)]
mod tests {
    use actix_web::{http::header::Header as _, test::TestRequest};

    use super::*;

    #[test]
    fn the_page_is_sent_if_the_query_or_the_accept_field_prefers_it() {
        use Format::{Html, Json};
        let firefox = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
        for (accept, expected) in [
            ("*/*", Json),
            ("", Json),
            (firefox, Html),
            ("text/html", Html),
            ("text/*", Html),
            ("application/json", Json),
            ("text/html, application/json", Json),
            ("text/html;q=0.5, application/json;q=0.4", Html),
            ("text/html;q=0.4, application/json;q=0.5", Json),
            ("text/html;q=0, */*", Json),
            ("text/html;q=0.3, */*;q=0.5", Json),
            ("image/webp", Json),
        ] {
            let request =
                TestRequest::default().insert_header(("accept", accept)).to_http_request();
            let accept_field = Accept::parse(&request).ok();
            for (format, expected) in [(None, expected), (Some("json"), Json), (Some("html"), Html)]
            {
                let query = FormatQuery { format: format.map(str::to_owned) };
                let found = Format::negotiate(&query, accept_field.as_ref());
                assert_eq!(found, Ok(expected), "{accept}, {query:?}");
            }
        }
        assert_eq!(Format::negotiate(&FormatQuery { format: None }, None), Ok(Json));
        assert!(Format::negotiate(&FormatQuery { format: Some("xml".to_owned()) }, None).is_err());
    }
}
