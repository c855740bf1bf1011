//! Helpers for writing sentences.

/// Returns a count with its noun: `1 cell`, `3 cells`.
pub(super) fn counted(count: usize, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
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
    fn only_the_first_letter_changes() {
        assert_eq!(capital("against REPA"), "Against REPA");
        assert_eq!(capital(""), "");
    }
}
