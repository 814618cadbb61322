//! The commands that do not serve: `models list`, `show`, `pull` and `verify`, `bundle`, `bench`, `health`; one file or folder each.
//!
//! A command prints its result to stdout, complains on stderr, and says by its exit code whether all went well.

mod bench;
mod bundle;
mod health;
mod list;
mod pull;
mod show;
mod verify;

pub(super) use bench::bench;
pub(super) use bundle::{export, import};
pub(super) use health::health;
pub(super) use list::list;
pub(super) use pull::pull;
pub(super) use show::show;
pub(super) use verify::verify;
