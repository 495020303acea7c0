//! ferry's tasks: demo, test and bench.

fn main() {}
