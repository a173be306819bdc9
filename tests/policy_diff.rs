//! The comparison of two policies against the engine: no request whose decision differs is missed, and every example shows
//! what it claims. Policies and requests are random; `PHIWARD_DIFF_CASES=100000` makes more of them.
#![allow(clippy::unwrap_used)] // a failure here is a failed test

use std::fmt::Write as _;

use fastrand::Rng;
use phiward::identity::SpiffeId;
use phiward::policy::diff::{Change, Diff, Example, diff};
use phiward::policy::{Policy, Request, UnixSeconds, explain};

const DAY: i64 = 86_400;

/// A policy in parts, so that another one can share most of them.
#[derive(Clone)]
struct Parts {
    head: String,
    permissions: Vec<(usize, String)>,
    bindings: Vec<String>,
    deny: Vec<String>,
}

fn some<'a>(rng: &mut Rng, of: &[&'a str]) -> &'a str {
    of[rng.usize(..of.len())]
}

fn list(rng: &mut Rng, of: &[&str]) -> String {
    let mut all: Vec<_> = of.to_vec();
    rng.shuffle(&mut all);
    all.truncate(1 + rng.usize(..of.len().min(2)));
    all.join(", ")
}

fn pattern(rng: &mut Rng) -> String {
    let mut text = String::new();
    for at in 0..rng.usize(..4) {
        let name = format!("{{n{at}}}");
        let _ = write!(text, "/{}", some(rng, &["a", "b", "A", "*", &name]));
    }
    text += some(rng, &["", "", "/", "/**", "/a"]);
    if text.is_empty() { "/".to_owned() } else { text }
}

fn condition(rng: &mut Rng) -> String {
    let mut text = String::new();
    if rng.usize(..4) == 0 {
        let _ = write!(text, ", hosts: [{}]", list(rng, &["h1", "h2"]));
    }
    if rng.usize(..5) == 0 {
        let _ = write!(text, ", headers: {{x-k: [{}]}}", list(rng, &["v", "W", "w"]));
    }
    text
}

fn query(rng: &mut Rng) -> String {
    let parts = [
        "allow: [p, q, m]".to_owned(),
        "require_any: [p, q]".to_owned(),
        format!("require: {{p: [{}]}}", list(rng, &["v", "\"5\"", "w"])),
        format!("max: {{m: {}}}", 4 + rng.usize(..4)),
    ];
    let mut kept: Vec<_> = parts.into_iter().filter(|_| rng.bool()).collect();
    if kept.is_empty() {
        kept.push("allow: []".to_owned());
    }
    format!(", query: {{{}}}", kept.join(", "))
}

fn permission(rng: &mut Rng) -> (usize, String) {
    let mut text = format!("methods: [{}], paths: [\"{}\"]", list(rng, &["GET", "POST"]), pattern(rng));
    text += &condition(rng);
    if rng.usize(..3) == 0 {
        text += &query(rng);
    }
    if rng.usize(..12) == 0 {
        text += ", mode: shadow";
    }
    if rng.usize(..12) == 0 {
        text = format!("tcp: {{listeners: [{}]}}", list(rng, &["db", "mq"]));
    }
    (rng.usize(..3), text)
}

const IDS: [&str; 7] = [
    "spiffe://d/a",
    "spiffe://d/b",
    "spiffe://d/*",
    "spiffe://d/a/*",
    "spiffe://d/**",
    "spiffe://d/*/b",
    "spiffe://e/a",
];

fn quoted(rng: &mut Rng) -> String {
    let ids = list(rng, &IDS);
    ids.split(", ").map(|id| format!("\"{id}\"")).collect::<Vec<_>>().join(", ")
}

fn binding(rng: &mut Rng) -> String {
    let mut text = format!("role: r{}, identities: [{}]", rng.usize(..3), quoted(rng));
    match rng.usize(..8) {
        0 => text += ", valid: {until: 1970-01-03}",
        1 => text += ", valid: {from: 1970-01-05}",
        _ => {}
    }
    text
}

