//! The request target rules: the security of the product. One table for every reason to reject, and the properties that
//! make sure there is nothing left to interpret in what is admitted.
#![allow(clippy::unwrap_used)] // a failure here is a failed test

use std::borrow::Cow;

use phiward::policy::{Method, Outcome, PathRules, RawRequest, Reason, admit, is_method_override_header};
use proptest::prelude::*;

const STRICT: PathRules = PathRules {
    preserve_encoded_slash: false,
    allow_matrix_params: false,
    max_bytes: PathRules::DEFAULT_MAX_BYTES,
};
const SLASHES: PathRules = PathRules { preserve_encoded_slash: true, ..STRICT };
const PARAMS: PathRules = PathRules { allow_matrix_params: true, ..STRICT };
const BOTH: PathRules = PathRules { preserve_encoded_slash: true, ..PARAMS };

fn get(target: &str) -> RawRequest<'_> {
    RawRequest {
        method: "GET",
        target,
        authority: None,
        host: Some(b"records.clinic"),
        more_hosts: false,
        method_override: false,
        http2: false,
        headers: &phiward::policy::NoHeaders,
    }
}

fn path(target: &str, rules: &PathRules) -> Result<String, Reason> {
    admit(&get(target), rules).map(|admitted| admitted.path.into_owned())
}

/// Paths that are refused whatever the policy says.
const ALWAYS: &[(Reason, &[&str])] = &[
    (
        Reason::DotSegment,
        &[
            "/.",
            "/..",
            "/./",
            "/../",
            "/a/.",
            "/a/..",
            "/a/./b",
            "/a/../b",
            "/%2e",
            "/%2E%2e/",
            "/.%2e/a",
            "/%2e./a",
            "/a/%2e%2E/b",
            "/a/..%20/b",
            "/a/.%20%20",
            "/../../etc/passwd",
            "/fhir/Patient/1/../2",
        ],
    ),
    (Reason::EmptySegment, &["//", "//a", "/a//", "/a//b", "///", "/a///b", "//evil.example/a"]),
    (Reason::Backslash, &["/\\", "/a\\b", "/a%5Cb", "/a%5cb", "/..\\a", "/..%5ca"]),
    (
        Reason::DoubleEncoding,
        &[
            "/%252e",
            "/%252E%252e/a",
            "/a%252fb",
            "/%2541",
            "/%25%32%65",
            "/%25%32e",
            "/a%25%32%66b",
            "/%255c",
            "/%2500",
        ],
    ),
    (
        Reason::ControlByte,
        &[
            "/a\u{1}", "/a\n", "/a\r\nb", "/a\t", "/a\u{7f}", "/%01", "/a%0a", "/a%0D%0A", "/%7F", "/%1b",
            "/%C2%85",
        ],
    ),
    (Reason::Nul, &["/\0", "/a\0b", "/a%00", "/%00", "/admin%00.json"]),
    (Reason::Space, &["/a b", "/ ", "/a ", "/a/b c"]),
    (Reason::NonAscii, &["/é", "/a\u{ff0f}b", "/\u{2025}/a"]),
    (Reason::IllegalByte, &["/a\"", "/<", "/>", "/a[1]", "/a]", "/^", "/`", "/{id}", "/a|b", "/}"]),
    (
        Reason::BadEscape,
        &[
            "/%",
            "/%2",
            "/%zz",
            "/a%2",
            "/%%32%65",
            "/%u002e",
            "/%+2e",
            "/%c0%ae",
            "/%C0%AF",
            "/%e0%80%ae",
            "/%FF",
            "/%C3",
            "/%80",
        ],
    ),
    (Reason::Fragment, &["/a#b", "/#", "/a?b#c", "/a#?b", "/a/#/../b"]),
    (
        Reason::NotAbsolutePath,
        &["", "a", "a/b", "?a", "*", "http://records.clinic/a", "%2fa", ".", "..", "x:/a"],
    ),
    (Reason::BadQuery, &["/a?b=%", "/a?%zz", "/a?b=%f", "/?%u0041"]),
    (Reason::MethodOverride, &["/a?_method=DELETE", "/a?x=1&%5Fmethod=PUT", "/a?x=1;_METHOD=PUT"]),
    (Reason::Space, &["/a?b c"]),
    (Reason::NonAscii, &["/a?é"]),
    (Reason::ControlByte, &["/a?b\n", "/a?\u{7f}"]),
    (Reason::Nul, &["/a?\0", "/a?x=%00"]),
];

/// If this fails, a request passes that the application may read in another way than the policy did.
#[test]
fn each_doubtful_path_is_rejected_whatever_the_policy_says() {
    for (reason, targets) in ALWAYS {
        for target in *targets {
            for rules in [STRICT, SLASHES, PARAMS, BOTH] {
                assert_eq!(path(target, &rules), Err(*reason), "{target:?} {rules:?}");
            }
        }
    }
}

