//! What each of the policy file's tools prints, on good and bad files, compared with the files in `tests/snapshots`.
//!
//! After a change that is meant: `PHIWARD_REWRITE_SNAPSHOTS=1 cargo test --test policy_tools`, then read the difference.
#![allow(clippy::unwrap_used)] // a failure here is a failed test

mod audit_support;

use std::path::Path;
use std::process::{Command, Output};

/// Judges dates as of this day, so that the snapshots do not age.
const NOW: &str = "2026-11-21";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn run(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_phiward"));
    command.arg("policy").args(args).current_dir(root()).env_remove("NO_COLOR").output().unwrap()
}

/// Everything that `phiward policy ARGS...` shows, and its exit code.
fn shown(args: &[&str]) -> String {
    let output = run(args);
    let code = output.status.code().unwrap();
    let mut text = format!("$ phiward policy {}\n", args.join(" "));
    for (name, bytes) in [("stdout", output.stdout), ("stderr", output.stderr)] {
        if !bytes.is_empty() {
            text += &format!("--- {name}\n{}", String::from_utf8(bytes).unwrap());
        }
    }
    text + &format!("--- exit {code}\n")
}

/// Compares `text` with the snapshot `name`, or rewrites it when that is asked for.
fn compare(name: &str, text: &str) {
    let path = root().join("tests/snapshots").join(name);
    if std::env::var_os("PHIWARD_REWRITE_SNAPSHOTS").is_some() {
        std::fs::write(&path, text).unwrap();
        return;
    }
    let want = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        want == text,
        "{} differs.\n--- expected\n{want}\n--- found\n{text}\nIf it is meant: PHIWARD_REWRITE_SNAPSHOTS=1",
        path.display()
    );
}

fn snapshot(name: &str, runs: &[&[&str]]) {
    compare(name, &runs.iter().map(|args| shown(args)).collect::<Vec<_>>().join("\n"));
}

const GOOD: &str = "config/policy.yaml";
const BROKEN: &str = "tests/fixtures/policy/broken.yaml";
const DOUBTFUL: &str = "tests/fixtures/policy/doubtful.yaml";

/// If this fails, a security engineer sees other findings, places or hints than before.
#[test]
fn validate_shows_every_finding() {
    snapshot(
        "validate.txt",
        &[
            &["validate", GOOD, "--now", NOW],
            &["validate", BROKEN, "--now", NOW],
            &["validate", DOUBTFUL, "--now", NOW, "--trust-domain", "hospital.local"],
            &["validate", GOOD, "--now", NOW, "--deny-lints", "--config", "config/sidecar.yaml"],
            &["validate", GOOD, "--now", NOW, "--deny-lints", "--trust-domain", "clinic.local"],
            &["validate", "tests/fixtures/policy/missing.yaml"],
            &["validate", "tests/fixtures/policy"],
        ],
    );
}

/// If this fails, a pipeline reads findings under other keys than before.
#[test]
fn validate_speaks_json_and_sarif() {
    snapshot(
        "validate-json.txt",
        &[&[
            "validate",
            GOOD,
            BROKEN,
            "tests/fixtures/policy/missing.yaml",
            "--now",
            NOW,
            "--format",
            "json",
        ]],
    );
    snapshot("validate-sarif.txt", &[&["validate", BROKEN, "--now", NOW, "--format", "sarif"]]);
}

/// If this fails, code scanning refuses the log: these are the properties that the SARIF 2.1.0 schema requires, and the
/// ones that GitHub and GitLab require beyond it.
#[test]
fn sarif_has_what_its_schema_requires() {
    let missing = "tests/fixtures/policy/missing.yaml";
    let output = run(&["validate", BROKEN, DOUBTFUL, missing, "--now", NOW, "--format", "sarif"]);
    let log: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(log["version"], "2.1.0");
    let run = &log["runs"][0];
    let driver = &run["tool"]["driver"];
    assert!(driver["name"].is_string());
    let rules = driver["rules"].as_array().unwrap();
    assert!(rules.iter().all(|rule| rule["id"].is_string() && rule["shortDescription"]["text"].is_string()));
    assert_eq!(run["invocations"][0]["executionSuccessful"], false);
    assert!(run["invocations"][0]["toolExecutionNotifications"][0]["message"]["text"].is_string());
    let results = run["results"].as_array().unwrap();
    assert!(results.len() > 20);
    for result in results {
        let index = usize::try_from(result["ruleIndex"].as_u64().unwrap()).unwrap();
        assert_eq!(result["ruleId"], rules[index]["id"]);
        assert!(["error", "warning"].contains(&result["level"].as_str().unwrap()));
        assert!(result["message"]["text"].is_string());
        let place = &result["locations"][0]["physicalLocation"];
        assert!(place["artifactLocation"]["uri"].is_string());
        assert!(place["region"]["startLine"].as_u64().unwrap() >= 1);
        assert!(place["region"]["startColumn"].as_u64().unwrap() >= 1);
    }
}

const MORE_TESTS: &str = "tests/fixtures/policy/more-tests.yaml";

/// If this fails, the author of a policy is told other results or reasons than before.
#[test]
fn test_shows_what_ran_and_why_it_failed() {
    snapshot(
        "test.txt",
        &[
            &["test", GOOD, "--now", NOW],
            &["test", GOOD, "--now", NOW, "--tests", MORE_TESTS],
            &["test", GOOD, DOUBTFUL, "--now", NOW],
            &["test", GOOD, "--now", NOW, "--tests", "tests/fixtures/policy/missing.yaml", "--tests", BROKEN],
        ],
    );
    snapshot("test-json.txt", &[&["test", GOOD, "--now", NOW, "--tests", MORE_TESTS, "--format", "json"]]);
    snapshot("test-junit.txt", &[&["test", GOOD, "--now", NOW, "--tests", MORE_TESTS, "--format", "junit"]]);
}

