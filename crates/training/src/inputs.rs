//! What a model depends on besides its configuration.

use tch::Device;

/// The properties of device, data set and encoders that a trainer needs to build its model.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// The training device.
    pub device: Device,
    /// Number of classes of the data set.
    pub num_classes: i64,
    /// The encoders whose tokens each step takes, in order; empty without alignment.
    pub encoders: Vec<EncoderShape>,
    /// Identifies the inputs that affect the weights besides the configuration, with the data set's
    /// fingerprint and the encoders' checksums. Part of [`Config::training_hash`](crate::Config::training_hash).
    pub identity: String,
}

/// The shape of an encoder's tokens.
#[derive(Debug, Clone)]
pub struct EncoderShape {
    /// Name of the encoder, for messages.
    pub name: String,
    /// Width of a token.
    pub width: i64,
    /// Rows and columns of the token grid.
    pub grid: (i64, i64),
}