/// If this fails, a relaxation lets more pass than what it names, or less.
#[test]
fn each_relaxation_lets_pass_what_it_names_and_nothing_that_hides_behind_it() {
    use Reason::{DotSegment, EmptySegment, EncodedSlash, Semicolon};
    for target in ["/a%2Fb", "/a%2fb/c", "/%2F", "/a/%2f", "/..%2Fa", "/a%2F%2e%2e"] {
        assert_eq!(path(target, &STRICT), Err(EncodedSlash), "{target}");
        assert_eq!(path(target, &PARAMS), Err(EncodedSlash), "{target}");
    }
    for target in ["/a;b", "/a%3Bb", "/a%3b", "/;", "/..;/a", "/a;/b", "/a/..;x/b"] {
        assert_eq!(path(target, &STRICT), Err(Semicolon), "{target}");
        assert_eq!(path(target, &SLASHES), Err(Semicolon), "{target}");
    }
    assert_eq!(path("/a%2fb/c", &SLASHES).as_deref(), Ok("/a%2Fb/c"));
    assert_eq!(path("/a;v=1/b%3bc", &PARAMS).as_deref(), Ok("/a;v=1/b%3Bc"));
    assert_eq!(path("/a;x%2Fb", &BOTH).as_deref(), Ok("/a;x%2Fb"));
    let hidden = [
        (SLASHES, "/a%2F..", DotSegment),
        (SLASHES, "/a%2F..%2fb", DotSegment),
        (SLASHES, "/..%2fb", DotSegment),
        (SLASHES, "/a%2F%2e/b", DotSegment),
        (SLASHES, "/a%2f%2fb", EmptySegment),
        (SLASHES, "/%2fa", EmptySegment),
        (SLASHES, "/a%2f/b", EmptySegment),
        (SLASHES, "/a%2f", EmptySegment),
        (PARAMS, "/..;/a", DotSegment),
        (PARAMS, "/..;x=1/a", DotSegment),
        (PARAMS, "/%2e%2e%3b/a", DotSegment),
        (PARAMS, "/.;a", DotSegment),
        (PARAMS, "/..%20;a", DotSegment),
        (PARAMS, "/;x/a", EmptySegment),
        (PARAMS, "/a/%3b", EmptySegment),
        (BOTH, "/a;x%2F..%2Fb", DotSegment),
        (BOTH, "/a%2f..;y/b", DotSegment),
    ];
    for (rules, target, reason) in hidden {
        assert_eq!(path(target, &rules), Err(reason), "{target} {rules:?}");
    }
    let long = format!("/{}", "a".repeat(99));
    assert_eq!(path(&long, &PathRules { max_bytes: 99, ..STRICT }), Err(Reason::PathTooLong));
    assert_eq!(path(&long, &PathRules { max_bytes: 100, ..STRICT }), Ok(long));
}

/// If this fails, ordinary requests of ordinary applications are refused or changed.
#[test]
fn ordinary_paths_pass_in_one_form() {
    let table = [
        ("/", "/"),
        ("/fhir/Patient/1", "/fhir/Patient/1"),
        ("/a/", "/a/"),
        ("/fhir/Patient/1/$everything", "/fhir/Patient/1/$everything"),
        ("/a.b/..c/d..", "/a.b/..c/d.."),
        ("/...", "/..."),
        ("/~user/a:b@c,d=e+f&g!h'(i)*", "/~user/a:b@c,d=e+f&g!h'(i)*"),
        ("/%41%7e%2d%5f%30", "/A~-_0"),
        ("/%2Ehidden", "/.hidden"),
        ("/a%20b", "/a%20b"),
        ("/%c3%a9", "/%C3%A9"),
        ("/100%25", "/100%25"),
        ("/%25zz", "/%25zz"),
        ("/a%3fb%23c", "/a%3Fb%23c"),
        ("/%24reindex", "/%24reindex"),
    ];
    for (given, want) in table {
        assert_eq!(path(given, &STRICT).as_deref(), Ok(want), "{given}");
        assert_eq!(path(want, &STRICT).as_deref(), Ok(want), "{want}");
    }
}

/// If this fails, the ordinary path costs an allocation, or the query is touched.
#[test]
fn what_came_in_canonical_form_is_borrowed() {
    let raw = get("/fhir/Observation/a%20b?patient=%31&x=/../;%2e%2e?y");
    let admitted = admit(&raw, &STRICT).unwrap_or_else(|reason| panic!("{reason:?}"));
    assert!(matches!(admitted.path, Cow::Borrowed("/fhir/Observation/a%20b")));
    assert!(matches!(admitted.host, Cow::Borrowed("records.clinic")));
    assert_eq!(admitted.query, Some("patient=%31&x=/../;%2e%2e?y"));
    assert_eq!(admitted.method, Method::Get);
    assert_eq!(admit(&get("/a?"), &STRICT).map(|admitted| admitted.query).ok(), Some(Some("")));
    assert_eq!(admit(&get("/a"), &STRICT).map(|admitted| admitted.query).ok(), Some(None));
}

