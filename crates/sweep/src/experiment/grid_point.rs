//! A point of an experiment's grid: the settings and the id of one cell.

use toml::{Table, Value};
use training::NO_ENCODER;

use super::file::PLAIN_VARIANT;

/// The values of one cell on the axes of the grid.
#[derive(Clone, Copy)]
pub(super) struct GridPoint<'a> {
    pub(super) encoder: &'a str,
    pub(super) recipe: &'a str,
    /// `None` for the model of the base and variant.
    pub(super) model: Option<&'a str>,
    pub(super) variant: &'a str,
    pub(super) seed: u64,
}

impl GridPoint<'_> {
    /// The settings of this point.
    pub(super) fn layer(&self) -> Table {
        let section =
            |key: &str, value: Value| Value::Table(Table::from_iter([(key.to_owned(), value)]));
        let mut layer = Table::from_iter([
            (
                "alignment".to_owned(),
                section("encoder", self.encoder.into()),
            ),
            (
                "train".to_owned(),
                section("seed", Value::Integer(self.seed.cast_signed())),
            ),
        ]);
        if let Some(model) = self.model {
            layer.insert("model".to_owned(), section("name", model.into()));
        }
        layer
    }

    /// The id of the cell: `SiT-XS/4`, `irepa`, `hog` and seed 0 become `sit-xs4.irepa.hog.s0`.
    pub(super) fn id(&self, model: &str) -> String {
        let plain = |text: &str| {
            text.to_lowercase()
                .replace('/', "")
                .replace(',', "+")
                .replace(
                    |c: char| !(c.is_ascii_alphanumeric() || "-_+".contains(c)),
                    "_",
                )
        };
        let mut parts = vec![plain(model)];
        // The names of JiT models already contain the variant.
        if self.variant != PLAIN_VARIANT && !parts[0].starts_with(self.variant) {
            parts.push(plain(self.variant));
        }
        parts.push(plain(self.recipe));
        if self.encoder != NO_ENCODER {
            parts.push(plain(self.encoder));
        }
        parts.push(format!("s{}", self.seed));
        parts.join(".")
    }
}
