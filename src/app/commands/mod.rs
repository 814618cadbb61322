//! The commands that do not serve: `models list`, `models pull`, `models verify`, `bundle`, `health`; one file each.
//!
//! A command prints its result to stdout, complains on stderr, and says by its exit code whether all went well.

mod bundle;
mod health;
mod list;
mod pull;
mod verify;

pub(super) use bundle::{export, import};
pub(super) use health::health;
pub(super) use list::list;
pub(super) use pull::pull;
pub(super) use verify::verify;
