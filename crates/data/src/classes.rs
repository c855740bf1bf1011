//! Which class of the training set a class of another data set is.

use std::collections::HashMap;

use crate::dataset::Dataset;
use crate::error::DataError;

/// Labels of a reference set as labels of the training set.
///
/// Two data sets number their classes each for itself: a validation folder that lacks the second of 1,000
/// classes numbers the third as 1. A model knows the numbers of its training set, so labels of any other set go
/// through this map before a model or a classifier sees them.
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
    /// The reference set may have fewer classes, and they may be in another order. If either set has no names
    /// (labels that are plain integers, or a set without labels), labels keep their numbers, and both sets
    /// must have equally many classes. Two sets of plain integers are compared by number, so there too the
    /// reference set may have fewer.
    ///
    /// # Errors
    ///
    /// [`DataError::Classes`] names the first class of the reference set that the training set lacks.
    pub fn between(training: &dyn Dataset, reference: &dyn Dataset) -> Result<Self, DataError> {
        Self::between_names(
            (training.name(), training.class_names()),
            (reference.name(), reference.class_names()),
        )
    }

    /// As [`between`](Self::between), for two sets given by their names and class names: of a checkpoint, for
    /// example.
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
                "class {label} of {reference_name} is `{name}`, and {training_name} has no class of this name{}",
                match training.get(label) {
                    Some(other) => format!(" (its class {label} is `{other}`)"),
                    None => String::new(),
                }
            ),
            None => "their classes differ".to_owned(),
        }))
    }

    /// The training label of a label of the reference set; `None` if the reference set has no such label.
    pub fn training_label(&self, reference: i64) -> Option<i64> {
        let index = usize::try_from(reference).ok()?;
        self.labels.get(index).copied()
    }

    /// Whether both sets number all their classes alike.
    pub fn is_identity(&self) -> bool {
        self.labels.len() == self.training_classes
            && self.labels.iter().zip(0..).all(|(&label, i)| label == i)
    }

    /// The training labels that the reference set has, ascending.
    pub fn training_labels(&self) -> Vec<i64> {
        let mut labels = self.labels.clone();
        labels.sort_unstable();
        labels
    }
}

/// Whether the names say nothing: `0`, `1`, ... for plain integers, or the one class of a set without labels.
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
    fn classes_are_mapped_by_name_whatever_their_order_and_number() {
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
    fn a_flat_folder_among_named_classes_is_refused_with_the_first_difference() {
        let text = between(&["ant", "bee", "cat"], &["all"]).unwrap_err();
        assert!(text.contains("class 0 of photos/val is `all`"), "{text}");
        assert!(text.contains("its class 0 is `ant`"), "{text}");
        assert!(
            text.contains("it has 1 class)") && text.contains("it has 3 classes)"),
            "{text}"
        );
        let text = between(&["ant", "bee"], &["ant", "bee", "cow"]).unwrap_err();
        assert!(text.contains("class 2 of photos/val is `cow`"), "{text}");
        // As many classes, and another name.
        assert!(between(&["ant", "bee"], &["ant", "bees"]).is_err());
        // A model of one class knows no other, and would be measured against them.
        assert!(between(&["all"], &["ant", "bee"]).is_err());
    }

    #[test]
    fn sets_without_names_keep_their_numbers_if_the_counts_agree() {
        assert!(between(&["ant", "bee"], &["0", "1"]).unwrap().is_identity());
        assert!(between(&["0", "1"], &["ant", "bee"]).unwrap().is_identity());
        let text = between(&["ant", "bee", "cat"], &["0", "1"]).unwrap_err();
        assert!(text.contains("class 0 of photos/val is `0`"), "{text}");
        // The numbers of two sets of plain integers are their names.
        let map = between(&["0", "1", "2"], &["0", "1"]).unwrap();
        assert_eq!(map.training_label(1), Some(1));
        assert!(between(&["0", "1"], &["0", "1", "2"]).is_err());
    }

    #[test]
    fn a_name_that_two_classes_share_maps_nothing() {
        let text = between(&["crane", "crane"], &["crane"]).unwrap_err();
        assert!(text.contains("classes 0 and 1 of photos/train"), "{text}");
        let text = between(&["crane", "owl"], &["crane", "crane"]).unwrap_err();
        assert!(text.contains("classes 0 and 1 of photos/val"), "{text}");
        // The same list twice needs no names.
        assert!(
            between(&["crane", "crane"], &["crane", "crane"])
                .unwrap()
                .is_identity()
        );
    }
}
