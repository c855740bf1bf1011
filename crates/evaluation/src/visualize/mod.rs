//! Draws maps of the patch tokens of encoders on one sheet.
//!
//! For each image of [`TitledImages`] and each encoder, [`Row::new`] computes the cosine similarity of every
//! token to the token of each anchor patch, and the first three principal components of the tokens as colours. Both are
//! computed for the unchanged tokens and after spatial normalisation. A [`Sheet`] arranges the maps as in the figures of
//! arXiv 2512.10794 and is written as a PNG or an SVG.
//!
//! | module | purpose |
//! | --- | --- |
//! | `anchor` | chooses the anchor patches |
//! | `images` | reads images from a data set or from files |
//! | `maps` | computes maps from an encoder's tokens |
//! | `colour` | maps numbers to colours |
//! | `layout` | arranges images, maps and labels on a sheet |
//! | `sheet`, `write` | the sheet, and its files |
//! | `picture`, `font`, `drawing` | draw the sheet as PNG or SVG |

mod anchor;
mod colour;
mod drawing;
mod error;
mod font;
mod images;
mod layout;
mod maps;
mod picture;
mod sheet;
mod write;

pub use anchor::{Anchor, Patch};
pub use error::VisualizeError;
pub use images::TitledImages;
pub use maps::{Maps, Row, TokenMaps};
pub use sheet::Sheet;
pub use write::{Format, check_size};
