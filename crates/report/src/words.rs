//! Helpers for writing sentences.

/// Returns a count with its noun: `1 cell`, `3 cells`.
pub(super) fn counted(count: usize, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

/// Joins alternatives: `a, b or c`.
pub(super) fn alternatives<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let words: Vec<&str> = words.collect();
    match words.as_slice() {
        [first @ .., last] if !first.is_empty() => format!("{} or {last}", first.join(", ")),
        words => words.concat(),
    }
}

/// Returns `text` with a capital first letter.
pub(super) fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(letters).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_noun_is_singular_only_for_one() {
        assert_eq!(counted(1, "cell"), "1 cell");
        assert_eq!(counted(0, "cell"), "0 cells");
    }

    #[test]
    fn the_last_alternative_follows_or() {
        let joined = |words: &[&'static str]| alternatives(words.iter().copied());
        assert_eq!(joined(&["a", "b", "c"]), "a, b or c");
        assert_eq!((joined(&["a"]), joined(&[])), ("a".into(), String::new()));
    }

    #[test]
    fn only_the_first_letter_changes() {
        assert_eq!(capital("against REPA"), "Against REPA");
        assert_eq!(capital(""), "");
    }
}
