//! Chooses the anchor patches that the other patches are compared with.

use std::fmt;
use std::str::FromStr;

use encoders::Grid;

use super::error::VisualizeError;

/// Minimum opacity of a foreground pixel.
const OPAQUE: u8 = 128;

/// A choice of anchor patches, independent of an encoder's grid.
///
/// ```
/// use evaluation::visualize::Anchor;
///
/// assert_eq!("8,4".parse(), Ok(Anchor::Patch { row: 8, column: 4 }));
/// assert_eq!("0.5,0.25".parse(), Ok(Anchor::Fraction { row: 0.5, column: 0.25 }));
/// assert_eq!("auto".parse(), Ok(Anchor::Auto));
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Anchor {
    /// Chosen by the image's mask: the patch of the foreground pixel nearest to the centre of the foreground, and the
    /// first corner patch, row by row, that contains only background, if there is one. Without a mask, the patch at the
    /// centre of the image.
    Auto,
    /// A row and a column of the grid, from 0.
    Patch {
        /// The row.
        row: usize,
        /// The column.
        column: usize,
    },
    /// Fractions of the image's height and width, 0 to 1.
    Fraction {
        /// Distance from the top.
        row: f64,
        /// Distance from the left.
        column: f64,
    },
}

/// A patch of a grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patch {
    /// The row, from 0.
    pub row: usize,
    /// The column, from 0.
    pub column: usize,
}

impl FromStr for Anchor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Anchor::Auto);
        }
        let parts = text.split_once(',');
        let anchor = parts.and_then(|(row, column)| match text.contains('.') {
            true => Some(Anchor::Fraction {
                row: fraction(row)?,
                column: fraction(column)?,
            }),
            false => Some(Anchor::Patch {
                row: row.trim().parse().ok()?,
                column: column.trim().parse().ok()?,
            }),
        });
        anchor.ok_or_else(|| {
            "expected auto, ROW,COLUMN on the grid of patches such as 8,4, or fractions of the image from 0.0 to \
             1.0 such as 0.5,0.25"
                .to_owned()
        })
    }
}

fn fraction(text: &str) -> Option<f64> {
    let fraction: f64 = text.trim().parse().ok()?;
    (0.0..=1.0).contains(&fraction).then_some(fraction)
}

impl fmt::Display for Anchor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Anchor::Auto => f.write_str("auto"),
            Anchor::Patch { row, column } => write!(f, "{row},{column}"),
            Anchor::Fraction { row, column } => write!(f, "{row:?},{column:?}"),
        }
    }
}

impl Anchor {
    /// Returns the anchor patches on the `grid` of `encoder` for one image, whose `mask` holds opacities `[R, R]`.
    ///
    /// # Errors
    /// [`VisualizeError::Anchor`] if the patch is outside the grid.
    pub(super) fn patches(
        self,
        encoder: &str,
        grid: Grid,
        mask: Option<&[u8]>,
    ) -> Result<Vec<Patch>, VisualizeError> {
        match self {
            Anchor::Auto => Ok(match mask {
                Some(mask) => anchors_from_mask(grid, mask),
                None => vec![patch_at(grid, 0.5, 0.5)],
            }),
            Anchor::Fraction { row, column } => Ok(vec![patch_at(grid, row, column)]),
            Anchor::Patch { row, column } if row < grid.height && column < grid.width => {
                Ok(vec![Patch { row, column }])
            }
            Anchor::Patch { .. } => Err(VisualizeError::Anchor {
                anchor: self.to_string(),
                encoder: encoder.to_owned(),
                height: grid.height,
                width: grid.width,
            }),
        }
    }
}

/// The patch at fractions of the image's height and width.
fn patch_at(grid: Grid, row: f64, column: f64) -> Patch {
    let index = |fraction: f64, patches: usize| {
        let index = (fraction * patches as f64) as usize;
        index.min(patches.saturating_sub(1))
    };
    Patch {
        row: index(row, grid.height),
        column: index(column, grid.width),
    }
}

