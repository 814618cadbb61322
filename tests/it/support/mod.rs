//! What the in-process tests share.

pub mod device;
pub mod evil;
pub mod random;
pub mod served;
pub mod tiny_model;