fn deny(rng: &mut Rng) -> String {
    let mut text = match rng.usize(..4) {
        0 => format!("identities: [{}]", quoted(rng)),
        1 => format!("methods: [POST], paths: [\"{}\"]", pattern(rng)),
        2 => format!("paths: [\"{}\"], identities: [{}]", pattern(rng), quoted(rng)),
        _ => format!("paths: [\"{}\"]", pattern(rng)),
    };
    text += &condition(rng);
    text += some(rng, &["", "", "", ", until: 1970-01-04", ", mode: shadow"]);
    text
}

fn head(rng: &mut Rng) -> String {
    let mut text = String::new();
    let _ = match rng.usize(..4) {
        0 => writeln!(text, "service: {{hosts: [h1, h2], health: [/a]}}"),
        1 => writeln!(text, "service: {{health: [/b/a]}}"),
        _ => writeln!(text, "service: {{hosts: [h1, h2]}}"),
    };
    if rng.usize(..3) == 0 {
        let (slash, params) = (some(rng, &["reject", "preserve"]), some(rng, &["reject", "allow"]));
        let max = some(rng, &["16", "40", "2048"]);
        let _ = writeln!(text, "path: {{encoded_slash: {slash}, matrix_params: {params}, max_bytes: {max}}}");
    }
    if rng.usize(..25) == 0 { format!("mode: shadow\n{text}") } else { text }
}

impl Parts {
    fn random(rng: &mut Rng) -> Self {
        Self {
            head: head(rng),
            permissions: (0..1 + rng.usize(..4)).map(|_| permission(rng)).collect(),
            bindings: (0..1 + rng.usize(..3)).map(|_| binding(rng)).collect(),
            deny: (0..rng.usize(..3)).map(|_| deny(rng)).collect(),
        }
    }

    /// Rules about one path alone, so that no other change hides one that is missed.
    fn focused(rng: &mut Rng) -> Self {
        let headers = |rng: &mut Rng| match rng.usize(..2) {
            0 => format!(", headers: {{x-k: [{}]}}", list(rng, &["v", "W", "w"])),
            _ => String::new(),
        };
        let permission = |rng: &mut Rng| {
            let query = if rng.usize(..4) == 0 { String::new() } else { query(rng) };
            (0, format!("methods: [GET], paths: [/a]{}{query}", headers(rng)))
        };
        let deny = |rng: &mut Rng| {
            format!("paths: [/a], methods: [{}]{}", list(rng, &["GET", "POST"]), headers(rng))
        };
        Self {
            head: "service: {hosts: [h1]}\n".to_owned(),
            permissions: (0..1 + rng.usize(..3)).map(|_| permission(rng)).collect(),
            bindings: vec!["role: r0, identities: [\"spiffe://d/a\"]".to_owned()],
            deny: (0..rng.usize(..2)).map(|_| deny(rng)).collect(),
        }
    }

    fn changed(&self, rng: &mut Rng) -> Self {
        let mut parts = self.clone();
        let other = Self::random(rng);
        for _ in 0..1 + rng.usize(..2) {
            match rng.usize(..5) {
                0 => parts.permissions = other.permissions.clone(),
                1 => parts.permissions.extend(other.permissions.first().cloned()),
                2 => parts.bindings = other.bindings.clone(),
                3 => parts.deny = other.deny.clone(),
                _ => parts.head = other.head.clone(),
            }
        }
        parts
    }

