//! The simulated machine and QEMU are given the same sequences of maps, unmaps, moves and device accesses, drawn at random from a
//! seed: both must end with the same bytes in memory, and refuse the same accesses. Where they differ the specification decides.
//!
//! `AGREEMENT_SEQUENCES` says how many sequences there are (1,000 without it), `AGREEMENT_SEED` which.

use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backend_qemu::{Config, EDU_BUFFER, Edu, Emulator, Program, ProgramError, QemuMachine};
use backend_sim::SimMachine;
use backend_sim::sim_hardware::Machine as SimHardware;
use iommu_core::{Domain, Group, PagingFlags};
use platform::device_memory::{copy_in, copy_out};
use platform::pci::PciAddress;
use platform::{DmaAddr, FrameRequest, Mmio, PhysAddr, Platform, Prot};

const PAGE: u64 = 4096;
/// The memory that is mapped and unmapped: pages of 2 MiB fit.
const POOL: u64 = 4 << 20;
/// Domains that the device is moved between.
const DOMAINS: usize = 3;
/// Operations in a sequence.
const STEPS: usize = 24;
/// The I/O addresses that sequences use: few, so that they meet; far apart, so that tables come and go.
const WINDOWS: [u64; 3] = [0x4000_0000, 0x40_0000_0000, 0x7fff_ff00_0000];
const WINDOW: u64 = 8 << 20;
/// Where each domain of QEMU's has the page that edu is filled and emptied through.
const STAGING: DmaAddr = DmaAddr::new(0x1000);
const RW: Prot = Prot::READ.union(Prot::WRITE);

/// A device that may be told anything, and memory to tell it of.
trait Device {
    /// Makes it ready for a sequence: these words may be written.
    fn begin(&mut self, words: &[u64]);
    /// Writes word number `word`.
    fn write(&mut self, at: DmaAddr, word: usize);
    /// Reads, and remembers what it got.
    fn read(&mut self, at: DmaAddr);
    /// What the reads got, in order; `None` for what was refused.
    fn end(&mut self) -> Vec<Option<u64>>;
}

/// One machine: its group of one device, domains, memory.
struct Side<D> {
    name: &'static str,
    device: D,
    group: Arc<Group>,
    domains: Vec<Arc<Domain>>,
    platform: Arc<dyn Platform>,
    pool: PhysAddr,
}

impl<D: Device> Side<D> {
    fn new(name: &'static str, device: D, group: Arc<Group>, platform: Arc<dyn Platform>) -> Self {
        let request = FrameRequest { align: POOL as usize, ..FrameRequest::anywhere(POOL as usize) };
        let pool = platform.alloc(request).unwrap();
        let domains = (0..DOMAINS).map(|_| group.alloc_unmanaged(PagingFlags::empty()).unwrap()).collect();
        Self { name, device, group, domains, platform, pool }
    }

    fn fill(&self, words: impl Iterator<Item = u64>) {
        let bytes: Vec<u8> = words.take(POOL as usize / 8).flat_map(u64::to_le_bytes).collect();
        let to = self.platform.window().ptr(self.pool);
        // SAFETY: the pool is this test's, and that long; devices access it atomically.
        unsafe { copy_in(bytes.as_ptr(), to, bytes.len()) };
    }

    fn memory(&self) -> Vec<u8> {
        let mut bytes = vec![0; POOL as usize];
        let from = self.platform.window().ptr(self.pool);
        // SAFETY: as in `fill`.
        unsafe { copy_out(from, bytes.as_mut_ptr(), bytes.len()) };
        bytes
    }

    /// Does one step; the answer is what the software says of it.
    fn step(&mut self, step: &Step) -> u64 {
        match *step {
            Step::Map { domain, at, offset, len, prot } => {
                let (domain, phys) = (&self.domains[domain], self.pool.wrapping_add(offset));
                // SAFETY: the pool stays; nobody else is in these domains.
                let (mapped, result) = unsafe { domain.map(at, phys, len, prot) };
                if result.is_err() {
                    // What was mapped before the error is taken back.
                    unmap(domain, at, mapped);
                }
                u64::from(result.is_ok())
            }
            Step::Unmap { domain, at, len } => unmap(&self.domains[domain], at, len),
            Step::Move { domain } => {
                match domain {
                    Some(domain) => self.group.replace(&self.domains[domain]).unwrap(),
                    // To the default domain, in which nothing is mapped that this test knows of.
                    None => self.group.detach().unwrap(),
                }
                0
            }
            Step::Write { at, word } => {
                self.device.write(at, word);
                0
            }
            Step::Read { at } => {
                self.device.read(at);
                0
            }
        }
    }

