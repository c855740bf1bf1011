//! The sign test.

/// The two-sided p-value of the sign test: the probability that a fair coin falls at least as far from an even split as
/// `wins` against `losses`. Pairs without a winner are not counted; without any pair, it is 1.
///
/// ```
/// use metrics::statistics::sign_test;
///
/// assert!((sign_test(17, 2) - 382.0 / 524_288.0).abs() < 1e-12);
/// ```
pub fn sign_test(wins: usize, losses: usize) -> f64 {
    let pairs = wins + losses;
    // Logarithm of the probability of `k` of `pairs` coins, in ascending order of `k`.
    let mut log_probability = -(pairs as f64) * std::f64::consts::LN_2;
    let mut tail = 0.0;
    for k in 0..=wins.min(losses) {
        tail += log_probability.exp();
        log_probability += ((pairs - k) as f64 / (k + 1) as f64).ln();
    }
    (2.0 * tail).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_exact_two_sided_binomial_test() {
        for (wins, losses, expected) in [
            (0, 0, 1.0),
            (5, 5, 1.0),
            (0, 5, 0.0625),
            (5, 0, 0.0625),
            (19, 0, 2.0 / 524_288.0),
            (14, 5, 2.0 * 16_664.0 / 524_288.0),
        ] {
            let found = sign_test(wins, losses);
            assert!((found - expected).abs() < 1e-12, "{wins} {losses} {found}");
        }
        // Half the probability of an even split of 2000 coins underflows without logarithms.
        let many = sign_test(1_100, 900);
        assert!(many > 5e-6 && many < 1e-5, "{many}");
    }
}