/// If this fails, a tunnel, another method or another host than the one that was decided reaches the application.
#[test]
fn each_doubtful_head_is_rejected() {
    let base = get("/a");
    let table = [
        (Reason::Connect, RawRequest { method: "CONNECT", target: "records.clinic:443", ..base }),
        (Reason::UnknownMethod, RawRequest { method: "get", ..base }),
        (Reason::UnknownMethod, RawRequest { method: "PROPFIND", ..base }),
        (Reason::UnknownMethod, RawRequest { method: "", ..base }),
        (Reason::OptionsAsterisk, RawRequest { method: "OPTIONS", target: "*", ..base }),
        (Reason::NotAbsolutePath, RawRequest { target: "*", ..base }),
        (
            Reason::NotAbsolutePath,
            RawRequest { target: "a", http2: true, authority: Some("records.clinic"), ..base },
        ),
        (Reason::MethodOverride, RawRequest { method_override: true, ..base }),
        (Reason::MissingHost, RawRequest { host: None, ..base }),
        (Reason::MissingHost, RawRequest { host: None, http2: true, ..base }),
        (Reason::DuplicateHost, RawRequest { more_hosts: true, ..base }),
        (Reason::BadHost, RawRequest { host: Some(b""), ..base }),
        (Reason::BadHost, RawRequest { host: Some(b"a b"), ..base }),
        (Reason::BadHost, RawRequest { host: Some(b"a, b"), ..base }),
        (Reason::BadHost, RawRequest { host: Some(b"\xff"), ..base }),
        (Reason::BadHost, RawRequest { host: Some(b"a:http"), ..base }),
        (Reason::BadHost, RawRequest { host: Some(b"records.clinic%2e"), ..base }),
        (Reason::BadHost, RawRequest { authority: Some("user@records.clinic"), ..base }),
        (Reason::BadHost, RawRequest { authority: Some(""), host: None, http2: true, ..base }),
        (Reason::AbsoluteFormHost, RawRequest { authority: Some("billing.clinic"), ..base }),
        (
            Reason::AbsoluteFormHost,
            RawRequest { authority: Some("records.clinic:81"), host: Some(b"records.clinic:80"), ..base },
        ),
        (Reason::HostAuthority, RawRequest { authority: Some("billing.clinic"), http2: true, ..base }),
    ];
    for (at, (reason, raw)) in table.into_iter().enumerate() {
        assert_eq!(admit(&raw, &STRICT).err(), Some(reason), "row {at}");
        assert_eq!(admit(&raw, &BOTH).err(), Some(reason), "row {at}");
    }
    let host = |raw: RawRequest<'_>| admit(&raw, &STRICT).map(|admitted| admitted.host.into_owned());
    let both = RawRequest { authority: Some("Records.Clinic.:80"), host: Some(b"RECORDS.clinic"), ..base };
    assert_eq!(host(both).as_deref(), Ok("records.clinic"));
    assert_eq!(host(RawRequest { http2: true, ..both }).as_deref(), Ok("records.clinic"));
    assert_eq!(host(RawRequest { host: None, ..both }).as_deref(), Ok("records.clinic"));
}

/// If this fails, a header that replaces the method is forwarded.
#[test]
fn method_override_headers_are_known_in_every_spelling() {
    for name in ["x-http-method", "X-HTTP-Method-Override", "x_http_method_override", "X-Method_Override"] {
        assert!(is_method_override_header(name), "{name}");
    }
    for name in ["x-http-methods", "method", "x-http", ""] {
        assert!(!is_method_override_header(name), "{name}");
    }
}

/// If this fails, a reason was added to reject requests and no test shows that it does.
#[test]
fn every_reason_to_reject_is_in_a_table_of_this_file() {
    let of_paths: Vec<_> = ALWAYS.iter().map(|(reason, _)| *reason).collect();
    let elsewhere = [
        Reason::EncodedSlash,
        Reason::Semicolon,
        Reason::PathTooLong,
        Reason::Connect,
        Reason::UnknownMethod,
        Reason::OptionsAsterisk,
        Reason::MissingHost,
        Reason::DuplicateHost,
        Reason::BadHost,
        Reason::AbsoluteFormHost,
        Reason::HostAuthority,
    ];
    for reason in Reason::ALL.iter().filter(|reason| reason.outcome() == Outcome::Reject) {
        assert!(of_paths.contains(reason) || elsewhere.contains(reason), "{reason:?}");
    }
}

