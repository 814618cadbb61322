//! Benches of the engine and of the server around it: `cargo bench --bench compute -- NAME...`, one or more of
//! `kernels`, `forward`, `tokenise`, `planner`, `reply`, `request`; without a name, all of them.
#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a bench fails by panicking")]
#![expect(clippy::print_stdout, reason = "figures are this program's output")]
#![expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "seeded data, not measurements")]
#![expect(clippy::disallowed_methods, reason = "a bench takes its model folder from the environment")]
#![expect(unreachable_pub, reason = "modules of one binary")]

mod forward;
mod kernels;
mod planner;
mod reply;
mod request;
mod support;
mod tokenise;

/// As in the server.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    // Cargo adds `--bench`.
    let names: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let wanted = |name: &str| names.is_empty() || names.iter().any(|wanted| wanted == name);
    if wanted("kernels") {
        kernels::run();
    }
    if wanted("forward") {
        forward::run();
    }
    if wanted("tokenise") {
        tokenise::run();
    }
    if wanted("planner") {
        planner::run();
    }
    if wanted("reply") {
        reply::run();
    }
    if wanted("request") {
        request::run();
    }
}