    fn text(&self, revision: &str) -> String {
        // In shadow mode no rule can have a mode of its own.
        let own = |text: &str| {
            if self.head.starts_with("mode") { text.replace(", mode: shadow", "") } else { text.into() }
        };
        let mut text = "apiVersion: phiward/v1\nkind: Policy\n".to_owned();
        let _ = write!(text, "metadata: {{name: p, revision: {revision}}}\n{}roles:\n", self.head);
        for role in 0..3 {
            let _ = writeln!(text, "  r{role}:\n    - {{name: none, methods: [TRACE], paths: [/none]}}");
            for (at, (_, rule)) in self.permissions.iter().enumerate().filter(|(_, (of, _))| *of == role) {
                let _ = writeln!(text, "    - {{name: n{at}, {}}}", own(rule));
            }
        }
        text += "bindings:\n";
        self.bindings.iter().for_each(|binding| text += &format!("  - {{{binding}}}\n"));
        text += if self.deny.is_empty() { "" } else { "deny:\n" };
        self.deny
            .iter()
            .enumerate()
            .for_each(|(at, rule)| text += &format!("  - {{name: d{at}, {}}}\n", own(rule)));
        text
    }
}

/// Someone, who asks for something, at some time.
fn request(rng: &mut Rng) -> Example {
    let id = some(
        rng,
        &[
            "spiffe://d/a",
            "spiffe://d/b",
            "spiffe://d/x",
            "spiffe://d/a/b",
            "spiffe://d/x/b",
            "spiffe://e/a",
            "spiffe://d/a/x/y",
        ],
    );
    let mut path = String::new();
    for _ in 0..rng.usize(..4) {
        let _ = write!(
            path,
            "/{}",
            some(
                rng,
                &["a", "b", "a", "b", "A", "B", "1", "a.", "%61", "none", "a%2Fb", "a;v", "1%2Fa", "B;a"]
            )
        );
    }
    path += some(rng, &["", "", "", "/", "/zzzzzzzzzzzzzzzzzzzzzzzzzzzzzz"]);
    let path = if path.is_empty() { "/".to_owned() } else { path };
    let mut pairs = Vec::new();
    for _ in 0..rng.usize(..3) {
        pairs.push(some(
            rng,
            &[
                "p=v", "p=5", "p=w", "p=", "p=x", "q=1", "m=3", "m=5", "m=6", "m=9", "m=x", "r=1", "p[]=v",
                "a;b",
            ],
        ));
    }
    let query = if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) };
    let mut headers = vec![("host".to_owned(), some(rng, &["h1", "h1", "h2", "h3"]).to_owned())];
    for _ in 0..rng.usize(..3) {
        headers.push(("x-k".to_owned(), some(rng, &["v", "V", "w", "W", "x", "v;q"]).to_owned()));
    }
    if rng.usize(..8) == 0 {
        headers.push(("content-type".to_owned(), "multipart/form-data".to_owned()));
    }
    let line = match rng.usize(..15) {
        0 => format!("TCP {}", some(rng, &["db", "mq", "other"])),
        _ => format!("{} {path}{query}", some(rng, &["GET", "POST"])),
    };
    Example { id: SpiffeId::parse(id).unwrap(), now: UnixSeconds(rng.i64(0..6) * DAY), line, headers }
}

/// Whether `policy` allows it, and the path that was matched.
fn ask(policy: &Policy, example: &Example) -> (bool, Option<String>) {
    let request: Request = example.request().unwrap();
    let explanation = explain(policy, &example.id, &request, example.now);
    (explanation.decision.is_allowed(), explanation.path)
}

/// True when `change` is about the request, as far as its method, host and path tell.
fn is_about(change: &Change, example: &Example, path: Option<&str>) -> bool {
    let (method, _) = example.line.split_once(' ').unwrap();
    let Some(path) = path else { return change.path == example.line || change.path == "TCP *" };
    let host = &example.headers[0].1;
    let hosts = change.hosts.as_ref();
    change.methods.iter().any(|known| known.as_str() == method)
        && hosts
            .is_none_or(|hosts| hosts.iter().any(|known| known == host || known.starts_with("every host")))
        && matches(&change.path, path)
}

