//! The command ring: completion waits, order, what stops it, and that it is the unit's own thread that works.

mod common;

use common::*;
use sim_hardware::bus::Remapper;
use sim_hardware::iommu::Config;

const WAIT: u64 = 1 << 60;

#[test]
fn a_wait_stores_its_word_and_nothing_beside() {
    let bench = Bench::default();
    for at in [DATA - 8, DATA, DATA + 8] {
        bench.poke(at, 0x55);
    }
    bench.command(WAIT | DATA | 1, 0x1122_3344_5566_7788);
    eventually("the store", || bench.peek(DATA) == 0x1122_3344_5566_7788);
    assert_eq!((bench.peek(DATA - 8), bench.peek(DATA + 8)), (0x55, 0x55));
    assert_eq!(bench.status() & COM_WAIT_INT, 0, "no interrupt was asked for");
    // Without the flag nothing is stored.
    bench.command(WAIT | DATA, 0x99);
    bench.wait();
    assert_eq!(bench.peek(DATA), 0x1122_3344_5566_7788);
}

#[test]
fn a_wait_interrupts_when_it_is_asked_and_allowed_to() {
    let bench = Bench::default();
    let vector = bench.msi();
    bench.run(WAIT | 2, 0);
    assert_eq!(bench.status() & COM_WAIT_INT, COM_WAIT_INT, "the status is set in any case");
    assert!(!vector.wait(A_WHILE), "ComWaitIntEn is 0");
    bench.registers().write64(STATUS, COM_WAIT_INT);
    assert_eq!(bench.status() & COM_WAIT_INT, 0);

    bench.registers().write64(CONTROL, ON | COM_WAIT_INT_EN);
    // Store and interrupt at once.
    bench.command(WAIT | DATA | 3, 0x42);
    assert!(vector.wait(SOON));
    assert_eq!(bench.peek(DATA), 0x42);
    assert_eq!(bench.status() & COM_WAIT_INT, COM_WAIT_INT);
    bench.wait();
    assert!(!vector.wait(A_WHILE), "a wait with a store alone");
}

#[test]
fn commands_are_executed_in_order_round_the_ring() {
    let bench = Bench::default();
    // 256 commands at most; a thousand go round almost four times.
    for number in 0..1000_u64 {
        let tail = bench.registers().read64(COMMAND_TAIL);
        eventually("room", || (tail + 16) & 0xfff != bench.registers().read64(COMMAND_HEAD));
        bench.command(WAIT | (DATA + 8 * number) | 1, number + 1);
        // Overwritten by the next: the last one stays.
        eventually("room", || (tail + 32) & 0xfff != bench.registers().read64(COMMAND_HEAD));
        bench.command(WAIT | (DATA + 0x8000) | 1, number);
    }
    bench.wait();
    assert!((0..1000).all(|number| bench.peek(DATA + 8 * number) == number + 1));
    assert_eq!(bench.peek(DATA + 0x8000), 999);
    let (head, tail) = (bench.registers().read64(COMMAND_HEAD), bench.registers().read64(COMMAND_TAIL));
    assert_eq!((head, tail), (2001 * 16 % 4096, 2001 * 16 % 4096));
    assert_eq!(bench.unit.stats().commands[1], 2001);
}

#[test]
fn a_doorbell_returns_before_the_commands_are_done() {
    let bench = Bench::default();
    let vector = bench.msi();
    bench.registers().write64(CONTROL, ON | COM_WAIT_INT_EN);
    // Commands in the ring without a doorbell stay where they are.
    bench.poke(COMMANDS, WAIT | DATA | 3);
    bench.poke(COMMANDS + 8, 1);
    assert!(!vector.wait(A_WHILE));
    assert_eq!(bench.peek(DATA), 0);
    bench.registers().write32(COMMAND_TAIL, 16);
    assert!(vector.wait(SOON));
    assert_eq!(bench.peek(DATA), 1);
}

#[test]
fn a_wait_ends_after_everything_before_it() {
    // A completion wait tells that everything before it is done: with many pages, each is new after the wait.
    let bench = Bench::default();
    let root = bench.table();
    bench.attach(A, 1, 3, root);
    for page in 0..100 {
        bench.map(root, 3, 0x1000 * page, 1, DATA | READ_WRITE);
        assert_eq!(bench.a.read(0x1000 * page), Ok(0));
        bench.map(root, 3, 0x1000 * page, 1, 0);
        bench.command(3 << 60 | 1 << 32, 0x1000 * page);
    }
    bench.wait();
    assert!((0..100).all(|page| bench.a.read(0x1000 * page).is_err()));
}

