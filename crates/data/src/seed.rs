//! Derives all seeds and creates all random streams.
//!
//! A run has one seed. Each use of randomness, such as the order of an epoch, a flip, the noise of a
//! step or the resamples of a bootstrap, gets its own seed from [`derive()`], identified by a domain (a
//! fixed word) and indices (epoch, step, sample). No two uses share a stream, and no stream depends on
//! how many numbers another use has drawn, or on the thread.
//!
//! # Algorithm
//!
//! The algorithm is fixed, so that results stay reproducible.
//!
//! `derive(seed, domain, indices)` is the first 8 bytes, read as a little-endian integer, of the
//! SHA-256 of
//!
//! ```text
//! seed (8 bytes LE) | length of domain in bytes (8 bytes LE) | domain (UTF-8) | each index (8 bytes LE)
//! ```
//!
//! [`rng`] is ChaCha with 8 rounds. Its 32-byte key is the seed (little-endian) followed by zeros.
//! [`permutation`] is the Fisher-Yates shuffle from the last element down to the second; each element is
//! swapped with one that is drawn by Lemire's method (the high half of `next_u64 * bound`, with rejection
//! based on the low half so that the result is uniform).
//!
//! ```
//! use data::seed;
//!
//! assert_eq!(seed::derive(0, "epoch", &[0]), 1053874342124285302);
//! assert_ne!(seed::derive(0, "epoch", &[1]), seed::derive(0, "flip", &[1]));
//! assert_eq!(seed::permutation(7, 5).len(), 5);
//! ```

use rand_chacha::rand_core::{Rng, SeedableRng};
use sha2::{Digest, Sha256};

pub use rand_chacha::ChaCha8Rng;

/// Derives a seed for one use of randomness. See the [module documentation](self) for the algorithm.
pub fn derive(seed: u64, domain: &str, indices: &[u64]) -> u64 {
    let mut hash = Sha256::new();
    hash.update(seed.to_le_bytes());
    hash.update((domain.len() as u64).to_le_bytes());
    hash.update(domain.as_bytes());
    for index in indices {
        hash.update(index.to_le_bytes());
    }
    let digest = hash.finalize();
    digest
        .iter()
        .take(8)
        .rev()
        .fold(0, |value, &byte| (value << 8) | u64::from(byte))
}

/// Returns the random stream of a seed. Its numbers are the same on every machine and in every version.
pub fn rng(seed: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    ChaCha8Rng::from_seed(key)
}

/// Returns a uniformly distributed random permutation of `0..n`.
pub fn permutation(seed: u64, n: usize) -> Vec<u64> {
    let mut rng = rng(seed);
    let mut order: Vec<u64> = (0..n as u64).collect();
    for last in (1..n).rev() {
        let other = below(&mut rng, last as u64 + 1);
        order.swap(last, other as usize);
    }
    order
}

/// Draws a uniform integer in `0..bound`; `bound` must be at least 1.
fn below(rng: &mut ChaCha8Rng, bound: u64) -> u64 {
    loop {
        let product = u128::from(rng.next_u64()) * u128::from(bound);
        let low = product as u64;
        if low >= bound || low >= bound.wrapping_neg() % bound {
            return (product >> 64) as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_seeds_never_change() {
        // From an independent implementation of the description above, in Python.
        assert_eq!(derive(0, "", &[]), 15392584411371816759);
        assert_eq!(derive(42, "epoch", &[3]), 90247375695663192);
        assert_eq!(derive(u64::MAX, "flip", &[1, 2, 3]), 14296719473838804957);
    }

    #[test]
    fn random_streams_never_change() {
        let mut stream = rng(42);
        let drawn = [stream.next_u64(), stream.next_u64()];
        assert_eq!(drawn, [6424161053832095879, 5270208426312333099]);
        assert_eq!(permutation(42, 10), [7, 6, 5, 1, 0, 4, 8, 9, 2, 3]);
    }

    #[test]
    fn different_domains_and_indices_give_different_seeds() {
        let one = derive(0, "a", &[]);
        assert_ne!(one, derive(0, "", &[u64::from(b'a')]));
        assert_ne!(derive(0, "a", &[1, 2]), derive(0, "a", &[2, 1]));
        assert_ne!(derive(0, "a", &[0]), one);
    }

    #[test]
    fn permutation_holds_every_index_once() {
        for n in [0, 1, 2, 17, 1000] {
            let mut order = permutation(5, n);
            order.sort_unstable();
            assert_eq!(order, (0..n as u64).collect::<Vec<_>>());
        }
    }

    #[test]
    fn every_order_of_three_is_equally_likely() {
        let mut counts = std::collections::HashMap::new();
        for seed in 0..6000 {
            *counts.entry(permutation(seed, 3)).or_insert(0_u32) += 1;
        }
        assert_eq!(counts.len(), 6);
        // The expected count is 1000; six standard deviations are 173.
        assert!(
            counts.values().all(|n| n.abs_diff(1000) < 173),
            "{counts:?}"
        );
    }
}
