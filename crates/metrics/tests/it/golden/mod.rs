//! Compares every golden case of the crate with the tolerances of its JSON file.

mod case;
mod npz;
mod quality;
mod spatial;
mod statistics;