#[test]
fn a_wait_does_not_end_before_the_accesses_that_use_what_was_invalidated() {
    let bench = Bench::default();
    let root = bench.table();
    bench.attach(A, 1, 3, root);
    bench.map(root, 3, 0x5000, 1, DATA | READ_WRITE);
    let mut accessed = 0;
    let done = bench.unit.with_translation(A.into(), 0x5008, 8, true, &mut |translated| {
        assert_eq!((translated.phys, translated.len), (DATA + 8, 8));
        // The page is taken away while the device is writing to it. The doorbell returns at once.
        bench.map(root, 3, 0x5000, 1, 0);
        bench.command(3 << 60 | 1 << 32, 0x5000);
        bench.command(WAIT | (DATA + 0x1000) | 1, 1);
        std::thread::sleep(A_WHILE);
        accessed += 1;
        assert_eq!(bench.peek(DATA + 0x1000), 0, "the write is still under way");
        Ok(())
    });
    assert_eq!((done, accessed), (Ok(()), 1));
    eventually("the completion", || bench.peek(DATA + 0x1000) == 1);
    assert!(bench.a.read(0x5000).is_err());
}

#[test]
fn the_ring_runs_until_its_last_command_has_ended() {
    let bench = Bench::default();
    bench.attach(A, 1, 0, 0);
    let done = bench.unit.with_translation(A.into(), DATA, 8, true, &mut |_| {
        // This one is taken, and waits for the access.
        bench.command(2 << 60 | 0x18, 0);
        eventually("the command is taken", || bench.registers().read64(COMMAND_HEAD) == 16);
        bench.registers().write64(CONTROL, ON & !(1 << 12));
        bench.registers().write64(COMMAND_BASE, 0x50_0000 | 9 << 56);
        assert_eq!(bench.status() & COMMAND_RUN, COMMAND_RUN);
        assert_eq!(bench.registers().read64(COMMAND_BASE), COMMANDS | 8 << 56);
        Ok(())
    });
    assert_eq!(done, Ok(()));
    eventually("the stop", || bench.status() & COMMAND_RUN == 0);
    bench.registers().write64(COMMAND_BASE, 0x50_0000 | 9 << 56);
    assert_eq!(bench.registers().read64(COMMAND_HEAD), 0);
}

#[test]
fn bad_commands_stop_the_ring_and_are_logged() {
    let bad = [
        // Opcodes that are none, or belong to features that this unit does not have.
        (0, 0),
        (6 << 60 | 0x18, 0x1000),
        (7 << 60, 0),
        (9 << 60, 0),
        (0xf << 60, 0),
        // Bits that must be zero.
        (WAIT | 1 << 52, 0),
        (2 << 60 | 1 << 16, 0),
        (2 << 60, 1),
        (5 << 60 | 1 << 16, 0),
        (5 << 60, 1 << 63),
        (3 << 60 | 1 << 48, 0),
        (3 << 60 | 1 << 20, 0),
        (3 << 60, 1 << 3),
        (3 << 60, 1 << 11),
        (4 << 60, 1 << 1),
        (8 << 60 | 1, 0),
        (8 << 60, 1),
    ];
    for (first, second) in bad {
        let bench = Bench::default();
        bench.wait();
        bench.command(first, second);
        bench.command(WAIT | DATA | 1, 1);
        let case = format!("{first:#x}, {second:#x}");
        eventually("the halt", || bench.status() & COMMAND_RUN == 0);
        eventually("the event", || bench.status() & EVENT_INT != 0);
        assert_eq!(bench.registers().read64(COMMAND_HEAD), 16, "{case}: the head stays");
        assert_eq!(bench.events(), [(5 << 60, COMMANDS + 16)], "{case}");
        assert_eq!(bench.peek(DATA), 0, "{case}: nothing after it is done");

        // A harmless one in its place, and off and on.
        bench.poke(COMMANDS + 16, WAIT);
        bench.poke(COMMANDS + 24, 0);
        bench.registers().write64(CONTROL, ON);
        assert_eq!(bench.status() & COMMAND_RUN, 0, "{case}: on alone does not start it");
        bench.registers().write64(CONTROL, ON & !(1 << 12));
        bench.registers().write64(CONTROL, ON);
        eventually("the next command", || bench.peek(DATA) == 1);
    }
}

#[test]
fn invalidate_all_needs_its_feature() {
    let bench = Bench::new(Config { efr: 2 << 10, ..Config::default() });
    bench.command(8 << 60, 0);
    eventually("the halt", || bench.status() & COMMAND_RUN == 0);
    eventually("the event", || bench.status() & EVENT_INT != 0);
    assert_eq!(bench.events(), [(5 << 60, COMMANDS)]);
    // The register that says so.
    assert_eq!(bench.registers().read64(0x30), 2 << 10);
}

