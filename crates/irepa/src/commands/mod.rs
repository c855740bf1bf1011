//! The commands, one module each. A new command also needs its arguments in `cli.rs` and a line in `main.rs`.
//! They share [`arguments`].

mod arguments;

pub mod doctor;
pub mod encoders;
pub mod evaluate;
pub mod metrics;
pub mod prepare;
pub mod report;
pub mod sample;
pub mod sweep;
pub mod train;
pub mod visualize;
