//! Chooses the class of each sample from its index.

use data::seed;
use serde::Serialize;

use super::SamplingError;

/// Maps the index of an image to its class.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClassRule {
    /// The classes to choose from.
    pub among: Vec<i64>,
    /// The order of the classes.
    pub order: ClassOrder,
    /// Seed of [`ClassOrder::Random`].
    #[serde(skip)]
    pub seed: u64,
}

/// The order in which classes are assigned to images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClassOrder {
    /// Classes take turns, so that their numbers of images differ by at most one.
    Balanced,
    /// The class of each image is drawn uniformly.
    Random,
}

impl ClassRule {
    /// Returns the rule that chooses from the classes `among`, or from all `classes` of the model if `among` is empty.
    ///
    /// # Errors
    /// The model does not have a class of `among`.
    pub fn new(
        among: &[i64],
        classes: i64,
        order: ClassOrder,
        seed: u64,
    ) -> Result<Self, SamplingError> {
        let outside = among.iter().find(|class| !(0..classes).contains(*class));
        if let Some(&class) = outside {
            return Err(SamplingError::Class { class, classes });
        }
        let among = match among {
            [] => (0..classes).collect(),
            among => among.to_vec(),
        };
        Ok(Self { among, order, seed })
    }

    /// Returns the class of image `index`.
    pub fn class(&self, index: u64) -> i64 {
        let place = match self.order {
            ClassOrder::Balanced => index,
            // The remainder favours the first classes by less than one part in 2^50.
            ClassOrder::Random => seed::derive(self.seed, "sample class", &[index]),
        };
        let place = place % (self.among.len() as u64).max(1);
        self.among.get(place as usize).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes(order: ClassOrder, seed: u64, count: u64) -> Vec<i64> {
        let rule = ClassRule::new(&[], 7, order, seed).unwrap();
        (0..count).map(|index| rule.class(index)).collect()
    }

    fn most_and_least(classes: &[i64]) -> (usize, usize) {
        let counts = (0..7).map(|class| classes.iter().filter(|other| **other == class).count());
        let counts: Vec<usize> = counts.collect();
        (*counts.iter().max().unwrap(), *counts.iter().min().unwrap())
    }

    #[test]
    fn balanced_classes_have_equal_numbers_of_images() {
        assert_eq!(
            most_and_least(&classes(ClassOrder::Balanced, 0, 24)),
            (4, 3)
        );
    }

    #[test]
    fn random_classes_depend_only_on_seed_and_index() {
        let many = classes(ClassOrder::Random, 3, 7000);
        assert_eq!(many[..50], classes(ClassOrder::Random, 3, 50));
        assert_ne!(many[..50], classes(ClassOrder::Random, 4, 50));
        // 1000 images per class are expected, with a standard deviation of 29.
        let (most, least) = most_and_least(&many);
        assert!(most < 1150 && least > 850, "{most} {least}");
    }

    #[test]
    fn classes_that_the_model_lacks_are_refused() {
        for class in [-1, 7] {
            let error = ClassRule::new(&[0, class], 7, ClassOrder::Random, 0).unwrap_err();
            assert!(error.to_string().contains("0 to 6"), "{error}");
        }
    }
}
