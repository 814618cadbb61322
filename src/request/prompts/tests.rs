//! Which field wins, and what a role means.