    fn clear(&self) {
        for domain in &self.domains {
            WINDOWS.iter().for_each(|&window| clear(domain, window));
        }
    }
}

/// Unmaps all that there is in a window.
fn clear(domain: &Domain, window: u64) {
    let mut at = window;
    while at < window + WINDOW {
        at += unmap(domain, DmaAddr::new(at), window + WINDOW - at).max(PAGE);
    }
}

fn unmap(domain: &Domain, at: DmaAddr, len: u64) -> u64 {
    if len == 0 {
        return 0;
    }
    let mut gather = domain.gather();
    // SAFETY: nobody else is in these domains.
    let done = unsafe { domain.unmap(at, len, &mut gather) };
    let _ = domain.sync(gather).unwrap();
    done
}

#[derive(Clone, Debug)]
enum Step {
    Map { domain: usize, at: DmaAddr, offset: u64, len: u64, prot: Prot },
    Unmap { domain: usize, at: DmaAddr, len: u64 },
    Move { domain: Option<usize> },
    Write { at: DmaAddr, word: usize },
    Read { at: DmaAddr },
}

/// Marsaglia's xorshift.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 11) % end
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// More accesses than anything else, most near what was mapped where the device is.
    fn sequence(&mut self) -> Vec<Step> {
        let mut places = [const { Vec::new() }; DOMAINS];
        // Something to reach, and the device where it is.
        let mut here = 0;
        let mut steps = vec![self.map(here, &mut places), Step::Move { domain: Some(here) }];
        let mut word = 0;
        while steps.len() < STEPS {
            let domain = self.below(DOMAINS as u64) as usize;
            steps.push(match self.below(20) {
                0..3 => self.map(domain, &mut places),
                3 => self.map(here, &mut places),
                4..7 => {
                    let (at, len) = (self.near(&places[domain]) & !(PAGE - 1), self.pick(&LENGTHS));
                    Step::Unmap { domain, at: DmaAddr::new(at), len }
                }
                7 => Step::Move { domain: None },
                8..11 => {
                    here = domain;
                    Step::Move { domain: Some(domain) }
                }
                11..15 => {
                    word += 1;
                    Step::Write { at: DmaAddr::new(self.near(&places[here]) & !7), word: word - 1 }
                }
                _ => Step::Read { at: DmaAddr::new(self.near(&places[here]) & !7) },
            });
        }
        steps
    }

    fn map(&mut self, domain: usize, places: &mut [Vec<u64>; DOMAINS]) -> Step {
        let len = self.pick(&LENGTHS);
        // Aligned to their length half of the time, so that large pages are made.
        let align = if self.below(2) == 0 { PAGE } else { len };
        let at = self.pick(&WINDOWS) + self.below((WINDOW - len) / align + 1) * align;
        let offset = self.below((POOL - len) / align + 1) * align;
        let prot = self.pick(&[RW, RW, RW, Prot::READ, Prot::WRITE]);
        places[domain].extend([at, at + len - PAGE]);
        Step::Map { domain, at: DmaAddr::new(at), offset, len, prot }
    }

    /// An address in or beside a page that something was mapped at.
    fn near(&mut self, places: &[u64]) -> u64 {
        let place = if places.is_empty() { WINDOWS[0] } else { self.pick(places) } + self.below(PAGE);
        match self.below(8) {
            0 => place + PAGE,
            1 => place - PAGE,
            _ => place,
        }
    }
}

const LENGTHS: [u64; 6] = [PAGE, 2 * PAGE, 3 * PAGE, 64 << 10, 1 << 20, 2 << 20];

/// The simulated machine's DMA engine. Registers as its documentation has them.
struct Engine {
    registers: Arc<dyn Mmio>,
    words: Vec<u64>,
    got: Vec<Option<u64>>,
}

