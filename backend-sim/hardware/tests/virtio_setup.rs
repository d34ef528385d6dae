//! The virtio device before and beside its requests: how it is found, what it insists on, interrupts, and drivers that break
//! the rules.

mod common;

use common::virtio::*;
use common::{A_WHILE, config_read, eventually, pattern};
use sim_hardware::virtio::{Config, VirtioBlk};

const NO_VECTOR: u16 = 0xffff;
const SECTORS: usize = 16;

fn up() -> Host {
    Host::up(&pattern(SECTORS * 512), true)
}

#[test]
fn it_is_found_by_its_numbers_and_capabilities() {
    let host = Host::new(&pattern(SECTORS * 512 - 1), false);
    let word = |at| config_read(&host.pci, VIRTIO, at);
    // 1AF4h, 1040h and the type of a block device, 2.
    assert_eq!(word(0x00), 0x1042_1af4);
    // Length, then type: notifications have a multiplier more.
    for (kind, bytes) in [(1, 16), (2, 20), (3, 16), (4, 16)] {
        assert_eq!(word(host.capability(kind)) >> 16, kind << 8 | bytes, "{kind}");
    }
    // The MSI-X capability before them is still there: two vectors.
    let mut at = word(0x34) as u16 & 0xff;
    while word(at) & 0xff != 0x11 {
        at = (word(at) >> 8) as u16 & 0xff;
        assert_ne!(at, 0, "no MSI-X");
    }
    assert_eq!(word(at) >> 16, 1);
    let places: Vec<_> = (1..=4).map(|kind| host.place(kind)).collect();
    for place in &places {
        assert!(place.offset + place.len <= host.registers.len());
        assert!(place.offset % 4 == 0);
    }
    assert!(places[0].len >= 0x38 && places[1].len >= 2 && places[2].len >= 1 && places[3].len >= 8);
    // The capacity is in sectors, the last of which may not be full.
    let capacity = places[3].offset;
    assert_eq!((host.registers.read32(capacity), host.registers.read32(capacity + 4)), (SECTORS as u32, 0));
    assert_eq!(host.registers.read8(capacity), SECTORS as u8);
}

#[test]
fn it_offers_what_it_has() {
    let base = VERSION_1 | ACCESS_PLATFORM | BLK_FLUSH;
    assert_eq!(Host::new(&[0; 512], true).features(), base);
    let host = Host::new(&[0; 512], false);
    assert_eq!(host.features(), base | BLK_RO);
    host.set32(DEVICE_FEATURE_SELECT, 2);
    assert_eq!(host.get32(DEVICE_FEATURE), 0, "there are 64");
    assert_eq!(host.get16(NUM_QUEUES), 1);
    assert_eq!(host.get16(QUEUE_SIZE), 128);
    assert_eq!(host.get16(QUEUE_NOTIFY_OFF), 0);
    host.set16(QUEUE_SELECT, 1);
    assert_eq!(host.get16(QUEUE_SIZE), 0, "there is no second queue");
    host.set16(QUEUE_ENABLE, 1);
    assert_eq!(host.get16(QUEUE_ENABLE), 0);
}

