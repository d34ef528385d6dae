//! What runs out: huge pages, the kernel's number of mappings, and locked memory.

use std::fs;

use platform::{MapError, Prot};

use crate::checks::{Pages, edu, map, open, own_domain, unmap};
use crate::edu::BUFFER_LEN;
use crate::system::EDU;
use crate::{Failure, alone, ensure};

fn free_hugepages() -> Result<u64, Failure> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("HugePages_Free:"));
    Ok(line.ok_or("the kernel knows no huge pages")?.trim().parse()?)
}

pub(crate) fn hugepages() -> Result<(), Failure> {
    const HUGE: usize = 2 << 20;
    let vfio = open(&[EDU])?;
    let domain = own_domain(&vfio, EDU)?;
    let edu = edu(&vfio, EDU)?;
    fs::write("/proc/sys/vm/nr_hugepages", "4")?;
    let free = free_hugepages()?;
    ensure(free == 4, &format!("of 4 huge pages {free} are there"))?;
    let pages = Pages::new(&vfio, HUGE)?;
    ensure(pages.at().is_aligned(HUGE as u64), "the memory is not aligned to its page")?;
    pages.fill(1);
    ensure(free_hugepages()? == free - 1, "the memory is of small pages")?;
    map(&domain, 0x20_0000, &pages, Prot::READ | Prot::WRITE)?;
    edu.read(0x20_0000, BUFFER_LEN)?;
    pages.fill(2);
    edu.write(0x20_0000, BUFFER_LEN)?;
    ensure(pages.holds(1, BUFFER_LEN), "the device does not reach it")?;
    ensure(unmap(&domain, 0x20_0000, HUGE as u64)? == HUGE as u64, "it was not unmapped")?;
    drop(pages);
    ensure(free_hugepages()? == free, "the page was not given back")?;
    fs::write("/proc/sys/vm/nr_hugepages", "0")?;
    // Without any, small ones do.
    let pages = Pages::new(&vfio, HUGE)?;
    Ok(map(&domain, 0x20_0000, &pages, Prot::READ)?)
}

pub(crate) fn mappings() -> Result<(), Failure> {
    const LIMIT: u64 = 16;
    const PARAMETER: &str = "/sys/module/vfio_iommu_type1/parameters/dma_entry_limit";
    let before = fs::read_to_string(PARAMETER)?;
    ensure(before.trim() == "65535", "the kernel allows another number of mappings")?;
    fs::write(PARAMETER, LIMIT.to_string())?;
    let result = some_mappings(LIMIT);
    fs::write(PARAMETER, before)?;
    result
}

fn some_mappings(limit: u64) -> Result<(), Failure> {
    let vfio = open(&[EDU])?;
    let domain = own_domain(&vfio, EDU)?;
    let page = Pages::new(&vfio, 4096)?;
    let place = |index| 0x10_0000 + 8192 * index;
    for index in 0..limit {
        map(&domain, place(index), &page, Prot::READ)?;
    }
    let refused = map(&domain, place(limit), &page, Prot::READ);
    ensure(refused == Err(MapError::TooManyMappings), &format!("one more was answered with {refused:?}"))?;
    ensure(unmap(&domain, place(3), 4096)? == 4096, "a mapping was not unmapped")?;
    Ok(map(&domain, place(limit), &page, Prot::READ)?)
}

pub(crate) fn locked_memory() -> Result<(), Failure> {
    let output = alone::start(alone::LOCKED_MEMORY)?.wait_with_output()?;
    ensure(output.status.success(), String::from_utf8_lossy(&output.stdout).trim())
}

/// As an unprivileged user who may lock 64 KiB.
pub(crate) fn locked_memory_alone() -> Result<(), Failure> {
    const ALLOWED: u64 = 64 << 10;
    alone::limit_locked_memory(ALLOWED)?;
    let status = fs::read_to_string("/proc/self/status")?;
    ensure(status.lines().any(|line| line == "CapEff:\t0000000000000000"), "the process is privileged")?;
    let vfio = open(&[EDU])?;
    let domain = own_domain(&vfio, EDU)?;
    let pages = Pages::new(&vfio, 4096)?;
    for index in 0..ALLOWED / 4096 {
        map(&domain, 0x10_0000 + 4096 * index, &pages, Prot::READ)?;
    }
    let refused = map(&domain, 0x20_0000, &pages, Prot::READ);
    ensure(refused == Err(MapError::PinLimit), &format!("one page more was answered with {refused:?}"))?;
    ensure(unmap(&domain, 0x10_0000, 4096)? == 4096, "a mapping was not unmapped")?;
    Ok(map(&domain, 0x20_0000, &pages, Prot::READ)?)
}