impl Engine {
    /// Has it execute one command; whether it was told that it has worked.
    fn execute(&self, command: u64) -> bool {
        const LENGTH: usize = 0x10;
        const COMMAND: usize = 0x20;
        const STATUS: usize = 0x28;
        const BUSY: u64 = 1;
        const DONE: u64 = 2;
        self.registers.write64(LENGTH, 8);
        self.registers.write64(COMMAND, command);
        let start = Instant::now();
        while self.registers.read64(STATUS) == BUSY {
            assert!(start.elapsed() < Duration::from_secs(10), "the engine never ends");
            std::thread::yield_now();
        }
        self.registers.read64(STATUS) == DONE
    }
}

impl Device for Engine {
    fn begin(&mut self, words: &[u64]) {
        self.words = words.to_vec();
    }

    fn write(&mut self, at: DmaAddr, word: usize) {
        self.registers.write64(DESTINATION, at.get());
        self.registers.write64(DATA, self.words[word]);
        self.execute(2);
    }

    fn read(&mut self, at: DmaAddr) {
        self.registers.write64(SOURCE, at.get());
        let got = self.execute(3).then(|| self.registers.read64(DATA));
        self.got.push(got);
    }

    fn end(&mut self) -> Vec<Option<u64>> {
        std::mem::take(&mut self.got)
    }
}

const SOURCE: usize = 0x00;
const DESTINATION: usize = 0x08;
const DATA: usize = 0x18;

/// edu: the first half of its buffer has the words that it writes, the second what it has read. Nobody tells it what was
/// refused, so that half is filled with something first.
struct EduSide {
    edu: Edu,
    platform: Arc<dyn Platform>,
    group: Arc<Group>,
    home: Arc<Domain>,
    staging: PhysAddr,
    reads: usize,
}

const NOTHING: u64 = 0xeeee_eeee_eeee_eeee;
const HALF: usize = EDU_BUFFER / 2;

impl EduSide {
    fn staging(&self) -> *mut u8 {
        self.platform.window().ptr(self.staging)
    }
}

impl Device for EduSide {
    fn begin(&mut self, words: &[u64]) {
        let filled = words.iter().copied().chain(std::iter::repeat(NOTHING));
        let mut bytes: Vec<u8> = filled.take(HALF / 8).flat_map(u64::to_le_bytes).collect();
        bytes.extend(std::iter::repeat_n(NOTHING.to_le_bytes(), HALF / 8).flatten());
        // SAFETY: the staging page is this test's; devices access it atomically.
        unsafe { copy_in(bytes.as_ptr(), self.staging(), bytes.len()) };
        self.group.replace(&self.home).unwrap();
        self.edu.read(&*self.platform, STAGING, 0, EDU_BUFFER).unwrap();
    }

    fn write(&mut self, at: DmaAddr, word: usize) {
        self.edu.write(&*self.platform, at, 8 * word, 8).unwrap();
    }

    fn read(&mut self, at: DmaAddr) {
        self.edu.read(&*self.platform, at, HALF + 8 * self.reads, 8).unwrap();
        self.reads += 1;
    }

    fn end(&mut self) -> Vec<Option<u64>> {
        self.group.replace(&self.home).unwrap();
        self.edu.write(&*self.platform, STAGING, HALF, HALF).unwrap();
        let mut bytes = vec![0; 8 * std::mem::take(&mut self.reads)];
        // SAFETY: as in `begin`.
        unsafe { copy_out(self.staging(), bytes.as_mut_ptr(), bytes.len()) };
        let words = bytes.chunks_exact(8).map(|word| word.try_into().map_or(0, u64::from_le_bytes));
        // Of what was refused QEMU makes zeros, or nothing.
        words.map(|word| (word != 0 && word != NOTHING).then_some(word)).collect()
    }
}

