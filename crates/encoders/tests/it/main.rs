//! Tests of the public interface: native and exported encoders, caches, preprocessing.

mod documentation;
mod exported;
mod feature_cache;
mod inception;
mod native;
mod pos_embed;
mod preprocess;
mod torchscript;
