//! Assigns one colour and one marker to each recipe, the same in all plots.

use plotters::style::RGBColor;

use super::canvas::{BASELINE, Canvas, DrawError, INK, Look, Marker, RECIPES, TEXT, text_width};
use crate::comparison::recipes;
use crate::run_folder::RunFolder;

const MARKERS: [Marker; 4] = [
    Marker::Circle,
    Marker::Triangle,
    Marker::Square,
    Marker::Diamond,
];

/// The colour and marker of a recipe.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct RecipeStyle {
    pub colour: RGBColor,
    pub marker: Marker,
}

/// The aligned recipes of a run.
#[derive(Debug)]
pub(super) struct Recipes {
    names: Vec<String>,
}

impl Recipes {
    pub fn of(run: &RunFolder) -> Self {
        let names = recipes(run.cells.iter());
        Recipes {
            names: names.into_iter().map(str::to_owned).collect(),
        }
    }

    /// The style of `recipe`; that of the baseline if it is none of these recipes.
    pub fn style(&self, recipe: &str) -> RecipeStyle {
        let index = self.names.iter().position(|name| name == recipe);
        index.map_or(
            RecipeStyle {
                colour: BASELINE,
                marker: Marker::Diamond,
            },
            |index| RecipeStyle {
                colour: RECIPES[index % RECIPES.len()],
                marker: MARKERS[index % MARKERS.len()],
            },
        )
    }

    /// Draws the names of the `shown` recipes in one line that starts at `position`, followed by `baseline` if it is
    /// `Some`.
    pub fn legend(
        &self,
        canvas: &Canvas<'_>,
        position: (f64, f64),
        shown: &[&str],
        baseline: Option<&str>,
    ) -> Result<(), DrawError> {
        let (mut x, y) = position;
        let names = self
            .names
            .iter()
            .filter(|name| shown.contains(&name.as_str()));
        for name in names {
            let style = self.style(name);
            canvas.marker((x + 5.0, y), style.marker, 4.0, style.colour, 1.0)?;
            let look = Look::new(TEXT, style.colour).bold();
            canvas.text(name, (x + 14.0, y), look)?;
            x += 14.0 + text_width(name, TEXT) * 1.1 + 20.0;
        }
        if let Some(text) = baseline {
            canvas.dashed((x, y), (x + 20.0, y), BASELINE, 1.5)?;
            canvas.text(text, (x + 26.0, y), Look::new(TEXT, INK))?;
        }
        Ok(())
    }
}
