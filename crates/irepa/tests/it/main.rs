//! Runs the program `irepa` on small experiments.

mod bad_input;
mod cells;
mod collapse;
mod common;
mod evaluate;
mod keeping;
mod latents;
mod logs;
mod measures;
mod pipes;
mod prepare;
mod ranking;
mod ranks;
mod sample;
mod sweep;
mod variants;
mod visualize;
mod weights;
mod workers;
