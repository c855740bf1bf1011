//! The list of skipped cells.

use maud::{Markup, html};

use crate::distinct::distinct;
use crate::results::Status;
use crate::run_folder::{Cell, RunFolder};
use crate::words::{capital, counted};

/// If cells were skipped for more reasons than this, the list is collapsed.
const MAX_OPEN_REASONS: usize = 3;
/// Stands for the encoder in a reason.
const NAME: &str = "NAME";

/// Skipped cells, one line per reason. Encoders whose reasons differ only in the encoder's name share a line.
pub(super) fn skipped(run: &RunFolder) -> Markup {
    let skipped: Vec<(String, &Cell)> = run
        .with_status(Status::Skipped)
        .map(|cell| {
            let (reason, encoder) = (cell.row.reason.trim(), cell.row.encoder.as_str());
            let template = if encoder.is_empty() {
                reason.to_owned()
            } else {
                reason.replace(encoder, NAME)
            };
            (template, cell)
        })
        .collect();
    let templates = distinct(skipped.iter().map(|(template, _)| template.as_str()));
    let folded = templates.len() > MAX_OPEN_REASONS;
    let lines = html! {
        @for template in templates { (line(template, &skipped)) }
    };
    html! {
        @if folded {
            details {
                summary { (counted(skipped.len(), "cell")) " skipped" }
                (lines)
            }
        } @else {
            (lines)
        }
    }
}

/// The cells that were skipped for one reason.
fn line(template: &str, skipped: &[(String, &Cell)]) -> Markup {
    let cells = skipped.iter().filter(|(other, _)| other == template);
    let names = distinct(cells.clone().map(|(_, cell)| {
        if cell.row.encoder.is_empty() {
            cell.row.cell.as_str()
        } else {
            cell.row.encoder.as_str()
        }
    }));
    let reason = match (template, names.as_slice()) {
        ("", _) => "no reason given".to_owned(),
        (template, [name]) => template.replace(NAME, name),
        (template, _) => template.to_owned(),
    };
    html! {
        p.note {
            strong { "Skipped" }
            " (" (counted(cells.count(), "cell")) "): " (names.join(", ")) ". "
            (with_code(&capital(&reason)))
        }
    }
}

/// `text` with the parts between backticks as code.
fn with_code(text: &str) -> Markup {
    let parts: Vec<&str> = text.split('`').collect();
    html! {
        @for (index, part) in parts.iter().enumerate() {
            @let is_code = index % 2 == 1;
            @let is_closed = index + 1 < parts.len();
            @if is_code && is_closed { code { (part) } }
            @else if is_code { "`" (part) }
            @else { (part) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_between_backticks_is_code() {
        let html = |text| with_code(text).into_string();
        assert_eq!(html("run `a<b` now"), "run <code>a&lt;b</code> now");
        assert_eq!(html("one ` alone"), "one ` alone");
    }
}
