//! One small file per family: `config.json` to [`EncoderSpec`](super::spec::EncoderSpec), and stored tensor names to
//! the skeleton's roles.

pub mod bert;
