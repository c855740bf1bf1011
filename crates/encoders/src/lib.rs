//! Frozen vision encoders behind one trait: TorchScript files and native classics.
