//! `cargo xtask vfio`: the VFIO backend in a real kernel, on emulated IOMMUs.

mod kernel;

use clap::Args;

#[derive(Args, Default)]
pub(crate) struct Options {
    /// Only get QEMU and the kernel, run nothing
    #[arg(long)]
    fetch: bool,
}

pub(crate) fn run(options: &Options) -> Result<(), String> {
    let qemu = crate::qemu::fetch::newest()?;
    let kernel = kernel::fetch()?;
    if options.fetch {
        return Ok(());
    }
    Ok(())
}
