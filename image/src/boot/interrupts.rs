//! One processor's interrupts: each vector sets a flag, which is what drivers wait on.

use core::arch::asm;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use super::exit::{Outcome, exit};
use super::ports::out8;

/// The first vector that is no exception's.
const FIRST: usize = 32;
const VECTORS: usize = 32;
/// The first of them is the tick's, so that who waits for what never comes wakes up.
const TICK: usize = 0;
/// The last is for interrupts that are none, so it is nobody's.
const SPURIOUS: usize = VECTORS - 1;

/// Which have arrived; their handlers, in assembly, set them.
pub(super) static PENDING: [AtomicU8; VECTORS] = [const { AtomicU8::new(0) }; VECTORS];
/// Which are somebody's, a bit for each.
static TAKEN: AtomicU32 = AtomicU32::new(1 << TICK | 1 << SPURIOUS);

/// Two words for each vector.
static IDT: [AtomicU64; 2 * (FIRST + VECTORS)] = [const { AtomicU64::new(0) }; 2 * (FIRST + VECTORS)];
static GDT: [AtomicU64; 5] = [const { AtomicU64::new(0) }; 5];
/// As 32-bit words: most of its fields are not aligned to more.
static TSS: [AtomicU32; 26] = [const { AtomicU32::new(0) }; 26];

unsafe extern "C" {
    static exception_entries: u8;
    static interrupt_entries: u8;
    static spurious_entry: u8;
    static exception_stack_end: u8;
    static interrupt_stack_end: u8;
}

/// What `lgdt` and `lidt` read.
#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

fn pointer<T>(table: &'static [T]) -> Pointer {
    Pointer { limit: size_of_val(table) as u16 - 1, base: table.as_ptr().expose_provenance() as u64 }
}

/// Sets everything up and lets interrupts in.
pub(super) fn init() {
    const CODE: u64 = 0x00af_9a00_0000_ffff;
    const DATA: u64 = 0x00cf_9200_0000_ffff;
    const TSS_SELECTOR: u16 = 0x18;
    // Handlers have stacks of their own: compiled code keeps what it needs below the stack pointer.
    for (slot, end) in [(9, &raw const exception_stack_end), (11, &raw const interrupt_stack_end)] {
        TSS[slot].store(end.addr() as u32, Ordering::Relaxed);
    }
    // No map of ports.
    TSS[25].store((size_of_val(&TSS) as u32) << 16, Ordering::Relaxed);
    let tss = (&raw const TSS).expose_provenance() as u64;
    let descriptor =
        0x89 << 40 | (size_of_val(&TSS) as u64 - 1) | (tss & 0xff_ffff) << 16 | (tss >> 24 & 0xff) << 56;
    for (entry, value) in GDT.iter().zip([0, CODE, DATA, descriptor, tss >> 32]) {
        entry.store(value, Ordering::Relaxed);
    }
    for vector in 0..FIRST {
        gate(vector, (&raw const exception_entries).addr() + 16 * vector, 1);
    }
    for vector in 0..VECTORS {
        gate(FIRST + vector, (&raw const interrupt_entries).addr() + 32 * vector, 2);
    }
    gate(FIRST + SPURIOUS, (&raw const spurious_entry).addr(), 2);
    let (gdt, idt) = (pointer(&GDT), pointer(&IDT));
    // SAFETY: the tables are right and stay; selectors mean what they meant. The old interrupt controllers are silenced, since
    // firmware has left their vectors on those of exceptions.
    unsafe {
        asm!("lgdt [{}]", "ltr {:x}", "lidt [{}]", in(reg) &gdt, in(reg) TSS_SELECTOR, in(reg) &idt,
            options(nostack, preserves_flags));
        out8(0x21, 0xff);
        out8(0xa1, 0xff);
    }
    const SPURIOUS_VECTOR: u64 = 0xfee0_00f0;
    const TIMER: u64 = 0xfee0_0320;
    const TIMER_COUNT: u64 = 0xfee0_0380;
    const TIMER_DIVISION: u64 = 0xfee0_03e0;
    const ENABLE: u32 = 1 << 8;
    const PERIODIC: u32 = 1 << 17;
    /// By 16. QEMU's bus has 1 GHz: a tick of 10 ms; how long it is does not matter.
    const BY_16: u32 = 3;
    const TICKS: u32 = 625_000;
    let vector = |number: usize| (FIRST + number) as u32;
    let registers = [
        (SPURIOUS_VECTOR, ENABLE | vector(SPURIOUS)),
        (TIMER, PERIODIC | vector(TICK)),
        (TIMER_DIVISION, BY_16),
        (TIMER_COUNT, TICKS),
    ];
    for (register, value) in registers {
        // SAFETY: registers of this processor's interrupt controller.
        unsafe { core::ptr::with_exposed_provenance_mut::<u32>(register as usize).write_volatile(value) };
    }
    // SAFETY: every vector has its handler.
    unsafe { asm!("sti", options(nomem, nostack)) };
}

