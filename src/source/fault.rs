//! Named moments at which a crash must leave the caches usable.
//!
//! In a release build `point` is empty. In a debug build, which is what the tests run, the process aborts at the point
//! that `EMBEDSERVE_FAULT` names, so that a test can walk through the whole list: `chunk` is the first chunk, `chunk:3`
//! the third.

/// Every point, in the order of a download.
pub const POINTS: &[&str] = &[
    "before_create",
    "chunk",
    "before_fsync",
    "before_rename",
    "after_rename",
    "before_link",
    "before_ref",
    "pip_running",
    "between_members",
    "before_marker",
    "before_folder_rename",
    "after_folder_rename",
];

#[cfg(not(debug_assertions))]
#[inline]
pub(super) const fn point(_name: &'static str) {}

#[cfg(debug_assertions)]
#[expect(
    clippy::disallowed_methods,
    reason = "a crash on request is the purpose, and tests can only ask by environment"
)]
pub(super) fn point(name: &'static str) {
    use std::sync::atomic::{AtomicUsize, Ordering};

    static REACHED: AtomicUsize = AtomicUsize::new(0);
    debug_assert!(POINTS.contains(&name), "{name} is not listed");
    let Some(wanted) = std::env::var_os("EMBEDSERVE_FAULT").and_then(|wanted| wanted.into_string().ok()) else {
        return;
    };
    let (point, nth) = wanted.split_once(':').unwrap_or((&wanted, "1"));
    if point == name && (REACHED.fetch_add(1, Ordering::Relaxed) + 1).to_string() == nth {
        std::process::abort();
    }
}
