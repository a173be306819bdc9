//! The tests that a policy file carries.

use crate::identity::SpiffeId;
use crate::yaml::{Day, Mark, Node, closest};

use super::super::request::Request;
use super::super::{Finding, Outcome, Reason, UnixSeconds};
use super::MAX_RULES;
use super::conditions::test_headers;
use super::part::Parts;

/// One test: a request, who makes it, and what must come of it.
#[derive(Debug)]
pub(in crate::policy) struct Case {
    pub(in crate::policy) at: Mark,
    pub(in crate::policy) subject: Subject,
    pub(in crate::policy) request: Request,
    /// When it is made; none means now.
    pub(in crate::policy) now: Option<UnixSeconds>,
    pub(in crate::policy) expect: Outcome,
    /// What must come of it when rules in shadow count too.
    pub(in crate::policy) shadow: Option<Outcome>,
    pub(in crate::policy) rule: Option<String>,
    pub(in crate::policy) reason: Option<Reason>,
}

/// Who makes the request of a test.
#[derive(Debug)]
pub(in crate::policy) enum Subject {
    /// `as: any`: the result must be the same whoever asks.
    Any,
    /// This workload.
    Id(SpiffeId),
}

pub(super) fn cases(parts: &Parts<'_>, node: &Node) -> Option<Vec<Case>> {
    let items = parts.reader.nonempty_list(node, "tests")?;
    if items.len() > MAX_RULES {
        parts.reader.problem(node.at, format!("there are more than {MAX_RULES} tests"));
        return None;
    }
    Some(items.iter().filter_map(|item| case(parts, item)).collect())
}

fn case(parts: &Parts<'_>, node: &Node) -> Option<Case> {
    let reader = parts.reader;
    let mut fields = reader.fields(node, "a test")?;
    let subject = fields.required("as").and_then(|node| subject(parts, node));
    let mut request = fields.required("request").and_then(|node| request(parts, node));
    if let (Some(node), Some(request)) = (fields.optional("headers"), &mut request) {
        test_headers(parts, node, |name, value| request.add_header(name, value));
    }
    if let (Some(node), Some(request)) = (fields.optional("host"), &mut request)
        && let Some(host) = reader.string(node, "host")
    {
        request.add_header("host", host);
    }
    if request.as_ref().is_some_and(|request| request.tcp_listener().is_some()) {
        for entry in ["headers", "host"].into_iter().filter_map(|key| fields.entry(key)) {
            let message = format!("a test of TCP has no `{}`", entry.key);
            reader.problem_with_hint(entry.at, message, "leave it out; a TCP stream has none");
        }
    }
    let now = fields.optional("now").map(|node| reader.time(node, "now", Day::Start).map(UnixSeconds));
    let words = [Outcome::Allow, Outcome::Deny, Outcome::Reject].map(|outcome| (outcome.as_str(), outcome));
    let expect = fields.required("expect").and_then(|node| reader.one_of(node, "expect", &words));
    let shadow = fields.optional("shadow").and_then(|node| reader.one_of(node, "shadow", &words[..2]));
    let rule = fields.optional("rule").and_then(|node| parts.name(node, "rule")).map(|name| name.value);
    let reason = fields.optional("reason").and_then(|node| reason(parts, node, expect));
    fields.unsupported("claims", "leave it out; tokens are not checked");
    fields.finish();
    Some(Case {
        at: node.at,
        subject: subject?,
        request: request?,
        now: now.map_or(Some(None), |now| now.map(Some))?,
        expect: expect?,
        shadow,
        rule,
        reason,
    })
}

fn subject(parts: &Parts<'_>, node: &Node) -> Option<Subject> {
    let text = parts.reader.string(node, "as")?;
    if text == "any" {
        return Some(Subject::Any);
    }
    match SpiffeId::parse(text) {
        Ok(id) => Some(Subject::Id(id)),
        Err(error) => {
            let message = format!("`{text}` is not an identity: {error}");
            let hint = "write one workload's SPIFFE ID, or `any` when the result must not depend on it";
            parts.report(Finding::error("bad_identity", node.at, message).hint(hint));
            None
        }
    }
}

fn request(parts: &Parts<'_>, node: &Node) -> Option<Request> {
    let text = parts.reader.string(node, "request")?;
    let request = Request::parse(text);
    if request.is_none() {
        parts.reader.problem_with_hint(
            node.at,
            "request must be a method and a target",
            "write it as GET /path?query, or TCP and a listener's name",
        );
    }
    request
}

fn reason(parts: &Parts<'_>, node: &Node, expect: Option<Outcome>) -> Option<Reason> {
    let text = parts.reader.string(node, "reason")?;
    let Some(reason) = Reason::parse(text) else {
        let near = closest(text, Reason::ALL.iter().map(|reason| reason.as_str()));
        let hint = near.map_or("the codes are listed in the documentation".into(), |near| {
            format!("did you mean `{near}`?")
        });
        parts.reader.problem_with_hint(node.at, format!("there is no reason `{text}`"), hint);
        return None;
    };
    if let Some(expect) = expect
        && reason.outcome() != expect
    {
        let message = format!(
            "the reason `{text}` goes with {}, not with {}",
            reason.outcome().as_str(),
            expect.as_str()
        );
        parts.reader.problem(node.at, message);
    }
    Some(reason)
}
