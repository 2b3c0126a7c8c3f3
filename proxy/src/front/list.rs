//! Answers with a list: a page of tags, or an index of referrers.
//!
//! Invariant: the link to the next page leads to this daemon, by the path that the client used.

use axum::{
    body::Body,
    http::{HeaderValue, Response, Uri, header},
};
use piecemeal_store::Repository;
use serde_json::json;

use super::response::{add_note, base};
use crate::{
    List, ListQuery,
    lists::{FILTERS_HEADER, INDEX_TYPE},
};

pub(super) fn respond(list: List, query: &ListQuery, at: &Repository, uri: &Uri, head: bool) -> Response<Body> {
    let (media_type, body) = match &list.referrers {
        Some(index) => (INDEX_TYPE, index.clone()),
        None => {
            let tags = json!({ "name": at.name, "tags": list.tags });
            ("application/json", tags.to_string().into_bytes())
        }
    };
    let mut response = base()
        .header(header::CONTENT_TYPE, media_type)
        .header(header::CONTENT_LENGTH, body.len())
        .body(if head { Body::empty() } else { Body::from(body) })
        .expect("numbers are header values");
    let next = match query {
        ListQuery::Tags { n, .. } => list.next.as_deref().map(|last| link(uri, *n, last)),
        ListQuery::Referrers { .. } => None,
    };
    let optional = [
        (header::LINK, next),
        (
            header::HeaderName::from_static(FILTERS_HEADER),
            list.filtered.then(|| "artifactType".to_owned()),
        ),
    ];
    for (name, value) in optional {
        if let Some(Ok(value)) = value.map(|value| HeaderValue::from_str(&value)) {
            response.headers_mut().insert(name, value);
        }
    }
    add_note(&mut response, &list.note);
    response
}

/// The next page by the path that the client itself used, and with its `ns`: relative, so that the client asks this daemon again.
fn link(uri: &Uri, n: Option<usize>, last: &str) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    let kept = url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
    query.extend_pairs(kept.filter(|(key, _)| key != "n" && key != "last"));
    if let Some(n) = n {
        query.append_pair("n", &n.to_string());
    }
    query.append_pair("last", last);
    format!("<{}?{}>; rel=\"next\"", uri.path(), query.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_keeps_how_the_upstream_was_named() {
        let uri = Uri::from_static("/v2/library/app/tags/list?n=2&ns=docker.io&last=a");
        assert_eq!(
            link(&uri, Some(2), "b"),
            r#"</v2/library/app/tags/list?ns=docker.io&n=2&last=b>; rel="next""#
        );
    }
}
