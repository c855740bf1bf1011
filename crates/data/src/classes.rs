//! Maps the class indices of another data set to those of the training set.

use std::collections::HashMap;

use crate::dataset::Dataset;
use crate::error::DataError;

/// Maps labels of a reference set to labels of the training set.
///
/// Each data set numbers its classes independently: a validation folder that lacks the second of 1,000
/// classes numbers the third as 1. A model knows the numbers of its training set, so labels of any other set
/// are mapped before a model or a classifier uses them.
///
/// ```
/// use data::ClassMap;
///
/// let names = |names: &[&str]| -> Vec<String> { names.iter().map(|name| name.to_string()).collect() };
/// let map = ClassMap::between_names(("train", &names(&["ant", "bee", "cat"])), ("val", &names(&["ant", "cat"])))?;
/// assert_eq!(map.training_label(1), Some(2));
/// # Ok::<(), data::DataError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassMap {
    /// The training label of each reference label.
    labels: Vec<i64>,
    training_classes: usize,
}

impl ClassMap {
    /// Maps the classes of `reference` to those of `training` by name.
    ///
    /// The reference set may have fewer classes, in another order. If one of the sets has no class names
    /// (its labels are plain integers, or it is unlabelled), labels keep their numbers, and both sets
    /// must have the same number of classes. If the labels of both sets are plain integers, they are compared
    /// by number, and the reference set may have fewer classes.
    ///
    /// # Errors
    ///
    /// [`DataError::Classes`] if the training set lacks a class of the reference set, or two classes of one set
    /// have the same name.
    pub fn between(training: &dyn Dataset, reference: &dyn Dataset) -> Result<Self, DataError> {
        Self::between_names(
            (training.name(), training.class_names()),
            (reference.name(), reference.class_names()),
        )
    }

    /// As [`between`](Self::between), for two data sets that are described by `(name, class_names)`, such as the
    /// training set that a checkpoint records.
    ///
    /// # Errors
    ///
    /// As [`between`](Self::between).
    pub fn between_names(
        (training_name, training): (&str, &[String]),
        (reference_name, reference): (&str, &[String]),
    ) -> Result<Self, DataError> {
        let in_order = || Self {
            labels: (0..reference.len() as i64).collect(),
            training_classes: training.len(),
        };
        if training == reference {
            return Ok(in_order());
        }
        let failed = |problem: String| DataError::Classes {
            training: training_name.to_owned(),
            training_classes: training.len(),
            reference: reference_name.to_owned(),
            reference_classes: reference.len(),
            problem,
        };
        let mut by_name = HashMap::new();
        for (label, name) in training.iter().enumerate() {
            if let Some(first) = by_name.insert(name.as_str(), label as i64) {
                return Err(failed(format!(
                    "classes {first} and {label} of {training_name} are both called `{name}`"
                )));
            }
        }
        let mapped: Option<Vec<i64>> = reference
            .iter()
            .map(|name| by_name.get(name.as_str()).copied())
            .collect();
        if let Some(labels) = mapped {
            let mut seen = HashMap::new();
            for (label, name) in reference.iter().enumerate() {
                if let Some(first) = seen.insert(name, label) {
                    return Err(failed(format!(
                        "classes {first} and {label} of {reference_name} are both called `{name}`"
                    )));
                }
            }
            return Ok(Self {
                labels,
                training_classes: training.len(),
            });
        }
        let nameless = is_nameless(training) || is_nameless(reference);
        if nameless && training.len() == reference.len() {
            return Ok(in_order());
        }
        let missing = reference
            .iter()
            .enumerate()
            .find(|(_, name)| !by_name.contains_key(name.as_str()));
        Err(failed(match missing {
            Some((label, name)) => format!(
                "class {label} of {reference_name} is `{name}`, but {training_name} has no class of this name{}",
                match training.get(label) {
                    Some(other) => format!(" (its class {label} is `{other}`)"),
                    None => String::new(),
                }
            ),
            None => "their classes differ".to_owned(),
        }))
    }

