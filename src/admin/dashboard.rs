//! The distribution as a page, for whoever prefers one: it shows what the JSON says.

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

/// The page's own script and style and no others, whatever pods call themselves (CSP Level 3).
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = |tag| BASE64.encode(digest(&SHA256, element(tag).as_bytes()));
    format!(
        "default-src 'none'; connect-src 'self'; script-src 'sha256-{}'; style-src 'sha256-{}'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash("script"),
        hash("style"),
    )
});

/// What the page has between the tags of its only element of this name.
fn element(tag: &str) -> &'static str {
    let (_, after) = PAGE.split_once(&format!("<{tag}>")).expect("the page has one");
    after.split_once(&format!("</{tag}>")).expect("it ends").0
}

/// In which form somebody wants the distribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For programs.
    Json,
    /// For people.
    Html,
}

/// `?format=`, which is stronger than the Accept field.
#[derive(Debug, Deserialize)]
pub struct Wanted {
    format: Option<String>,
}

impl Format {
    /// JSON, unless a page is asked for or preferred.
    ///
    /// # Errors
    /// What is asked for is neither.
    pub fn of(wanted: &Wanted, accept: Option<&Accept>) -> Result<Self, String> {
        match wanted.format.as_deref() {
            Some("json") => Ok(Self::Json),
            Some("html") => Ok(Self::Html),
            Some(other) => Err(format!("format={other:?}: expected json, or html")),
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

/// How welcome `format` is: what the most specific range says that it is in (RFC 9110 §12.5.1).
fn quality(accept: &Accept, format: &Mime) -> Quality {
    let specificity = |range: &Mime| match (range.type_(), range.subtype()) {
        (mime::STAR, _) => Some(0),
        (type_, mime::STAR) => (type_ == format.type_()).then_some(1),
        _ => (range.essence_str() == format.essence_str()).then_some(2),
    };
    let ranges = accept.iter().filter_map(|one| Some((specificity(&one.item)?, one.quality)));
    ranges.max().map_or(Quality::ZERO, |(_, quality)| quality)
}

/// The page, which asks for the rest by itself.
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
    fn a_page_only_for_who_asks_for_it_or_prefers_it() {
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
                let wanted = Wanted { format: format.map(str::to_owned) };
                let found = Format::of(&wanted, accept_field.as_ref());
                assert_eq!(found, Ok(expected), "{accept}, {wanted:?}");
            }
        }
        assert_eq!(Format::of(&Wanted { format: None }, None), Ok(Json));
        assert!(Format::of(&Wanted { format: Some("xml".to_owned()) }, None).is_err());
    }
}
