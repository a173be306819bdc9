//! What must hold for every policy and every request: searched for at random, compared with a naive reading of the same
//! policy that shares no code with the engine.
//!
//! `PHIWARD_PROPERTY_PAIRS=1000000 cargo test --release --test policy_properties` compares a million pairs;
//! `PHIWARD_PROPERTY_SEED` repeats a run that failed.
#![allow(clippy::unwrap_used)] // a failure here is a failed test

mod policy_support;

use phiward::policy::{NoHeaders, PathRules, RawRequest, admit};
use policy_support::random;
use policy_support::{Asked, Model, reference};
use proptest::prelude::*;

/// Pairs of a policy and a request: enough to meet every kind of rule, few enough for each run of the tests.
const PAIRS: u64 = 20_000;
const REQUESTS_A_POLICY: u64 = 40;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

/// If this fails, the compiled policy decides something else than the file says.
#[test]
fn the_engine_agrees_with_a_plain_reading_of_the_policy() {
    let pairs = number("PHIWARD_PROPERTY_PAIRS", PAIRS);
    let first = number("PHIWARD_PROPERTY_SEED", 1);
    let mut met = std::collections::BTreeMap::<String, u64>::new();
    for seed in first..first + pairs.div_ceil(REQUESTS_A_POLICY) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let model = random::model(&mut rng);
        let policy = model.parse();
        for _ in 0..REQUESTS_A_POLICY {
            let asked = random::asked(&mut rng);
            let (engine, plain) = (asked.decide(&policy), reference::decide(&model, &asked));
            assert_eq!(engine, plain, "PHIWARD_PROPERTY_SEED={seed}\n{}\n{asked:#?}", model.yaml());
            let shadow = if engine.shadow.is_some() { " beside shadow" } else { "" };
            *met.entry(format!("{}{shadow}", engine.reason)).or_default() += 1;
        }
    }
    let kinds = [
        "rule",
        "rule beside shadow",
        "no_allow_rule",
        "no_allow_rule beside shadow",
        "deny_rule",
        "deny_rule beside shadow",
        "shadow_mode beside shadow",
        "unknown_host",
        "health",
        "rejected",
    ];
    for kind in kinds {
        let count = met.get(kind).copied().unwrap_or_default();
        assert!(count * 3000 > pairs, "{kind} is hardly ever met, so nothing is shown of it: {met:?}");
    }
}

/// Ways in which a backend may read a path besides as it stands.
fn readings(path: &str) -> Vec<String> {
    let steps: [fn(&str) -> String; 4] = [dots_resolved, slashes_merged, decoded_again, params_stripped];
    let mut all = vec![path.to_owned()];
    // Every order of the four, some of them several times.
    for _ in 0..3 {
        let more: Vec<String> = all.iter().flat_map(|path| steps.map(|step| step(path))).collect();
        all.extend(more);
        all.sort();
        all.dedup();
    }
    all
}

fn dots_resolved(path: &str) -> String {
    let mut out: Vec<&str> = Vec::new();
    for segment in path[1..].split('/') {
        match segment {
            "." => {}
            ".." => drop(out.pop()),
            segment => out.push(segment),
        }
    }
    format!("/{}", out.join("/"))
}

fn slashes_merged(path: &str) -> String {
    let mut out = path.to_owned();
    while out.contains("//") {
        out = out.replace("//", "/");
    }
    out
}

/// Decodes every escape; what cannot stand in a path is escaped again, so that it can be asked for.
fn decoded_again(path: &str) -> String {
    let mut out = String::new();
    let bytes = path.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let value = path
            .get(at + 1..at + 3)
            .filter(|_| bytes[at] == b'%')
            .and_then(|pair| u8::from_str_radix(pair, 16).ok());
        let byte = value.unwrap_or(bytes[at]);
        at += if value.is_some() { 3 } else { 1 };
        let stands = byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,=:@;".contains(&byte);
        if stands { out.push(char::from(byte)) } else { out += &format!("%{byte:02X}") }
    }
    out
}

fn params_stripped(path: &str) -> String {
    let cut = |segment: &str| segment.split(';').next().unwrap().split("%3B").next().unwrap().to_owned();
    path.split('/').map(cut).collect::<Vec<_>>().join("/")
}

