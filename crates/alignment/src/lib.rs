//! Projection heads, spatial normalisation and alignment losses of REPA and iREPA.
