//! What a kernel has anyway, in the least that will do: entry, console, heap, interrupts, the way out.

#[macro_use]
pub(crate) mod console;
pub(crate) mod exit;
mod heap;
pub(crate) mod interrupts;
pub(crate) mod ports;
mod runtime;
mod start_info;

use core::arch::global_asm;

use self::exit::{Outcome, exit};
pub(crate) use self::start_info::StartInfo;

global_asm!(
    include_str!("start.s"),
    main = sym main,
    exception = sym interrupts::exception,
    pending = sym interrupts::PENDING,
    options(att_syntax)
);

/// The highest address of the heap is this far above the image.
const HEAP: u64 = 32 << 20;

unsafe extern "C" {
    /// Where the image ends.
    static image_end: u8;
}

/// Called once, with the address of what the loader says.
extern "C" fn main(start_info: u64) -> ! {
    interrupts::init();
    // SAFETY: the loader has put it there.
    let info = unsafe { StartInfo::read(start_info) };
    let free = (&raw const image_end).addr() as u64;
    let heap_end = free + HEAP;
    let ram = info.ram_at(free);
    if ram.end < heap_end {
        println!("no room for a heap in {ram:#x?}");
        exit(Outcome::Failure);
    }
    // SAFETY: RAM behind the image that is nobody's.
    unsafe { heap::init(free, HEAP) };
    crate::checks::main(&info, ram, heap_end)
}
