//! Every golden case of the crate, at the tolerance of its JSON page.

mod case;
mod npz;
mod quality;
mod spatial;
mod statistics;
