//! Host that a request is for.
//!
//! Invariant: a request that could be read as one for two hosts is refused. Source: RFC 9112, sections 3.2 and 3.2.2.

use axum::{
    body::Body,
    http::{HeaderValue, Response, StatusCode, Version, header, request::Parts},
};

use super::error::coded;

/// The host as the client names it: a request of HTTP/1.1 has exactly one Host, and that of an absolute URI takes precedence.
pub(super) fn host(asked: &Parts) -> Result<Option<&str>, Box<Response<Body>>> {
    let mut fields = asked.headers.get_all(header::HOST).iter();
    let field = match (fields.next(), fields.next()) {
        (_, Some(_)) => return Err(refused("the request has more than one Host")),
        (None, None) if asked.version == Version::HTTP_11 => {
            return Err(refused("the request has no Host"));
        }
        (field, None) => field.map(HeaderValue::to_str).transpose(),
    };
    let field = field.map_err(|_| refused("the request's Host is no host"))?;
    Ok(asked.uri.authority().map(|authority| authority.as_str()).or(field))
}

fn refused(message: &str) -> Box<Response<Body>> {
    Box::new(coded(StatusCode::BAD_REQUEST, "UNSUPPORTED", message))
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    #[test]
    fn a_request_has_exactly_one_host() {
        let host_of = |version: Version, uri: &str, hosts: &[&str]| {
            let request = Request::builder().version(version).uri(uri);
            let request = hosts
                .iter()
                .fold(request, |request, host| request.header("Host", *host));
            let (parts, ()) = request.body(()).unwrap().into_parts();
            host(&parts)
                .map(|host| host.map(str::to_owned))
                .map_err(|response| response.status())
        };
        let bad = Err(StatusCode::BAD_REQUEST);
        let named = |host: &str| Ok(Some(host.to_owned()));
        for (version, uri, hosts, expected) in [
            (Version::HTTP_11, "/v2/", &["a.test"][..], named("a.test")),
            (Version::HTTP_11, "/v2/", &[""], named("")),
            (Version::HTTP_11, "/v2/", &[], bad.clone()),
            (Version::HTTP_11, "/v2/", &["a.test", "b.test"], bad.clone()),
            (Version::HTTP_11, "/v2/", &["a.test", "a.test"], bad.clone()),
            (Version::HTTP_11, "/v2/", &["\u{fc}.test"], bad.clone()),
            (Version::HTTP_11, "http://b.test/v2/", &["a.test"], named("b.test")),
            (
                Version::HTTP_11,
                "http://b.test/v2/",
                &["a.test", "b.test"],
                bad.clone(),
            ),
            (Version::HTTP_10, "/v2/", &[], Ok(None)),
            (Version::HTTP_10, "/v2/", &["a.test", "b.test"], bad),
        ] {
            assert_eq!(host_of(version, uri, hosts), expected, "{version:?} {uri} {hosts:?}");
        }
    }
}
