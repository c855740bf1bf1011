//! Formats the times in `result.json`, which are seconds since 1970 or text.

/// Converts a time to text. Numbers are seconds since 1970 and become text that sorts chronologically; text is unchanged.
pub(super) fn readable(value: &serde_json::Value) -> Option<String> {
    match value {
        serde_json::Value::Number(number) => number
            .as_f64()
            .filter(|seconds| (0.0..=253_402_300_799.0).contains(seconds))
            .map(|seconds| utc(seconds as u64)),
        serde_json::Value::String(text) => {
            let text = text.trim();
            (!text.is_empty()).then(|| text.to_owned())
        }
        _ => None,
    }
}

/// Formats a time such as `2026-03-21 14:05 UTC`, with Howard Hinnant's `civil_from_days`.
fn utc(seconds: u64) -> String {
    let (days, minutes) = (seconds / 86_400, seconds % 86_400 / 60);
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year}-{month:02}-{day:02} {:02}:{:02} UTC",
        minutes / 60,
        minutes % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_converted_to_dates() {
        assert_eq!(utc(0), "1970-01-01 00:00 UTC");
        assert_eq!(utc(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(utc(1_774_102_259), "2026-03-21 14:10 UTC");
        assert_eq!(utc(253_402_300_799), "9999-12-31 23:59 UTC");
    }

    #[test]
    fn text_is_kept_and_other_values_are_ignored() {
        let readable = |text: &str| super::readable(&serde_json::from_str(text).unwrap());
        assert_eq!(
            readable("\" 2026-03-21T14:10Z \"").unwrap(),
            "2026-03-21T14:10Z"
        );
        assert_eq!(readable("-1"), None);
        assert_eq!(readable("1e300"), None);
        assert_eq!(readable("[]"), None);
        assert_eq!(readable("\"\""), None);
    }
}