const NEXT: &str = "tests/fixtures/policy/next.yaml";

/// If this fails, a reviewer sees another difference between two versions than before.
#[test]
fn diff_shows_who_gains_and_loses_what() {
    snapshot(
        "diff.txt",
        &[
            &["diff", GOOD, NEXT, "--now", NOW],
            &["diff", GOOD, GOOD, "--now", NOW, "--fail-on-widening"],
            &["diff", GOOD, BROKEN, "--now", NOW],
        ],
    );
    let [enforced, shadowed, rules] =
        ["enforced", "shadowed", "rules-shadowed"].map(|name| format!("tests/fixtures/policy/{name}.yaml"));
    snapshot(
        "diff-shadow.txt",
        &[
            &["diff", &enforced, &shadowed, "--now", NOW, "--fail-on-widening"],
            &["diff", &shadowed, &enforced, "--now", NOW, "--fail-on-widening"],
            &["diff", &enforced, &rules, "--now", NOW, "--fail-on-widening"],
            &["diff", &rules, &enforced, "--now", NOW, "--fail-on-widening", "--format", "json"],
        ],
    );
    snapshot(
        "diff-json.txt",
        &[&["diff", NEXT, GOOD, "--now", NOW, "--format", "json", "--fail-on-widening"]],
    );
}

/// If this fails, an access review shows other rights, or another form of them, than before.
#[test]
fn matrix_lists_who_may_do_what() {
    snapshot(
        "matrix.txt",
        &[
            &["matrix", GOOD, "--now", NOW],
            &["matrix", NEXT, "--now", NOW],
            &["matrix", DOUBTFUL, "--now", NOW, "--format", "markdown"],
            &["matrix", NEXT, "--now", NOW, "--format", "csv"],
            &["matrix", GOOD, "--now", NOW, "--format", "json"],
            &["matrix", GOOD, "--since", "90d"],
        ],
    );
}

/// If this fails, a review keeps rights that nobody uses, takes away some that are used, or trusts a trail that was changed.
#[test]
fn matrix_tells_what_the_trail_shows_to_be_used() {
    let dir = tempfile::tempdir().unwrap();
    audit_support::trail_of(dir.path(), 3);
    let used = |args: &[&str]| {
        let dir = dir.path().to_str().unwrap();
        let output = run(&[&["matrix", GOOD, "--used-by", dir], args].concat());
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        text.replace(dir, "DIR")
    };
    let text = used(&["--now", "2026-11-22"]);
    assert!(text.contains("used 3 times, last 2026-11-20T14:03:22.118204771Z"), "{text}");
    assert!(text.contains("2 of 3 granted permissions were never used"), "{text}");
    assert!(!text.contains("warning"), "{text}");
    let later = used(&["--since", "1d", "--now", "2026-11-22"]);
    assert!(later.contains("3 of 3 granted permissions were never used"), "{later}");
    let early = used(&["--since", "2020-01-01", "--now", "2026-11-22"]);
    assert!(early.contains("warning: the trail begins at"), "{early}");
    let other = used(&["--service", "billing", "--now", "2026-11-22"]);
    assert!(other.contains("3 of 3 granted permissions were never used"), "{other}");
    let path = audit_support::segments(dir.path()).remove(0);
    audit_support::put_text(&path, audit_support::text_of(&path).replacen("\"GET\"", "\"PUT\"", 1));
    let text = used(&["--now", "2026-11-22"]);
    assert!(
        text.contains("warning: the audit trail is not as it was written") && text.contains("DIR"),
        "{text}"
    );
}

/// If this fails, `fmt --check` tells another story than before, or touches a file that it only looks at.
#[test]
fn fmt_checks_without_a_change() {
    let before = std::fs::read(root().join(UNTIDY)).unwrap();
    snapshot(
        "fmt.txt",
        &[
            &["fmt", "--check", GOOD, "src/dev/policy.yaml"],
            &["fmt", "--check", UNTIDY],
            &["fmt", "--check", "tests/fixtures/policy/missing.yaml", "tests/fixtures/policy/folded.yaml"],
        ],
    );
    assert_eq!(std::fs::read(root().join(UNTIDY)).unwrap(), before);
}

const UNTIDY: &str = "tests/fixtures/policy/untidy.yaml";

/// If this fails, formatting loses a comment, changes what a policy decides, or does something else the second time.
#[test]
fn fmt_writes_the_one_layout_and_keeps_the_policy() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.yaml");
    std::fs::copy(root().join(UNTIDY), &path).unwrap();
    let link = dir.path().join("link.yaml");
    std::os::unix::fs::symlink("p.yaml", &link).unwrap();
    let file = link.to_str().unwrap();
    let output = run(&["fmt", file]);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{file}: formatted\n"));
    let text = std::fs::read_to_string(&path).unwrap();
    compare("fmt-untidy.yaml", &text);
    assert!(link.is_symlink());
    for args in [&["fmt", file][..], &["fmt", "--check", file], &["validate", file]] {
        let output = run(args);
        assert!(output.status.success(), "{args:?}");
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    let diff = String::from_utf8(run(&["diff", UNTIDY, file]).stdout).unwrap();
    assert!(diff.contains("nobody gains or loses anything"), "{diff}");
}

/// If this fails, an editor that asks the program gets another schema than the published one.
#[test]
fn schema_prints_what_is_published() {
    let published = std::fs::read(root().join("docs/schema/policy.json")).unwrap();
    assert_eq!(run(&["schema"]).stdout, published);
}
