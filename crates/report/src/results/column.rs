//! The columns of `results.csv`: the identity of a cell, and the figures of the table in [`metrics::figures`].

use std::fmt;

use metrics::figures::{Figure, File};
use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::{ResultRow, Status};

/// A column of `results.csv`, which is also a key of `result.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    /// [`ResultRow::cell`].
    Cell,
    /// [`ResultRow::status`].
    Status,
    /// [`ResultRow::encoder`].
    Encoder,
    /// [`ResultRow::recipe`].
    Recipe,
    /// [`ResultRow::model`].
    Model,
    /// [`ResultRow::variant`].
    Variant,
    /// [`ResultRow::seed`].
    Seed,
    /// [`ResultRow::steps`].
    Steps,
    /// [`ResultRow::fd_encoder`].
    FdEncoder,
    /// One of [`ResultRow::figures`].
    Figure(Figure),
    /// [`ResultRow::reason`].
    Reason,
}

impl Column {
    /// All columns in the order of the file: the identity of the cell, the figures in the order of their table, and the
    /// reason.
    pub fn all() -> impl Iterator<Item = Self> + Clone {
        let identity = [
            Self::Cell,
            Self::Status,
            Self::Encoder,
            Self::Recipe,
            Self::Model,
            Self::Variant,
            Self::Seed,
            Self::Steps,
        ];
        let figures = Figure::in_file(File::Results).flat_map(|figure| {
            // The encoder of the distance stands before the distance.
            let encoder = (figure == Figure::Fd).then_some(Self::FdEncoder);
            encoder.into_iter().chain([Self::Figure(figure)])
        });
        let identity = identity.into_iter();
        identity.chain(figures).chain([Self::Reason])
    }

    /// The name in the header.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cell => "cell",
            Self::Status => "status",
            Self::Encoder => "encoder",
            Self::Recipe => "recipe",
            Self::Model => "model",
            Self::Variant => "variant",
            Self::Seed => "seed",
            Self::Steps => "steps",
            Self::FdEncoder => "fd_encoder",
            Self::Figure(figure) => figure.name(),
            Self::Reason => "reason",
        }
    }

    /// Whether a row may lack the value.
    fn is_optional(self) -> bool {
        matches!(self, Self::Steps | Self::Figure(_))
    }

    /// The value of a row.
    pub(super) fn of(self, row: &ResultRow) -> Value<'_> {
        match self {
            Self::Cell => Value::Text(&row.cell),
            Self::Status => Value::Text(row.status.name()),
            Self::Encoder => Value::Text(&row.encoder),
            Self::Recipe => Value::Text(&row.recipe),
            Self::Model => Value::Text(&row.model),
            Self::Variant => Value::Text(&row.variant),
            Self::Seed => Value::Count(Some(row.seed)),
            Self::Steps => Value::Count(row.steps),
            Self::FdEncoder => Value::Text(&row.fd_encoder),
            Self::Figure(figure) => Value::Number(row.get(figure)),
            Self::Reason => Value::Text(&row.reason),
        }
    }

    /// Reads the value of a row.
    fn read<'de, A: MapAccess<'de>>(
        self,
        row: &mut ResultRow,
        map: &mut A,
    ) -> Result<(), A::Error> {
        match self {
            Self::Cell => row.cell = map.next_value()?,
            Self::Status => row.status = map.next_value()?,
            Self::Encoder => row.encoder = map.next_value()?,
            Self::Recipe => row.recipe = map.next_value()?,
            Self::Model => row.model = map.next_value()?,
            Self::Variant => row.variant = map.next_value()?,
            Self::Seed => row.seed = map.next_value()?,
            Self::Steps => row.steps = map.next_value()?,
            Self::FdEncoder => row.fd_encoder = map.next_value()?,
            Self::Figure(figure) => row.figures.set(figure, map.next_value::<Option<f64>>()?),
            Self::Reason => row.reason = map.next_value()?,
        }
        Ok(())
    }
}

/// The value of a row in a column.
#[derive(serde::Serialize)]
#[serde(untagged)]
pub(super) enum Value<'a> {
    Text(&'a str),
    Count(Option<u64>),
    Number(Option<f64>),
}

/// An object with one key per column. Values that were not computed are `null`.
impl Serialize for ResultRow {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for column in Column::all() {
            map.serialize_entry(column.name(), &column.of(self))?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for ResultRow {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(RowVisitor)
    }
}

struct RowVisitor;

impl<'de> Visitor<'de> for RowVisitor {
    type Value = ResultRow;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the columns of a row")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ResultRow, A::Error> {
        // All identifying columns are required, so that nothing of this row remains.
        let mut row = ResultRow::empty("", Status::Skipped);
        let mut missing: Vec<Column> = Column::all().collect();
        while let Some(name) = map.next_key::<String>()? {
            let Some(column) = Column::all().find(|column| column.name() == name) else {
                let _ignored: IgnoredAny = map.next_value()?;
                continue;
            };
            let Some(place) = missing.iter().position(|other| *other == column) else {
                return Err(de::Error::duplicate_field(column.name()));
            };
            missing.swap_remove(place);
            column.read(&mut row, &mut map)?;
        }
        let required =
            Column::all().find(|column| missing.contains(column) && !column.is_optional());
        match required {
            Some(column) => Err(de::Error::missing_field(column.name())),
            None => Ok(row),
        }
    }
}
