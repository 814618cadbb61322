//! What the in-process tests share.

pub mod answer;
pub mod app;
pub mod bundles;
pub mod chaos_proxy;
pub mod device;
pub mod evil;
pub mod fake_hub;
pub mod fake_pip;
pub mod gate;
pub mod golden;
pub mod log;
pub mod random;
pub mod raw;
pub mod running;
pub mod served;
pub mod sources;
pub mod tiny_model;