    /// Returns the training label of a reference label, or `None` if the reference set has no such label.
    pub fn training_label(&self, reference: i64) -> Option<i64> {
        let index = usize::try_from(reference).ok()?;
        self.labels.get(index).copied()
    }

    /// Whether both sets have the same classes with the same numbers.
    pub fn is_identity(&self) -> bool {
        self.labels.len() == self.training_classes
            && self.labels.iter().zip(0..).all(|(&label, i)| label == i)
    }

    /// Returns the training labels of the classes in the reference set, in ascending order.
    pub fn training_labels(&self) -> Vec<i64> {
        let mut labels = self.labels.clone();
        labels.sort_unstable();
        labels
    }
}

/// Whether the names are placeholders: `0`, `1`, ... for integer labels, or the only class of an unlabelled set.
fn is_nameless(names: &[String]) -> bool {
    names == [crate::dataset::ONLY_CLASS]
        || names
            .iter()
            .enumerate()
            .all(|(label, name)| *name == label.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn between(training: &[&str], reference: &[&str]) -> Result<ClassMap, String> {
        let map = ClassMap::between_names(
            ("photos/train", &names(training)),
            ("photos/val", &names(reference)),
        );
        map.map_err(|error| error.to_string())
    }

    #[test]
    fn classes_are_mapped_by_name_independently_of_order_and_count() {
        let map = between(&["ant", "bee", "cat"], &["cat", "ant"]).unwrap();
        let labels: Vec<_> = (-1..3).map(|label| map.training_label(label)).collect();
        assert_eq!(labels, [None, Some(2), Some(0), None]);
        assert_eq!(map.training_labels(), [0, 2]);
        assert!(!map.is_identity());
        assert!(!between(&["ant", "bee"], &["ant"]).unwrap().is_identity());
        assert!(
            between(&["ant", "bee"], &["ant", "bee"])
                .unwrap()
                .is_identity()
        );
    }

    #[test]
    fn an_unlabelled_set_is_refused_for_named_classes_with_the_first_difference() {
        let text = between(&["ant", "bee", "cat"], &["all"]).unwrap_err();
        assert!(text.contains("class 0 of photos/val is `all`"), "{text}");
        assert!(text.contains("its class 0 is `ant`"), "{text}");
        assert!(
            text.contains("it has 1 class)") && text.contains("it has 3 classes)"),
            "{text}"
        );
        let text = between(&["ant", "bee"], &["ant", "bee", "cow"]).unwrap_err();
        assert!(text.contains("class 2 of photos/val is `cow`"), "{text}");
        // The same number of classes, but one name differs.
        assert!(between(&["ant", "bee"], &["ant", "bees"]).is_err());
        // A model trained on one class would be compared with samples of classes that it never saw.
        assert!(between(&["all"], &["ant", "bee"]).is_err());
    }

    #[test]
    fn labels_without_names_keep_their_numbers_if_the_class_counts_agree() {
        assert!(between(&["ant", "bee"], &["0", "1"]).unwrap().is_identity());
        assert!(between(&["0", "1"], &["ant", "bee"]).unwrap().is_identity());
        let text = between(&["ant", "bee", "cat"], &["0", "1"]).unwrap_err();
        assert!(text.contains("class 0 of photos/val is `0`"), "{text}");
        // Between two sets with integer labels, the numbers serve as names.
        let map = between(&["0", "1", "2"], &["0", "1"]).unwrap();
        assert_eq!(map.training_label(1), Some(1));
        assert!(between(&["0", "1"], &["0", "1", "2"]).is_err());
    }

    #[test]
    fn duplicate_class_names_are_refused() {
        let text = between(&["crane", "crane"], &["crane"]).unwrap_err();
        assert!(text.contains("classes 0 and 1 of photos/train"), "{text}");
        let text = between(&["crane", "owl"], &["crane", "crane"]).unwrap_err();
        assert!(text.contains("classes 0 and 1 of photos/val"), "{text}");
        // Identical lists need no mapping by name.
        assert!(
            between(&["crane", "crane"], &["crane", "crane"])
                .unwrap()
                .is_identity()
        );
    }
}
