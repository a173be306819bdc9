//! "Did you mean": the nearest of the known words.

/// The word of `known` nearest to `found`, if it is near enough to be a slip of the hand.
pub(crate) fn closest<'k>(found: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    if found.len() > 64 {
        return None; // the table below is quadratic, and no known word is as long
    }
    let limit = found.chars().count().saturating_add(1) / 3; // none for a single letter: every other one is as near
    known
        .into_iter()
        .map(|word| (distance(found, word), word))
        .filter(|(far, _)| *far <= limit.min(2))
        .min_by_key(|(far, _)| *far)
        .map(|(_, word)| word)
}

/// Edits between two words, a swap of neighbours counting as one (optimal string alignment), case ignored.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().map(|c| c.to_ascii_lowercase()).collect();
    let b: Vec<char> = b.chars().map(|c| c.to_ascii_lowercase()).collect();
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let change = usize::from(a[i - 1] != b[j - 1]);
            let mut best = (last[j] + 1).min(row[j - 1] + 1).min(last[j - 1] + change);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If this fails, hints name words that nobody meant, or stay silent about plain slips.
    #[test]
    fn slips_are_recognised_and_other_words_are_not() {
        let known = ["methods", "paths", "hosts", "name"];
        assert_eq!(closest("method", known), Some("methods"));
        assert_eq!(closest("pahts", known), Some("paths"));
        assert_eq!(closest("Hosts", known), Some("hosts"));
        assert_eq!(closest("query", known), None);
        assert_eq!(closest("a", ["b", "c"]), None);
        assert_eq!(closest("", known), None);
    }
}