fn sim() -> (SimMachine, Side<Engine>) {
    let disk = tempfile::NamedTempFile::new().unwrap();
    disk.as_file().set_len(512).unwrap();
    let machine = SimMachine::boot(backend_sim::Config::new(disk.path())).unwrap();
    let address = SimMachine::address(SimHardware::ENGINE);
    let (function, device) = machine.bind(address).unwrap();
    // The driver's claim goes; the function stays.
    drop(device);
    function.set_bus_master(true);
    let engine = Engine { registers: function.bar(0).unwrap(), words: Vec::new(), got: Vec::new() };
    let side = Side::new("sim", engine, machine.group(address).unwrap(), machine.platform().clone());
    (machine, side)
}

fn qemu(program: Program) -> (QemuMachine, Side<EduSide>) {
    const EDU: PciAddress = PciAddress::new(0, 0, 5, 0);
    let machine = QemuMachine::start(Config::q35().program(program).edu(EDU.id.device())).unwrap();
    let group = machine.group(EDU).unwrap();
    let platform: Arc<dyn Platform> = machine.platform().clone();
    let staging = platform.alloc(FrameRequest::ONE).unwrap();
    let home = group.alloc_unmanaged(PagingFlags::empty()).unwrap();
    // SAFETY: the staging page stays.
    let (_, mapped) = unsafe { home.map(STAGING, staging, PAGE, RW) };
    mapped.unwrap();
    let edu = Edu::new(machine.function(EDU).unwrap()).unwrap();
    let device = EduSide { edu, platform: platform.clone(), group: group.clone(), home, staging, reads: 0 };
    let side = Side::new("qemu", device, group, platform);
    (machine, side)
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |value| value.parse().unwrap())
}

#[test]
fn random_sequences_end_the_same_on_the_simulator_and_on_qemu() {
    let program = match Program::find(Emulator::X86_64) {
        Err(why @ ProgramError::NotFound(_)) if !Program::is_demanded() => {
            // Not by `eprintln`, which the test harness swallows when a test passes.
            let _ = writeln!(std::io::stderr(), "not run: agreement of the simulator and QEMU: {why}");
            return;
        }
        program => program.unwrap(),
    };
    let sequences = number("AGREEMENT_SEQUENCES", 1000);
    let mut random = Random(number("AGREEMENT_SEED", 0x2545_f491_4f6c_dd1d));
    let (sim_machine, mut sim) = sim();
    let (qemu_machine, mut qemu) = qemu(program);
    let (mut reached, mut refused) = (0_usize, 0_usize);
    for number in 0..sequences {
        let steps = random.sequence();
        let words: Vec<u64> = (0..STEPS).map(|_| random.next() | 1).collect();
        let seed = random.next();
        let (on_sim, on_qemu) = (run(&mut sim, &steps, &words, seed), run(&mut qemu, &steps, &words, seed));
        assert_eq!(on_sim.software, on_qemu.software, "sequence {number}: {steps:#x?}");
        assert_eq!(on_sim.read, on_qemu.read, "sequence {number}: {steps:#x?}");
        let differs = on_sim.memory.iter().zip(&on_qemu.memory).position(|(one, other)| one != other);
        assert_eq!(differs, None, "sequence {number}: the memory differs: {steps:#x?}");
        reached += on_sim.read.iter().flatten().count();
        refused += on_sim.read.iter().filter(|word| word.is_none()).count();
    }
    println!("{sequences} sequences: {reached} reads reached memory, {refused} were refused");
    // Both kinds are there, or nothing is shown.
    assert!(reached as u64 > sequences / 2 && refused as u64 > sequences / 2, "{reached} {refused}");
    qemu_machine.health().unwrap();
    drop((sim, qemu));
    drop((sim_machine, qemu_machine));
}

/// What came of a sequence.
struct Outcome {
    software: Vec<u64>,
    read: Vec<Option<u64>>,
    memory: Vec<u8>,
}

fn run<D: Device>(side: &mut Side<D>, steps: &[Step], words: &[u64], seed: u64) -> Outcome {
    // No word of it is zero, or what a refused read leaves.
    side.fill((0..).map(|index: u64| (index + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1));
    side.device.begin(words);
    let software = steps.iter().map(|step| side.step(step)).collect();
    let read = side.device.end();
    side.group.detach().unwrap();
    side.clear();
    assert!(!read.contains(&Some(NOTHING)), "{}", side.name);
    Outcome { software, read, memory: side.memory() }
}