fn anchors_from_mask(grid: Grid, mask: &[u8]) -> Vec<Patch> {
    let side = mask.len().isqrt().max(1);
    let patch_of = |pixel: usize| {
        let fraction = |index: usize| (index as f64 + 0.5) / side as f64;
        patch_at(grid, fraction(pixel / side), fraction(pixel % side))
    };
    let foreground: Vec<usize> = (0..mask.len()).filter(|&i| mask[i] >= OPAQUE).collect();
    let mean = |coordinate: fn(usize, usize) -> usize| {
        let sum: usize = foreground
            .iter()
            .map(|&pixel| coordinate(pixel, side))
            .sum();
        sum as f64 / foreground.len() as f64
    };
    let (y, x) = (
        mean(|pixel, side| pixel / side),
        mean(|pixel, side| pixel % side),
    );
    let distance = |pixel: usize| {
        let (down, right) = ((pixel / side) as f64 - y, (pixel % side) as f64 - x);
        down * down + right * right
    };
    let centre = foreground
        .iter()
        .copied()
        .min_by(|&one, &other| distance(one).total_cmp(&distance(other)))
        .map_or_else(|| patch_at(grid, 0.5, 0.5), patch_of);

    let corners = [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)];
    let corner = corners
        .map(|(row, column)| patch_at(grid, row, column))
        .into_iter()
        .find(|&corner| corner != centre && !foreground.iter().any(|&i| patch_of(i) == corner));
    [Some(centre), corner].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRID: Grid = Grid {
        height: 4,
        width: 8,
    };

    fn patches(anchor: Anchor, mask: Option<&[u8]>) -> Vec<(usize, usize)> {
        let patches = anchor.patches("hog", GRID, mask).unwrap();
        patches
            .iter()
            .map(|patch| (patch.row, patch.column))
            .collect()
    }

    /// A mask of 16 x 16 pixels that is foreground where `inside(y, x)`.
    fn mask(inside: impl Fn(usize, usize) -> bool) -> Vec<u8> {
        let pixel = |i: usize| if inside(i / 16, i % 16) { 255 } else { 127 };
        (0..256).map(pixel).collect()
    }

    #[test]
    fn invalid_anchors_are_rejected_with_the_allowed_forms() {
        for text in [
            "", "8", "8,", "8,8,8", "a,b", "-1,2", "1.5,0", "0.5,nan", "Auto", "0.5;0.5",
        ] {
            let error = text.parse::<Anchor>().unwrap_err();
            assert!(
                error.contains("auto") && error.contains("ROW,COLUMN"),
                "{text}"
            );
        }
        let fraction = "1,0.0".parse::<Anchor>().unwrap();
        assert_eq!(
            fraction,
            Anchor::Fraction {
                row: 1.0,
                column: 0.0
            }
        );
        assert_eq!(fraction.to_string(), "1.0,0.0");
    }

    #[test]
    fn fractions_reach_the_first_and_the_last_patch() {
        let anchor = |row, column| patches(Anchor::Fraction { row, column }, None);
        assert_eq!(anchor(0.0, 0.0), [(0, 0)]);
        assert_eq!(anchor(1.0, 1.0), [(3, 7)]);
        assert_eq!(anchor(0.49, 0.5), [(1, 4)]);
    }

    #[test]
    fn patches_outside_the_grid_are_rejected() {
        assert_eq!(patches(Anchor::Patch { row: 3, column: 7 }, None), [(3, 7)]);
        for (row, column) in [(4, 0), (0, 8)] {
            let anchor = Anchor::Patch { row, column };
            let error = anchor.patches("hog", GRID, None).unwrap_err().to_string();
            for part in [
                &anchor.to_string(),
                "4x8",
                "hog",
                "rows 0 to 3",
                "columns 0 to 7",
            ] {
                assert!(error.contains(part), "no `{part}` in {error}");
            }
        }
    }

    #[test]
    fn auto_chooses_the_foreground_and_a_background_corner() {
        assert_eq!(patches(Anchor::Auto, None), [(2, 4)]);
        // The foreground is in the lower right and also covers the upper left corner.
        let low = mask(|y, x| y >= 8 && x >= 8 || y < 2 && x < 2);
        assert_eq!(patches(Anchor::Auto, Some(&low)), [(2, 5), (0, 7)]);
        // The centre of a ring is background.
        let ring = mask(|y, x| {
            let square = (2 * y as i32 - 15).pow(2) + (2 * x as i32 - 15).pow(2);
            (100..200).contains(&square)
        });
        let [(row, column), corner] = patches(Anchor::Auto, Some(&ring))[..] else {
            panic!("two anchors");
        };
        assert_eq!(corner, (0, 0));
        let pixels = (row * 4..row * 4 + 4)
            .flat_map(|y| (column * 2..column * 2 + 2).map(move |x| y * 16 + x));
        assert!(pixels.into_iter().any(|pixel| ring[pixel] == 255));
        assert_eq!(patches(Anchor::Auto, Some(&[255; 256])), [(1, 3)]);
        assert_eq!(patches(Anchor::Auto, Some(&[0; 256])), [(2, 4), (0, 0)]);
    }
}
