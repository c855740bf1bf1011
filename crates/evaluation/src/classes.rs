//! Maps the classes of reference images to those of the training set, the only ones that a model or a probe knows.

use data::{ClassMap, DataError, Dataset};
use encoders::Inception;
use training::Config;

use crate::encoder_bank::EncoderBank;
use crate::error::EvaluationError;

/// Maps labels of reference images to labels of the training set by class name.
#[derive(Debug, Clone)]
pub struct ReferenceClasses {
    reference: String,
    /// `None` if the training set has one class, which every sample then has.
    map: Option<ClassMap>,
}

impl ReferenceClasses {
    /// Maps the classes of `reference` to those of `training`.
    ///
    /// # Errors
    /// `training` has several classes and lacks one of `reference`.
    pub fn new(training: &dyn Dataset, reference: &dyn Dataset) -> Result<Self, DataError> {
        Ok(Self {
            reference: reference.name().to_owned(),
            map: match training.class_names().len() {
                0 | 1 => None,
                _ => Some(ClassMap::between(training, reference)?),
            },
        })
    }

    /// Converts a label of the reference set to the label of the training set.
    ///
    /// # Errors
    /// The reference set has no such class.
    pub fn training_label(&self, label: i64) -> Result<i64, EvaluationError> {
        match &self.map {
            None => Ok(0),
            Some(map) => map
                .training_label(label)
                .ok_or_else(|| EvaluationError::Label {
                    dataset: self.reference.clone(),
                    label,
                }),
        }
    }
}

/// Returns whether a run of `config` uses the classes of its reference images, either to choose the classes of its
/// samples or to score a linear probe.
pub fn uses_reference_classes(config: &Config, bank: &EncoderBank) -> bool {
    let evaluate = &config.evaluate;
    let judged = !evaluate.fd_encoder.is_empty()
        || !evaluate.inception.is_empty()
            && !matches!(Inception::identity(bank.registry()), Ok(None));
    let probed = evaluate.probe_images > 0 && config.alignment.encoders().len() == 1;
    config.sample.count > 0 && judged || probed
}