/// If this fails, a backend reads a request that was allowed as one that the policy forbids.
#[test]
fn no_reading_of_an_allowed_request_is_refused() {
    let (mut allowed, mut other) = (0, 0);
    for seed in 1..=number("PHIWARD_PROPERTY_PAIRS", PAIRS) / REQUESTS_A_POLICY {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut model = random::model(&mut rng);
        model.shadow = false;
        // A literal that holds an escape means that spelling alone; all others mean the segment however it is escaped.
        let literal = |path: &String| !path.contains('%') && !path.contains(';');
        for permission in model.roles.iter_mut().flatten().filter(|permission| permission.tcp.is_none()) {
            permission.paths.retain(literal);
            permission.paths.push(format!("/only/{}", permission.name));
        }
        let relaxed = model.slashes || model.matrix;
        let policy = model.parse();
        for _ in 0..REQUESTS_A_POLICY {
            let asked = random::asked(&mut rng);
            if asked.method == "TCP" || asked.decide(&policy).reason != "rule" {
                continue;
            }
            allowed += 1;
            let (path, query) =
                asked.target.split_once('?').map_or((asked.target.as_str(), None), |(p, q)| (p, Some(q)));
            let path = reference::canonical(&model, path).unwrap();
            for reading in readings(&path) {
                other += u64::from(reading != path);
                let target = query.map_or(reading.clone(), |query| format!("{reading}?{query}"));
                let answer = Asked { target, ..asked.clone() }.decide(&policy);
                // What a relaxed `path:` block keeps opaque is granted as it stands; deny rules look through it still.
                let refused = answer.reason == "deny_rule" || !relaxed && !answer.is_allowed();
                assert!(
                    !refused,
                    "{path} is allowed and {reading} is {answer:?}\n{}\n{asked:#?}",
                    model.yaml()
                );
            }
        }
    }
    assert!(
        allowed > 500 && other > 50,
        "{allowed} were allowed, {other} readings differed: nothing is shown"
    );
}

/// The same request in a way that some server takes for the same.
fn respelt(asked: &Asked, how: u64, rng: &mut fastrand::Rng) -> Asked {
    let mut asked = asked.clone();
    let (path, query) = match asked.target.split_once('?') {
        Some((path, query)) => (path.to_owned(), format!("?{query}")),
        None => (asked.target.clone(), String::new()),
    };
    let inner = path.trim_end_matches('/');
    let path = match how % 8 {
        0 => path
            .chars()
            .map(|c| if c == 'a' || c == 'b' || c == 'x' { c.to_ascii_uppercase() } else { c })
            .collect(),
        1 => path.replace('A', "a").replace('B', "b"),
        2 => format!("{inner}/"),
        3 if !inner.is_empty() => inner.to_owned(),
        4 if !inner.is_empty() => format!("{inner}."),
        5 => path.replace('$', "%24"),
        6 => path.replace("%24", "$"),
        _ => path,
    };
    asked.target = path + &query;
    for (name, value) in &mut asked.headers {
        match rng.u32(..5) {
            0 => *name = name.to_ascii_uppercase(),
            1 => *name = name.replace('-', "_"),
            2 => *value = value.to_ascii_uppercase(),
            3 => *value = format!("other, {value}"),
            _ => *value = format!(" {value} ,other"),
        }
    }
    let more = asked.headers.iter().map(|(name, _)| (name.clone(), "other".to_owned())).collect::<Vec<_>>();
    let place = rng.usize(..=asked.headers.len());
    asked.headers.splice(place..place, more);
    asked
}

/// If this fails, a deny rule is passed by by writing path or headers in another way, or by sending more of them.
#[test]
fn what_is_denied_stays_denied_however_it_is_spelt() {
    let mut denied = 0;
    for seed in 1..=number("PHIWARD_PROPERTY_PAIRS", PAIRS) / REQUESTS_A_POLICY {
        let mut rng = fastrand::Rng::with_seed(seed ^ 0xD0);
        // A health path is let pass before any rule is asked, and only as it is written.
        let model = Model { shadow: false, health: Vec::new(), ..random::model(&mut rng) };
        let policy = model.parse();
        for how in 0..REQUESTS_A_POLICY {
            let asked = random::asked(&mut rng);
            if asked.decide(&policy).reason != "deny_rule" || asked.method == "TCP" {
                continue;
            }
            denied += 1;
            let other = respelt(&asked, how, &mut rng);
            let answer = other.decide(&policy);
            let refused = answer.reason == "deny_rule" || answer.reason == "rejected";
            assert!(refused, "{answer:?}\n{}\n{asked:#?}\n{other:#?}", model.yaml());
        }
    }
    assert!(denied > 500, "only {denied} requests were denied: nothing is shown");
}

fn canonical(target: &str, rules: &PathRules) -> Option<String> {
    let raw = RawRequest {
        method: "GET",
        target,
        authority: None,
        host: Some(b"a.b"),
        more_hosts: false,
        method_override: false,
        http2: false,
        headers: &NoHeaders,
    };
    admit(&raw, rules).ok().map(|admitted| admitted.path.into_owned())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    /// If this fails, the next sidecar on the way, or the same one again, sees another path than was decided.
    #[test]
    fn the_canonical_form_is_its_own_canonical_form(
        target in "/([a-b.A%;/$ ]|%[2-7][0-9a-fA-F]|%[Cc]3%[Aa]9|%2[eEfF]|%3[bB]){0,12}", preserve in any::<bool>(), params in any::<bool>(),
    ) {
        let rules = PathRules { preserve_encoded_slash: preserve, allow_matrix_params: params, ..PathRules::default() };
        if let Some(once) = canonical(&target, &rules) {
            prop_assert_eq!(canonical(&once, &rules), Some(once.clone()), "{}", target);
            let model = Model { slashes: preserve, matrix: params, ..Model::default() };
            prop_assert_eq!(reference::canonical(&model, &target), Some(once));
        }
    }
}
