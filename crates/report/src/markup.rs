//! Helpers for HTML and SVG, which `maud` writes and escapes.

/// Replaces the control characters of a document, which XML does not allow, except line feeds and tabs.
pub fn printable(document: &str) -> String {
    document.replace(
        |letter: char| letter.is_control() && !matches!(letter, '\n' | '\t'),
        "\u{fffd}",
    )
}

/// The elements in the `<svg>` element that plotters wrote.
pub fn svg_content(svg: &str) -> &str {
    let content = svg.split_once('>').map_or("", |(_, rest)| rest);
    content
        .rsplit_once("</svg>")
        .map_or(content, |(content, _)| content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_replaced() {
        assert_eq!(printable("a\n\tb\u{1b}\u{0}é"), "a\n\tb\u{fffd}\u{fffd}é");
    }

    #[test]
    fn the_content_has_no_outer_tags() {
        assert_eq!(
            svg_content("<svg width=\"1\">\n<rect/>\n</svg>\n"),
            "\n<rect/>\n"
        );
        assert_eq!(svg_content(""), "");
    }
}
