//! Reads the lines of `metrics.jsonl`.

use metrics::figures::Figures;
use serde::Deserialize;

/// A line of `metrics.jsonl`.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub(super) struct LoggedStep {
    /// Number of optimiser steps done.
    pub step: u64,
    #[serde(flatten)]
    pub figures: Figures,
}

/// The lines of a log.
pub(super) struct ParsedLog {
    pub steps: Vec<LoggedStep>,
    /// The number of an incomplete last line.
    pub incomplete: Option<usize>,
    /// The numbers of other lines that cannot be read.
    pub unreadable: Vec<usize>,
}

/// Parses `metrics.jsonl`. A last line without a newline that does not parse was being written when the process ended.
/// Steps that a resumed run wrote again replace the earlier ones.
pub(super) fn parse_log(bytes: &[u8]) -> ParsedLog {
    let mut parsed = ParsedLog {
        steps: Vec::new(),
        incomplete: None,
        unreadable: Vec::new(),
    };
    for (index, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        match serde_json::from_slice::<LoggedStep>(line) {
            Ok(logged) => {
                while parsed
                    .steps
                    .last()
                    .is_some_and(|last| last.step >= logged.step)
                {
                    parsed.steps.pop();
                }
                parsed.steps.push(logged);
            }
            Err(_) if !line.ends_with(b"\n") => parsed.incomplete = Some(index + 1),
            Err(_) => parsed.unreadable.push(index + 1),
        }
    }
    parsed
}

#[cfg(test)]
mod tests {
    use metrics::figures::Figure;

    use super::*;

    fn steps(parsed: &ParsedLog) -> Vec<u64> {
        parsed.steps.iter().map(|logged| logged.step).collect()
    }

    #[test]
    fn an_incomplete_last_line_is_ignored() {
        let parsed = parse_log(b"{\"step\":1,\"loss\":2.0}\n{\"step\":2,\"lo");
        assert_eq!(steps(&parsed), [1]);
        assert_eq!(parsed.incomplete, Some(2));
        assert!(parsed.unreadable.is_empty());
    }

    #[test]
    fn a_complete_last_line_without_newline_is_read() {
        let parsed = parse_log(b"{\"step\":1}\n{\"step\":2}");
        assert_eq!(steps(&parsed), [1, 2]);
        assert_eq!(parsed.incomplete, None);
    }

    #[test]
    fn unreadable_lines_are_recorded_and_the_rest_is_read() {
        let parsed = parse_log(b"{\"step\":1}\nnonsense\n\xff\xfe\n\n{\"step\":4}\n");
        assert_eq!(steps(&parsed), [1, 4]);
        assert_eq!(parsed.unreadable, [2, 3]);
    }

    #[test]
    fn steps_that_were_written_again_replace_the_earlier_ones() {
        let parsed = parse_log(
            b"{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n{\"step\":2,\"denoising_loss\":0.5}\n",
        );
        assert_eq!(steps(&parsed), [1, 2]);
        assert_eq!(
            parsed.steps[1].figures.get(Figure::DenoisingLoss),
            Some(0.5)
        );
    }
}
