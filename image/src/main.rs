//! The stack on bare metal. Built with `--cfg baremetal`; README.md says how, and what is where.

#![cfg_attr(baremetal, no_std, no_main)]

#[cfg(baremetal)]
extern crate alloc;

#[cfg(baremetal)]
#[macro_use]
mod boot;
#[cfg(baremetal)]
mod checks;
#[cfg(baremetal)]
mod kernel;

#[cfg(not(baremetal))]
fn main() {
    eprintln!("this is the bare-metal image without the bare metal; image/README.md says how to build it");
    std::process::exit(2);
}
