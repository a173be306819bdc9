//! Why a request was decided as it was: a closed list of codes that audit events, metrics and tests share.

/// What was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The request may be forwarded.
    Allow,
    /// The request is understood and not permitted.
    Deny,
    /// The request is malformed or could be read in two ways, so it is not decided at all.
    Reject,
}

impl Outcome {
    /// `allow`, `deny` or `reject`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Reject => "reject",
        }
    }
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal, $outcome:ident, $text:literal;)+) => {
        /// Why a request was decided as it was. The codes are stable: they may be added to, never changed.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[doc = $doc])+ $name,)+ }

        impl Reason {
            /// Every reason there is.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The stable code, in snake_case.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $code,)+ }
            }

            /// One sentence for a person, without any part of the request.
            pub fn describe(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }

            /// The outcome that goes with it.
            pub fn outcome(self) -> Outcome {
                match self { $(Self::$name => Outcome::$outcome,)+ }
            }

            /// The reason with this code.
            pub fn parse(code: &str) -> Option<Self> {
                match code { $($code => Some(Self::$name),)+ _ => None }
            }
        }
    };
}

reasons! {
    /// A permission of a bound role matched.
    Rule = "rule", Allow, "a permission of a bound role allows it";
    /// A `GET` of a path listed in `service.health`.
    Health = "health", Allow, "it is a health check";
    /// The policy is in shadow mode, and would have denied or rejected it.
    ShadowMode = "shadow_mode", Allow, "the policy is in shadow mode: it decides, and blocks nothing";
    /// No policy is loaded, or the grants were made under another policy.
    NoPolicy = "no_policy", Deny, "no policy is in force";
    /// The host is not in `service.hosts`.
    UnknownHost = "unknown_host", Deny, "the host is not one of service.hosts";
    /// A deny rule matched.
    DenyRule = "deny_rule", Deny, "a deny rule forbids it";
    /// No permission of a bound role matched.
    NoAllowRule = "no_allow_rule", Deny, "no permission of a bound role allows it";
    /// The method is `CONNECT` (CVE-2023-45539, CVE-2025-64763: tunnels past what was matched).
    Connect = "connect", Reject, "CONNECT is not accepted";
    /// The method is not one of the eight known ones in upper case.
    UnknownMethod = "unknown_method", Reject, "the method is not one of GET HEAD POST PUT PATCH DELETE OPTIONS TRACE";
    /// A header or query parameter asks the application to act on another method than the one that was decided.
    MethodOverride = "method_override", Reject, "a header or parameter would replace the method";
    /// `OPTIONS *` names no resource.
    OptionsAsterisk = "options_asterisk", Reject, "OPTIONS * names no path";
    /// The path does not begin with a slash (CVE-2026-33186).
    NotAbsolutePath = "not_absolute_path", Reject, "the path does not begin with a slash";
    /// The path is longer than `path.max_bytes`.
    PathTooLong = "path_too_long", Reject, "the path is longer than path.max_bytes";
    /// `.` or `..` as a segment, also escaped (CVE-2019-9901, CVE-2021-41773).
    DotSegment = "dot_segment", Reject, "the path has a '.' or '..' segment";
    /// `//` (CVE-2021-31920: one server merges slashes, the next does not).
    EmptySegment = "empty_segment", Reject, "the path has an empty segment";
    /// `%2F` (CVE-2021-29492), unless `path.encoded_slash: preserve`.
    EncodedSlash = "encoded_slash", Reject, "the path has an escaped slash";
    /// `\` or `%5C`, which some servers read as a slash.
    Backslash = "backslash", Reject, "the path has a backslash";
    /// `;` or `%3B`, after which some servers drop the rest of the segment, unless `path.matrix_params: allow`.
    Semicolon = "semicolon", Reject, "the path has a semicolon";
    /// An escaped percent sign followed by two hex digits (CVE-2021-42013): an escape to whoever decodes twice.
    DoubleEncoding = "double_encoding", Reject, "the path is escaped twice";
    /// A control character, also escaped.
    ControlByte = "control_byte", Reject, "there is a control character";
    /// NUL, also escaped (CVE-2019-9900: what follows is cut off).
    Nul = "nul", Reject, "there is a NUL";
    /// A space as such; `%20` is fine (CVE-2013-4547).
    Space = "space", Reject, "there is a space that is not escaped";
    /// A byte above 0x7F as such; escaped UTF-8 is fine.
    NonAscii = "non_ascii", Reject, "there is a non-ASCII byte that is not escaped";
    /// A byte that RFC 3986 does not allow in a path: `" < > [ ] ^ { | }` or a backquote. Some servers escape it first.
    IllegalByte = "illegal_byte", Reject, "the path has a character that must be escaped";
    /// `%` without two hex digits, or escapes that are not UTF-8 (overlong forms among them).
    BadEscape = "bad_escape", Reject, "the path has a malformed escape";
    /// `#` (CVE-2021-32779, CVE-2021-39156: what follows it is matched by one server and cut by the next).
    Fragment = "fragment", Reject, "the request target has a fragment";
    /// `%` without two hex digits in the query, or a parameter's name that hides a NUL.
    BadQuery = "bad_query", Reject, "the query has a malformed escape";
    /// No host is named.
    MissingHost = "missing_host", Reject, "no host is named";
    /// More than one `Host` line.
    DuplicateHost = "duplicate_host", Reject, "there is more than one Host header";
    /// The host is not a name or address with an optional port.
    BadHost = "bad_host", Reject, "the host is malformed";
    /// The host of an absolute-form target is not that of the `Host` header.
    AbsoluteFormHost = "absolute_form_host", Reject, "the target and the Host header name different hosts";
    /// `:authority` and `Host` differ (RFC 9113 section 8.3.1).
    HostAuthority = "host_authority", Reject, ":authority and the Host header name different hosts";
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If this fails, an audit trail or a policy's tests name a reason that cannot be looked up.
    #[test]
    fn codes_are_unique_and_can_be_read_back() {
        for reason in Reason::ALL {
            assert_eq!(Reason::parse(reason.as_str()), Some(*reason));
            assert!(reason.as_str().bytes().all(|b| b.is_ascii_lowercase() || b == b'_'));
        }
        assert_eq!(Reason::parse("nonsense"), None);
    }
}
