//! `Checked`: for each mistake a test that makes it and reads the report, with the legal neighbour, which is silent.

#[path = "../common/mod.rs"]
mod common;

mod ends;
mod maps;
mod pools;
mod reports;
mod syncs;
mod two_steps;
mod watch;
