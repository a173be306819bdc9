//! Replies that phiward itself writes: short, with the request's ID, and nothing of the policy or the request.

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode, Version};

use super::body::ReplyBody;
use super::headers::X_REQUEST_ID;

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// What the client of a refused request can read, which decides the form of the reply.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reader {
    /// Status and a JSON body.
    Http,
    /// A gRPC library: it wants HTTP 200 and a `grpc-status`, without a body ("trailers-only").
    Grpc,
}

impl Reader {
    /// The reader that `content-type` of a request tells of.
    pub(crate) fn of(content_type: Option<&HeaderValue>) -> Self {
        match content_type {
            Some(value) if value.as_bytes().starts_with(b"application/grpc") => Self::Grpc,
            _ => Self::Http,
        }
    }
}

/// Refuses a request. `reason` is told for failures of the path to the upstream, never for decisions of the policy.
pub(crate) fn refuse(
    reader: Reader,
    status: StatusCode,
    request_id: &str,
    reason: Option<&str>,
) -> Response<ReplyBody> {
    let mut reply = match reader {
        Reader::Http => http_reply(status, request_id, reason),
        Reader::Grpc => grpc_reply(status, reason),
    };
    if let Ok(id) = HeaderValue::from_str(request_id) {
        reply.headers_mut().insert(X_REQUEST_ID, id);
    }
    reply
}

/// A few words as plain text, for probes.
pub(crate) fn text(status: StatusCode, words: &'static str) -> Response<ReplyBody> {
    let mut reply = Response::new(ReplyBody::Own(Some(Bytes::from_static(words.as_bytes()))));
    *reply.status_mut() = status;
    reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    reply
}

/// Nothing at all: what stands where a reply was taken from.
pub(crate) fn empty() -> Response<ReplyBody> {
    Response::new(ReplyBody::Own(None))
}

fn http_reply(status: StatusCode, request_id: &str, reason: Option<&str>) -> Response<ReplyBody> {
    // Neither text needs escaping: reasons are our own codes, request IDs are hex.
    let body = match reason {
        Some(reason) => format!("{{\"error\":\"{reason}\",\"request_id\":\"{request_id}\"}}\n"),
        None => format!("{{\"request_id\":\"{request_id}\"}}\n"),
    };
    let mut reply = Response::new(ReplyBody::Own(Some(Bytes::from(body))));
    *reply.status_mut() = status;
    reply.headers_mut().insert(header::CONTENT_TYPE, JSON);
    reply
}

fn grpc_reply(status: StatusCode, reason: Option<&str>) -> Response<ReplyBody> {
    let mut reply = Response::new(ReplyBody::Own(None));
    *reply.version_mut() = Version::HTTP_2;
    let headers = reply.headers_mut();
    headers.insert(header::CONTENT_TYPE, GRPC);
    headers.insert("grpc-status", HeaderValue::from_static(grpc_status(status)));
    if let Some(Ok(reason)) = reason.map(HeaderValue::from_str) {
        headers.insert("grpc-message", reason);
    }
    reply
}

/// The gRPC code of a refusal: 3 INVALID_ARGUMENT, 7 PERMISSION_DENIED, 8 RESOURCE_EXHAUSTED, 12 UNIMPLEMENTED,
/// 14 UNAVAILABLE, 16 UNAUTHENTICATED, 4 DEADLINE_EXCEEDED.
fn grpc_status(status: StatusCode) -> &'static str {
    match status {
        StatusCode::BAD_REQUEST => "3",
        StatusCode::UNAUTHORIZED => "16",
        StatusCode::FORBIDDEN => "7",
        StatusCode::NOT_FOUND => "12",
        StatusCode::TOO_MANY_REQUESTS => "8",
        StatusCode::GATEWAY_TIMEOUT => "4",
        _ => "14",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If this fails, a gRPC caller sees a broken transport instead of the status of a denial.
    #[test]
    fn a_grpc_caller_gets_a_trailers_only_reply() {
        let grpc = HeaderValue::from_static("application/grpc+proto");
        let reply = refuse(Reader::of(Some(&grpc)), StatusCode::FORBIDDEN, "1", None);
        assert_eq!(reply.status(), StatusCode::OK);
        assert_eq!(reply.headers()["grpc-status"], "7");
        assert!(http_body::Body::is_end_stream(reply.body()));
    }

    /// If this fails, a denial's body tells more than the request's ID.
    #[test]
    fn a_denial_tells_the_request_id_alone() {
        let reply = refuse(Reader::Http, StatusCode::FORBIDDEN, "abc", None);
        let ReplyBody::Own(Some(body)) = reply.into_body() else { panic!("no body") };
        assert_eq!(body, "{\"request_id\":\"abc\"}\n");
    }
}