#[test]
fn features_are_refused_that_it_does_not_offer_or_cannot_do_without() {
    let all = VERSION_1 | ACCESS_PLATFORM | BLK_FLUSH;
    let cases = [
        (all, true),
        (all & !BLK_FLUSH, true),
        (all & !VERSION_1, false),
        // Its memory is behind an IOMMU, and a driver that does not know that would name physical addresses.
        (all & !ACCESS_PLATFORM, false),
        (all | BLK_RO, false),
        (all | 1 << 28, false),
        (0, false),
    ];
    for (features, accepted) in cases {
        let host = Host::new(&[0; 512], true);
        host.set8(STATUS, ACKNOWLEDGE | DRIVER);
        host.accept(features);
        host.set8(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert_eq!(host.get8(STATUS) & FEATURES_OK != 0, accepted, "{features:#x}");
        host.set8(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        assert_eq!(host.get8(STATUS) & DRIVER_OK != 0, accepted, "{features:#x}");
        // What has been agreed on stays.
        host.accept(all | BLK_RO);
        host.set32(DRIVER_FEATURE_SELECT, 0);
        assert_eq!(host.get32(DRIVER_FEATURE) & BLK_RO as u32 == 0, accepted);
    }
}

#[test]
fn fields_are_written_in_their_own_width_alone() {
    let host = Host::new(&[0; 512], true);
    host.registers.write32(host.common + QUEUE_SELECT, 0x0010_0000);
    host.registers.write8(host.common + QUEUE_SIZE, 16);
    host.registers.write64(host.common + QUEUE_DESC, 0x1000);
    host.set32(STATUS, u32::from(ACKNOWLEDGE));
    assert_eq!((host.get16(QUEUE_SIZE), host.get32(QUEUE_DESC), host.get8(STATUS)), (128, 0, 0));
    // Halves of 64 bits.
    host.set32(QUEUE_DESC + 4, 0x12);
    host.set32(QUEUE_DESC, 0x3456_7000);
    assert_eq!((host.get32(QUEUE_DESC), host.get32(QUEUE_DESC + 4)), (0x3456_7000, 0x12));
    // A size is a power of two, and no more than there is.
    for size in [0, 3, 256] {
        host.set16(QUEUE_SIZE, size);
        assert_eq!(host.get16(QUEUE_SIZE), 128, "{size}");
    }
    host.set16(QUEUE_SIZE, 32);
    assert_eq!(host.get16(QUEUE_SIZE), 32);
    // A vector that is not there is none.
    for field in [CONFIG_MSIX_VECTOR, QUEUE_MSIX_VECTOR] {
        assert_eq!(host.get16(field), NO_VECTOR);
        host.set16(field, 1);
        assert_eq!(host.get16(field), 1);
        host.set16(field, 2);
        assert_eq!(host.get16(field), NO_VECTOR);
    }
}

#[test]
fn a_queue_stays_as_it_was_enabled() {
    let host = up();
    host.set32(QUEUE_DESC, 0x7000);
    host.set16(QUEUE_SIZE, 64);
    host.set16(QUEUE_ENABLE, 0);
    assert_eq!(host.get32(QUEUE_DESC), DESCRIPTORS as u32);
    assert_eq!((host.get16(QUEUE_SIZE), host.get16(QUEUE_ENABLE)), (SIZE, 1));
}

#[test]
fn nothing_is_used_before_the_driver_is_ready() {
    let mut host = Host::new(&pattern(SECTORS * 512), true);
    host.request(IN, 0, &[(DATA, 512)]);
    host.offer(0);
    host.notify();
    std::thread::sleep(A_WHILE);
    assert_eq!(host.poll(), None);
}

#[test]
fn a_reset_lets_go_of_everything() {
    let mut host = up();
    assert_eq!(host.run(IN, 0, &[(DATA, 512)]).0, 0);
    host.reset();
    assert_eq!((host.get16(QUEUE_ENABLE), host.get16(QUEUE_SIZE), host.get32(QUEUE_DESC)), (0, 128, 0));
    assert_eq!(host.isr(), 0);
    host.request(IN, 0, &[(DATA, 512)]);
    host.offer(0);
    host.notify();
    std::thread::sleep(A_WHILE);
    assert_eq!(host.poll(), None);
    // And it can be brought up again, also from where it stood still.
    host.start();
    assert_eq!(host.run(IN, 1, &[(DATA, 512)]), (0, 513));
    host.reset();
    host.reset();
    host.start();
    assert_eq!(host.run(IN, 2, &[(DATA, 512)]), (0, 513));
}

#[test]
fn without_a_vector_the_isr_status_says_it_once() {
    let mut host = up();
    assert_eq!(host.isr(), 0);
    host.run(IN, 0, &[(DATA, 512)]);
    eventually("the bit", || host.isr() == 1);
    assert_eq!(host.isr(), 0);
    // VIRTQ_AVAIL_F_NO_INTERRUPT.
    host.fill(AVAILABLE, &1u16.to_le_bytes());
    host.run(IN, 0, &[(DATA, 512)]);
    std::thread::sleep(A_WHILE);
    assert_eq!(host.isr(), 0);
}

#[test]
fn with_a_vector_a_message_comes() {
    let mut host = up();
    let table = host.pci.mmio(VIRTIO, 4).unwrap();
    let vectors: Vec<_> = (0..2)
        .map(|entry| {
            let vector = host.interrupts.allocate().unwrap();
            let (address, data) = vector.message();
            table.write32(16 * entry, address as u32);
            table.write32(16 * entry + 4, (address >> 32) as u32);
            table.write32(16 * entry + 8, data);
            table.write32(16 * entry + 12, 0);
            vector
        })
        .collect();
    // MSI-X is behind the PCI Express capability.
    common::config_write(&host.pci, VIRTIO, 0x80, 1 << 31);
    host.set16(CONFIG_MSIX_VECTOR, 0);
    host.set16(QUEUE_MSIX_VECTOR, 1);
    host.run(IN, 0, &[(DATA, 512)]);
    assert!(vectors[1].wait(common::SOON));
    assert!(!vectors[0].wait(A_WHILE));
    host.offer(SIZE);
    host.notify();
    assert!(vectors[0].wait(common::SOON), "the device says that it needs a reset");
    assert!(!vectors[1].wait(A_WHILE));
    assert_eq!(host.isr(), 0);
}

/// Each breach stops the device, which says so and uses nothing more, until it is reset.
#[test]
fn a_driver_that_breaks_the_rules_has_to_reset_the_device() {
    type Breach = fn(&mut Host);
    let breaches: [(&str, Breach); 14] = [
        ("a head that is no descriptor", |host| host.offer(SIZE)),
        ("a way to what is no descriptor", |host| {
            host.describe(0, HEADER, 16, NEXT, SIZE);
            host.offer(0);
        }),
        ("a loop of one", |host| {
            host.describe(0, HEADER, 16, NEXT, 0);
            host.offer(0);
        }),
        ("a loop of what is written", |host| {
            host.describe(0, HEADER, 16, NEXT, 1);
            host.describe(1, DATA, 512, WRITE | NEXT, 2);
            host.describe(2, DATA, 512, WRITE | NEXT, 1);
            host.offer(0);
        }),
        ("what is read behind what is written", |host| {
            host.describe(0, HEADER, 16, NEXT, 1);
            host.describe(1, STATUS_BYTE, 1, WRITE | NEXT, 2);
            host.describe(2, DATA, 512, 0, 0);
            host.offer(0);
        }),
        ("an indirect table, which was not offered", |host| {
            host.describe(0, DATA, 48, INDIRECT, 0);
            host.offer(0);
        }),
        ("more requests than the queue has room for", |host| {
            host.fill(AVAILABLE + 2, &(SIZE + 1).to_le_bytes());
        }),
        ("a short header", |host| {
            host.describe(0, HEADER, 15, NEXT, 1);
            host.describe(1, STATUS_BYTE, 1, WRITE, 0);
            host.offer(0);
        }),
        ("no place for the status", |host| {
            host.describe(0, HEADER, 16, 0, 0);
            host.offer(0);
        }),
        ("a place of no bytes for the status", |host| {
            host.describe(0, HEADER, 16, NEXT, 1);
            host.describe(1, STATUS_BYTE, 0, WRITE, 0);
            host.offer(0);
        }),
        ("a status where nobody answers", |host| {
            host.describe(2, 0x7_0000_0000, 1, WRITE, 0);
            host.offer(0);
        }),
        ("a status at the end of the address space", |host| {
            host.describe(2, u64::MAX, u32::MAX, WRITE, 0);
            host.offer(0);
        }),
        ("a status over the device's own registers, which a request never comes back to", |host| {
            let registers = common::bar(&host.pci, VIRTIO, 0);
            host.describe(2, registers + (host.common + STATUS) as u64, 1, WRITE, 0);
            host.offer(0);
        }),
        ("a status far beyond memory", |host| {
            host.describe(2, DATA, u32::MAX, WRITE, 0);
            host.offer(0);
        }),
    ];
    for (breach, commit) in breaches {
        let mut host = up();
        host.request(IN, 0, &[(DATA, 512)]);
        commit(&mut host);
        host.notify();
        eventually(breach, || host.get8(STATUS) & NEEDS_RESET != 0);
        eventually("the change of the configuration", || host.isr() == 2);
        assert_eq!(host.poll(), None, "{breach}");
        host.request(IN, 0, &[(DATA, 512)]);
        host.offer(0);
        host.notify();
        std::thread::sleep(A_WHILE);
        assert_eq!(host.poll(), None, "{breach}: it stands still");
        host.reset();
        host.start();
        assert_eq!(host.run(IN, 0, &[(DATA, 512)]), (0, 513), "{breach}: and goes on after a reset");
    }
}

#[test]
fn a_queue_where_nobody_answers_needs_a_reset() {
    for (field, area) in
        [(QUEUE_DESC, 0x7), (QUEUE_DRIVER, 0x7), (QUEUE_DEVICE, 0x7), (QUEUE_DRIVER, u32::MAX)]
    {
        let mut host = Host::new(&pattern(SECTORS * 512), true);
        // In the upper half; what start() writes to the lower one stays.
        host.set8(STATUS, ACKNOWLEDGE | DRIVER);
        host.accept(host.features());
        host.set8(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        for (field, area) in [(QUEUE_DESC, DESCRIPTORS), (QUEUE_DRIVER, AVAILABLE), (QUEUE_DEVICE, USED)] {
            host.set32(field, area as u32);
        }
        host.set32(field + 4, area);
        host.set16(QUEUE_SIZE, SIZE);
        host.set16(QUEUE_ENABLE, 1);
        host.set8(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        host.request(IN, 0, &[(DATA, 512)]);
        host.offer(0);
        host.notify();
        eventually("the end", || host.get8(STATUS) & NEEDS_RESET != 0);
    }
}

#[test]
fn a_disk_must_be_there() {
    let config = Config { disk: "/nowhere/at/all".into(), writable: false };
    assert!(VirtioBlk::new(&config).is_err());
}