#[test]
fn a_wait_that_cannot_store_stops_the_ring() {
    let bench = Bench::default();
    bench.command(WAIT | 0x7_0000_0000 | 1, 1);
    eventually("the halt", || bench.status() & COMMAND_RUN == 0);
    eventually("the event", || bench.status() & EVENT_INT != 0);
    // COMMAND_HARDWARE_ERROR, master abort.
    assert_eq!(bench.events(), [(0x6200_0000_0000_0000, COMMANDS)]);
}

#[test]
fn a_ring_that_is_no_memory_stops() {
    let bench = Bench::off(Config::default());
    bench.registers().write64(COMMAND_BASE, 0x7_0000_0000 | 8 << 56);
    bench.registers().write64(EVENT_BASE, EVENTS | 8 << 56);
    bench.registers().write64(CONTROL, ON);
    bench.registers().write32(COMMAND_TAIL, 16);
    eventually("the halt", || bench.status() & COMMAND_RUN == 0);
    eventually("the event", || bench.status() & EVENT_INT != 0);
    assert_eq!(bench.events(), [(0x6200_0000_0000_0000, 0x7_0000_0000)]);
}

#[test]
fn nothing_runs_while_the_unit_or_the_ring_is_off() {
    for off in [1, 1 << 12] {
        let bench = Bench::default();
        bench.registers().write64(CONTROL, ON & !off);
        assert_eq!(bench.status() & COMMAND_RUN, 0);
        bench.command(WAIT | DATA | 1, 1);
        std::thread::sleep(A_WHILE);
        assert_eq!(bench.peek(DATA), 0);
        bench.registers().write64(CONTROL, ON);
        eventually("the command", || bench.peek(DATA) == 1);
    }
}

#[test]
fn ring_registers_are_guarded_while_it_runs() {
    let bench = Bench::default();
    bench.wait();
    bench.registers().write64(COMMAND_BASE, 0x50_0000 | 9 << 56);
    bench.registers().write64(COMMAND_HEAD, 0);
    assert_eq!(bench.registers().read64(COMMAND_BASE), COMMANDS | 8 << 56);
    assert_eq!(bench.registers().read64(COMMAND_HEAD), 16);
    bench.registers().write64(CONTROL, ON & !(1 << 12));
    eventually("the stop", || bench.status() & COMMAND_RUN == 0);
    bench.registers().write64(COMMAND_BASE, COMMANDS | 9 << 56);
    assert_eq!(bench.registers().read64(COMMAND_HEAD), 0);
    assert_eq!(bench.registers().read64(COMMAND_TAIL), 0);
    // Pointers stay inside the ring: 512 commands of 16 bytes.
    bench.registers().write64(COMMAND_HEAD, 0x7_fff8);
    assert_eq!(bench.registers().read64(COMMAND_HEAD), 0x1ff0);
    // A size code below 8 is reserved.
    bench.registers().write64(COMMAND_BASE, COMMANDS | 7 << 56);
    bench.registers().write64(CONTROL, ON);
    assert_eq!(bench.status() & COMMAND_RUN, 0);
}

#[test]
fn registers_are_written_in_halves_too() {
    let bench = Bench::off(Config::default());
    bench.registers().write32(0x00, 0x0010_01ff);
    bench.registers().write32(0x04, 0x0000_0007);
    assert_eq!(bench.registers().read64(0x00), 0x7_0010_01ff);
    assert_eq!((bench.registers().read32(0x00), bench.registers().read32(0x04)), (0x0010_01ff, 7));
    // The limit of the exclusion range reads with ones below; what is not there reads 0; what is misplaced, ones.
    bench.registers().write64(0x28, 0x5000);
    assert_eq!(bench.registers().read64(0x28), 0x5fff);
    bench.registers().write64(0x3000, 7);
    assert_eq!(bench.registers().read64(0x3000), 0);
    assert_eq!((bench.registers().read32(2), bench.registers().read64(0x4000)), (u32::MAX, u64::MAX));
    assert_eq!(bench.registers().len(), 0x4000);
}

#[test]
fn a_lost_completion_is_lost_once() {
    let bench = Bench::default();
    bench.unit.drop_completions(1);
    bench.command(WAIT | DATA | 1, 1);
    bench.wait();
    assert_eq!(bench.peek(DATA), 0, "the switch");
    bench.run(WAIT | DATA | 1, 2);
    assert_eq!(bench.peek(DATA), 2);
}
