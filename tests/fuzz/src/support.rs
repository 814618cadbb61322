//! What the entries share with the in-process tests.

#[path = "../../it/support/device.rs"]
pub mod device;
#[path = "../../it/support/evil.rs"]
pub mod evil;
#[path = "../../it/support/random.rs"]
pub mod random;
#[path = "../../it/support/served.rs"]
pub mod served;
#[path = "../../it/support/tiny_model.rs"]
pub mod tiny_model;
