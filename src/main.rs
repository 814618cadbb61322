//! The executable; it gains its commands with the server.

fn main() {}