/// An interrupt gate of the IDT, with a stack of the TSS.
fn gate(vector: usize, handler: usize, stack: u64) {
    const CODE_SELECTOR: u64 = 0x08;
    const INTERRUPT_GATE: u64 = 0x8e;
    let handler = handler as u64;
    let low = (handler & 0xffff)
        | CODE_SELECTOR << 16
        | stack << 32
        | INTERRUPT_GATE << 40
        | (handler >> 16 & 0xffff) << 48;
    IDT[2 * vector].store(low, Ordering::Relaxed);
    IDT[2 * vector + 1].store(handler >> 32, Ordering::Relaxed);
}

/// Where every exception ends.
pub(super) extern "C" fn exception(number: u64, address: u64, frame: *const u64) -> ! {
    // SAFETY: the handler's stack has at least five words there.
    let frame = unsafe { core::slice::from_raw_parts(frame, 5) };
    println!("exception {number}, cr2 {address:#x}, stack {frame:#x?}");
    exit(Outcome::Exception)
}

/// A vector of this processor.
#[derive(Debug)]
pub(crate) struct Vector(usize);

impl Vector {
    /// One that is nobody's, if there is one.
    pub(crate) fn allocate() -> Option<Self> {
        let free = |taken: u32| (taken != u32::MAX).then(|| taken | (taken + 1));
        let before = TAKEN.fetch_update(Ordering::Relaxed, Ordering::Relaxed, free).ok()?;
        let number = before.trailing_ones() as usize;
        PENDING[number].store(0, Ordering::Relaxed);
        Some(Self(number))
    }

    /// Its number in a message.
    pub(crate) fn number(&self) -> u8 {
        (FIRST + self.0) as u8
    }

    /// Whether it has arrived since the last [`Vector::take`].
    pub(crate) fn has_arrived(&self) -> bool {
        PENDING[self.0].load(Ordering::Relaxed) != 0
    }

    /// Whether it has arrived since the last call.
    pub(crate) fn take(&self) -> bool {
        PENDING[self.0].swap(0, Ordering::Acquire) != 0
    }
}

impl Drop for Vector {
    fn drop(&mut self) {
        TAKEN.fetch_and(!(1 << self.0), Ordering::Relaxed);
    }
}

/// Masks interrupts; the answer is for [`restore`].
pub(crate) fn mask() -> usize {
    let flags: usize;
    // SAFETY: reads the flags by way of the stack, and masks. Memory is not moved across it.
    unsafe { asm!("pushfq", "pop {}", "cli", out(reg) flags) };
    flags
}

/// Puts interrupts back to how they were before [`mask`].
pub(crate) fn restore(flags: usize) {
    const INTERRUPT: usize = 1 << 9;
    if flags & INTERRUPT != 0 {
        // SAFETY: interrupts were on. Memory is not moved across it.
        unsafe { asm!("sti", options(nostack)) };
    }
}

/// Sleeps until an interrupt, unless `awake` says that there is no need. Who had interrupts masked lets them in meanwhile.
pub(crate) fn sleep_unless(awake: impl Fn() -> bool) {
    let flags = mask();
    if !awake() {
        // SAFETY: what arrives between the look and the halt is not lost: interrupts come in after the next instruction.
        unsafe { asm!("sti", "hlt", "cli", options(nostack)) };
    }
    restore(flags);
}
