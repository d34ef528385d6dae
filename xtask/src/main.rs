//! The project's own commands: `cargo xtask test`, `loom`, `bench`, `mutate`, `sanitize`, `qemu`, `qemu-groups`,
//! `vfio`.

mod bench;
mod debian;
mod guest;
mod loom;
mod mutate;
mod named_files;
mod qemu;
mod qemu_groups;
mod sanitize;
mod steps;
mod test;
mod vfio;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The project's own commands")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Everything that must be true: format, lints, docs, tests, each crate alone, loom, sanitizers, QEMU, Linux's groups, VFIO, and a few mutations
    Test(test::Options),
    /// Run every loom model
    Loom(loom::Options),
    /// Run the benchmarks, each beside the machine's own limit in one process
    Bench(bench::Options),
    /// Apply each fault of mutations/ to a scratch worktree and see its test fail
    Mutate(mutate::Options),
    /// Run tests under AddressSanitizer and ThreadSanitizer
    Sanitize(sanitize::Options),
    /// Run the tests that need QEMU, on each QEMU; gets them first
    Qemu(qemu::Options),
    /// Boot Linux under QEMU on generated PCI trees, and compare the groups that it forms with those formed here
    QemuGroups(qemu_groups::Options),
    /// Boot Linux under QEMU and run the checks of the VFIO backend there; gets both first
    Vfio(vfio::Options),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Test(options) => test::run(&options),
        Command::Loom(options) => loom::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Mutate(options) => mutate::run(&options),
        Command::Sanitize(options) => sanitize::run(&options),
        Command::Qemu(options) => qemu::run(&options),
        Command::QemuGroups(options) => qemu_groups::run(&options),
        Command::Vfio(options) => vfio::run(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}
