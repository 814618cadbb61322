//! Compute benches: `cargo bench --bench compute -- kernels` or `-- forward`; without a name, both.
#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a bench fails by panicking")]
#![expect(clippy::print_stdout, reason = "figures are this program's output")]
#![expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "seeded data, not measurements")]
#![expect(clippy::disallowed_methods, reason = "a bench takes its model folder from the environment")]
#![expect(unreachable_pub, reason = "modules of one binary")]

mod forward;
mod kernels;
mod support;

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
}
