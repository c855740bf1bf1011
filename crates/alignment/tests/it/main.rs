//! Tests of the public interface: against upstream's numbers, and on bad input.

mod behaviour;
mod cases;
mod fused;
#[path = "../../../diffusion/tests/golden/mod.rs"]
mod golden;