/// Decodes every escape once, as most applications do.
fn decode(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let pair = text.get(at + 1..at + 3).and_then(|pair| std::str::from_utf8(pair).ok());
        let digits = pair.filter(|pair| pair.bytes().all(|b| b.is_ascii_hexdigit()));
        match digits.filter(|_| text[at] == b'%') {
            Some(pair) => {
                out.push(u8::from_str_radix(pair, 16).unwrap());
                at += 3;
            }
            None => {
                out.push(text[at]);
                at += 1;
            }
        }
    }
    out
}

/// Resolves dots, merges slashes and drops matrix parameters, as one server or another does.
fn resolve(path: &[u8]) -> Vec<u8> {
    let text = path.iter().map(|b| char::from(*b)).collect::<String>();
    let mut kept: Vec<&str> = Vec::new();
    for segment in text.split(['/', '\\']).map(|segment| segment.split(';').next().unwrap_or(segment)) {
        match segment {
            "" | "." => {}
            ".." => drop(kept.pop()),
            segment => kept.push(segment),
        }
    }
    let slash = if text.ends_with('/') && text != "/" { "/" } else { "" };
    format!("/{}{slash}", kept.join("/")).chars().map(|c| c as u8).collect()
}

/// The pieces that attacks on paths are made of.
fn hostile_path() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => "[a-cA-C0-9]{1,3}",
        4 => Just("/".to_owned()),
        3 => "%[0-9a-fA-F]{2}",
        3 => proptest::sample::select(vec![
            ".", "..", "%2e", "%2E", "%2f", "%5c", "%25", "%00", "%3b", ";", "\\", "%", "%2", "%c0%ae", "%e2%80%a5", "%20",
            " ", "#", "?", "~", "$", "%24", "\u{e9}", "\u{1}", "{", "_method=x", "&", "=", ":", "@", "*", "+",
        ]).prop_map(str::to_owned),
    ];
    proptest::collection::vec(piece, 0..14).prop_map(|pieces| format!("/{}", pieces.concat()))
}

fn any_rules() -> impl Strategy<Value = PathRules> {
    proptest::sample::select(vec![STRICT, SLASHES, PARAMS, BOTH])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    /// If this fails, a network peer can bring a worker down.
    #[test]
    fn nothing_makes_admit_panic(
        target in any::<String>(), method in "[A-Z]{0,8}", host in any::<Vec<u8>>(), authority in any::<Option<String>>(),
        rules in any_rules(),
    ) {
        let raw = RawRequest { method: &method, authority: authority.as_deref(), host: Some(&host), ..get(&target) };
        let _ = admit(&raw, &rules);
    }

    /// If this fails, what was decided and what the next sidecar decides on the same path differ.
    #[test]
    fn canonical_form_is_stable(target in hostile_path(), rules in any_rules()) {
        if let Ok(once) = path(&target, &rules) {
            prop_assert_eq!(path(&once, &rules), Ok(once.clone()));
        }
    }

    /// If this fails, an application that decodes, decodes twice, resolves dots, merges slashes or drops matrix parameters
    /// acts on another path than the one that was allowed.
    #[test]
    fn there_is_nothing_left_to_resolve(target in hostile_path()) {
        if let Ok(admitted) = path(&target, &STRICT) {
            let once = decode(admitted.as_bytes());
            prop_assert_eq!(decode(&once), once.clone(), "decoding twice");
            prop_assert_eq!(resolve(admitted.as_bytes()), admitted.as_bytes(), "resolving");
            prop_assert_eq!(resolve(&once), once.clone(), "resolving what was decoded");
            prop_assert!(!once.iter().any(|b| b.is_ascii_control()));
            let slashes = |bytes: &[u8]| bytes.iter().filter(|b| **b == b'/').count();
            prop_assert_eq!(slashes(&once), slashes(admitted.as_bytes()), "decoding makes no separator");
        }
    }

    /// If this fails, a relaxed policy lets dots climb.
    #[test]
    fn relaxations_let_no_dots_climb(target in hostile_path(), rules in any_rules()) {
        if let Ok(admitted) = path(&target, &rules) {
            let once = decode(admitted.as_bytes());
            let depth = |bytes: &[u8]| bytes.iter().filter(|b| **b == b'/').count();
            prop_assert_eq!(depth(&resolve(&once)), depth(&once), "{}", admitted);
        }
    }

    /// If this fails, refusing less than the default also changes what is admitted.
    #[test]
    fn relaxations_change_nothing_that_was_admitted(target in hostile_path(), rules in any_rules()) {
        if let Ok(strict) = path(&target, &STRICT) {
            prop_assert_eq!(path(&target, &rules), Ok(strict));
        }
    }
}
