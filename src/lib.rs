//! embedserve
pub mod arch;
pub mod batch;
pub mod catalog;
pub mod cli;
pub mod config;
pub mod engine;
pub mod kernel;
pub mod load;
pub mod observe;
pub mod pool;
pub mod request;
pub mod runner;
pub mod threads;
pub mod tokenize;
pub mod weights;
