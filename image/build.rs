//! Links the image as a kernel is linked, when it is asked for: `cfg(baremetal)` is cargo's own way of saying so to build scripts.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=link.ld");
    println!("cargo::rerun-if-env-changed=CARGO_CFG_BAREMETAL");
    if env::var_os("CARGO_CFG_BAREMETAL").is_none() {
        return;
    }
    let here = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    let plain = ["-nostartfiles", "-nostdlib", "-static", "-no-pie"];
    let linker = ["--build-id=none", "-z,norelro", "--no-eh-frame-hdr", "-z,max-page-size=4096"];
    for argument in plain {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
    for argument in linker {
        println!("cargo::rustc-link-arg-bins=-Wl,{argument}");
    }
    println!("cargo::rustc-link-arg-bins=-Wl,-T,{here}/link.ld");
}
