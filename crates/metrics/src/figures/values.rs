//! The values of figures.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::table::{Figure, File, Kind};

/// The values of some figures. A figure that was not computed is absent.
///
/// As JSON it is an object, or a part of one (`serde(flatten)`), with one key per value. Reading ignores keys that name
/// no figure, and takes `null` as absent.
///
/// ```
/// use metrics::figures::{Figure, Figures};
///
/// let mut figures = Figures::default();
/// figures.set(Figure::Fid, 12.5);
/// assert_eq!(figures.get(Figure::Fid), Some(12.5));
/// assert_eq!(figures.get(Figure::Kid), None);
/// assert_eq!(serde_json::to_string(&figures)?, r#"{"fid":12.5}"#);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Copy, Default, PartialEq)]
pub struct Figures {
    values: Values,
}

/// One place per figure, in the order of the table.
#[derive(Clone, Copy, PartialEq)]
struct Values([Option<f64>; Figure::ALL.len()]);

impl Default for Values {
    fn default() -> Self {
        Self([None; Figure::ALL.len()])
    }
}

impl Figures {
    /// The value of a figure.
    pub fn get(&self, figure: Figure) -> Option<f64> {
        self.values.0[figure as usize]
    }

    /// Sets the value of a figure; `None` removes it.
    pub fn set(&mut self, figure: Figure, value: impl Into<Option<f64>>) {
        self.values.0[figure as usize] = value.into();
    }

    /// Removes the value of a figure.
    pub fn remove(&mut self, figure: Figure) {
        self.set(figure, None::<f64>);
    }

    /// Returns whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// The figures and their values in the order of the table.
    pub fn iter(&self) -> impl Iterator<Item = (Figure, f64)> + '_ {
        let values = Figure::ALL.into_iter().zip(self.values.0);
        values.filter_map(|(figure, value)| Some((figure, value?)))
    }

    /// The values of the figures that are written to `file`.
    pub fn of_file(&self, file: File) -> Self {
        self.iter()
            .filter(|(figure, _)| figure.is_in(file))
            .collect()
    }
}

impl FromIterator<(Figure, f64)> for Figures {
    fn from_iter<I: IntoIterator<Item = (Figure, f64)>>(values: I) -> Self {
        let mut figures = Self::default();
        figures.extend(values);
        figures
    }
}

impl<const N: usize> From<[(Figure, f64); N]> for Figures {
    fn from(values: [(Figure, f64); N]) -> Self {
        values.into_iter().collect()
    }
}

impl Extend<(Figure, f64)> for Figures {
    fn extend<I: IntoIterator<Item = (Figure, f64)>>(&mut self, values: I) {
        for (figure, value) in values {
            self.set(figure, value);
        }
    }
}

impl fmt::Debug for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values = self.iter().map(|(figure, value)| (figure.name(), value));
        f.debug_map().entries(values).finish()
    }
}

impl Serialize for Figures {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (figure, value) in self.iter() {
            match figure.kind() {
                Kind::Count => map.serialize_entry(figure.name(), &(value as u64))?,
                _ => map.serialize_entry(figure.name(), &value)?,
            }
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Figures {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FiguresVisitor)
    }
}

struct FiguresVisitor;

impl<'de> Visitor<'de> for FiguresVisitor {
    type Value = Figures;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("figures")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Figures, A::Error> {
        let mut figures = Figures::default();
        while let Some(name) = map.next_key::<String>()? {
            match Figure::named(&name) {
                Some(figure) if figure.kind() == Kind::Count => {
                    let count: Option<u64> = map.next_value()?;
                    figures.set(figure, count.map(|count| count as f64));
                }
                Some(figure) => figures.set(figure, map.next_value::<Option<f64>>()?),
                None => {
                    let _ignored: IgnoredAny = map.next_value()?;
                }
            }
        }
        Ok(figures)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_figures_are_read_back_in_the_order_of_the_table() {
        let values = Figure::ALL.into_iter().zip((0..).map(f64::from));
        let figures: Figures = values.clone().collect();
        let text = serde_json::to_string(&figures).unwrap();
        assert_eq!(serde_json::from_str::<Figures>(&text).unwrap(), figures);
        assert!(figures.iter().eq(values));
        let places: Vec<usize> = Figure::ALL
            .into_iter()
            .map(|figure| text.find(&format!("\"{figure}\":")).unwrap())
            .collect();
        assert!(places.is_sorted(), "{text}");
    }

    #[test]
    fn counts_have_no_decimals() {
        let figures = Figures::from([(Figure::CorruptSkipped, 3.0), (Figure::Fid, 3.0)]);
        let text = serde_json::to_string(&figures).unwrap();
        assert_eq!(text, r#"{"fid":3.0,"corrupt_skipped":3}"#);
        for wrong in ["-1", "1.5", "\"1\""] {
            let text = format!("{{\"corrupt_skipped\":{wrong}}}");
            assert!(serde_json::from_str::<Figures>(&text).is_err(), "{wrong}");
        }
    }

    #[test]
    fn null_is_absent_unknown_keys_are_ignored_and_texts_are_rejected() {
        let read = serde_json::from_str::<Figures>;
        let figures = read(r#"{"step":[1],"fid":null,"kid":1}"#).unwrap();
        assert_eq!(figures, Figures::from([(Figure::Kid, 1.0)]));
        assert!(read(r#"{"kid":"1"}"#).is_err());
    }

    #[test]
    fn removed_values_are_absent() {
        let mut figures = Figures::from([(Figure::Fd, 1.0)]);
        assert!(!figures.is_empty());
        figures.remove(Figure::Fd);
        assert!(figures.is_empty());
    }
}
