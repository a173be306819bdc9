//! What is looked for: a patient's name, a record number and a token, in every form in which they might get out.

use std::fmt::Write;

/// Each must be nowhere. In this case and these characters they can stand in a path, a host, a method and a header's name.
const PARTS: [&str; 3] = ["quillfeather", "mrn48151623", "tok9d3f7c1a"];
/// All of them, as they are sent: fit for a label of a host name.
pub const MARKER: &str = "quillfeather-mrn48151623-tok9d3f7c1a";

/// The first of the parts that is in `bytes`, in any case, percent-encoded, in hexadecimal or in base64.
pub fn found_in(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    let lower = text.to_lowercase().replace(' ', "");
    PARTS.iter().find_map(|part| {
        let lower_forms = [(*part).to_owned(), percent(part), hex(part), escaped(part)];
        let plain = lower_forms.iter().find(|form| lower.contains(*form)).cloned();
        plain.or_else(|| base64_cores(part).into_iter().find(|form| text.contains(form)))
    })
}

/// `text` with every byte percent-encoded, in lower case.
pub fn percent(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "%{byte:02x}"); // into memory
        out
    })
}

pub fn hex(text: &str) -> String {
    percent(text).replace('%', "")
}

/// As debug output shows the bytes of a list.
fn escaped(text: &str) -> String {
    text.bytes().map(|byte| byte.to_string()).collect::<Vec<_>>().join(",")
}

/// Base64, without padding.
pub fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for three in bytes.chunks(3) {
        let number =
            three.iter().fold(0u32, |number, byte| number << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for at in 0..=three.len() {
            out.push(ALPHABET[(number >> (18 - 6 * at) & 63) as usize] as char);
        }
    }
    out
}

/// What base64 makes of `text` wherever it stands in the encoded bytes: the characters that depend on nothing else.
fn base64_cores(text: &str) -> Vec<String> {
    (0..3)
        .map(|before| {
            let encoded = base64(&[&[b'.'; 2][..before], text.as_bytes()].concat());
            let (from, to) = ([0, 2, 3][before], (before + text.len()) / 3 * 4);
            encoded[from..to].to_owned()
        })
        .collect()
}

/// If this fails, a leak in one of the forms would not be seen.
#[test]
fn every_form_is_found_wherever_it_stands() {
    for part in PARTS {
        assert!(MARKER.contains(part));
        for before in ["", "a", "bc", "def"] {
            let text = format!("{before}{part}xyz");
            let forms = [
                text.clone(),
                text.to_uppercase(),
                percent(&text),
                hex(&text),
                base64(text.as_bytes()),
                escaped(&text),
                format!("{:?}", text.as_bytes()),
            ];
            for form in forms {
                assert!(found_in(form.as_bytes()).is_some(), "{form}");
            }
        }
    }
    assert_eq!(base64(b"light work."), "bGlnaHQgd29yay4");
    assert_eq!(found_in(b"{\"type\":\"access.decision\",\"hash\":\"48151623\"}"), None);
}