/// The slow and obvious way to match a path.
fn matches(pattern: &str, path: &str) -> bool {
    let (mut wanted, mut found) = (pattern.split('/').skip(1), path.split('/').skip(1));
    loop {
        match (wanted.next(), found.next()) {
            (Some("**"), _) | (None, None) => return true,
            (Some(want), Some(found)) if want == found => {}
            (Some(want), Some(found)) if (want == "*" || want.starts_with('{')) && !found.is_empty() => {}
            _ => return false,
        }
    }
}

fn check_examples(diff: &Diff, old: &Policy, new: &Policy, texts: &str) {
    for group in &diff.groups {
        for (changes, want) in [(&group.gained, (false, true)), (&group.lost, (true, false))] {
            for change in changes {
                let (before, after) = (ask(old, &change.example).0, ask(new, &change.example).0);
                assert_eq!((before, after), want, "{texts}\n{change:#?}");
                assert!(group.who.iter().any(|who| who.example == change.example.id));
            }
        }
    }
}

/// If this fails, a change of a policy gives somebody access that a reviewer is not shown, or a reviewer is shown a
/// change that is none.
#[test]
fn no_request_is_missed_and_every_example_shows_a_difference() {
    let cases = std::env::var("PHIWARD_DIFF_CASES").map_or(400, |cases| cases.parse().unwrap());
    let (mut differing, mut examples) = (0_u64, 0_u64);
    for seed in 0..cases {
        let mut rng = Rng::with_seed(seed);
        let focus = seed % 3 == 0;
        let parts = if focus { Parts::focused(&mut rng) } else { Parts::random(&mut rng) };
        let other = if focus { Parts::focused(&mut rng) } else { parts.changed(&mut rng) };
        let texts = [parts.text("a"), other.text("b")];
        let parse = |text: &String| {
            Policy::parse(text.as_bytes()).unwrap_or_else(|found| panic!("{text}\n{found:#?}"))
        };
        let (old, new) = (parse(&texts[0]), parse(&texts[1]));
        let found = diff(&old, &new, UnixSeconds(0));
        assert!(found.undecided.is_empty(), "seed {seed}: {:?}", found.undecided);
        let texts = format!("seed {seed}\n{}\n{}", texts[0], texts[1]);
        check_examples(&found, &old, &new, &texts);
        examples +=
            found.groups.iter().map(|group| (group.gained.len() + group.lost.len()) as u64).sum::<u64>();
        for _ in 0..120 {
            let mut example = request(&mut rng);
            if focus {
                let query = example.line.split_once('?').map(|(_, query)| format!("?{query}"));
                example.line = format!("GET /a{}", query.unwrap_or_default());
                example.id = SpiffeId::parse("spiffe://d/a").unwrap();
                example.headers[0].1 = "h1".to_owned();
            }
            let ((before, old_path), (after, new_path)) = (ask(&old, &example), ask(&new, &example));
            if before == after {
                continue;
            }
            differing += 1;
            if !found.moved.is_empty() && (old_path.is_none() || new_path.is_none()) {
                continue; // one of the two is in shadow mode as a whole, and the other rejects it: that is told once
            }
            let path = if after { new_path } else { old_path };
            let told = found.about(&example.id, example.now).any(|group| {
                let changes = if after { &group.gained } else { &group.lost };
                changes.iter().any(|change| is_about(change, &example, path.as_deref()))
            });
            assert!(told, "{texts}\n{example:#?}\n{before} -> {after}\n{found:#?}");
        }
    }
    assert!(differing > cases && examples > cases, "{differing} {examples}: the policies are too much alike");
}

/// If this fails, a change that gives nothing away stops a pipeline, or one that does passes.
#[test]
fn a_policy_compared_with_itself_shows_nothing() {
    for seed in 0..50 {
        let mut rng = Rng::with_seed(seed);
        let text = Parts::random(&mut rng).text("a");
        let policy = Policy::parse(text.as_bytes()).unwrap();
        let found = diff(&policy, &policy, UnixSeconds(0));
        assert!(found.groups.is_empty() && !found.is_widened() && !found.is_narrowed(), "{text}\n{found:#?}");
    }
}
