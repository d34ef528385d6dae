//! PCI trees of a machine that QEMU emulates, each made from a number.

/// How deep buses with something on them go below a root bus.
const DEEPEST: usize = 4;
/// How many functions a machine gets at most.
const FUNCTIONS: usize = 28;
/// The second root bus.
const EXPANDER_BUS: u8 = 0x80;
const EXPANDER_SLOT: u8 = 0x1e;

/// A tree.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Tree {
    /// Values of QEMU's `-device`, in this order.
    pub(super) devices: Vec<String>,
    /// What the kernel's command line is to say.
    pub(super) parameters: String,
}

/// What is on a bus.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bus {
    /// The root bus: anything.
    Root,
    /// A root bus of its own (QEMU's expander bridge): bridges.
    Expander,
    /// The link of a port: what goes into a slot.
    Link,
    /// A switch's own bus: its downstream ports.
    Switch,
    /// Conventional PCI.
    Conventional,
}

/// A kind of function.
struct Model {
    /// As QEMU calls it, and options that it cannot do without.
    name: &'static str,
    /// The option with a number that no other bridge has.
    number: Option<&'static str>,
    /// For a bridge, what is behind it.
    behind: Option<Bus>,
}

const fn endpoint(name: &'static str) -> Model {
    Model { name, number: None, behind: None }
}

const fn bridge(name: &'static str, number: Option<&'static str>, behind: Bus) -> Model {
    Model { name, number, behind: Some(behind) }
}

/// With Access Control Services.
const ROOT_PORT: Model = bridge("pcie-root-port", Some("chassis"), Bus::Link);
const INTEL_ROOT_PORT: Model = bridge("ioh3420", Some("chassis"), Bus::Link);
const SWITCH: Model = bridge("x3130-upstream", None, Bus::Switch);
/// Without Access Control Services.
const DOWNSTREAM_PORT: Model = bridge("xio3130-downstream", Some("chassis"), Bus::Link);
const PCIE_TO_PCI: Model = bridge("pcie-pci-bridge", None, Bus::Conventional);
/// Conventional by its looks. Linux knows that it takes names over like a bridge from PCI Express where it is below one.
const INTEL_BRIDGE: Model = bridge("i82801b11-bridge", None, Bus::Conventional);
const PCI_BRIDGE: Model = bridge("pci-bridge", Some("chassis_nr"), Bus::Conventional);
const NVME: Model = endpoint("nvme,serial=groups");
const XHCI: Model = endpoint("qemu-xhci");
const RNG: Model = endpoint("virtio-rng-pci");
/// Intel's: isolated in the root complex.
const E1000E: Model = endpoint("e1000e,romfile=");
/// Intel's: its functions are isolated, as Linux knows.
const IGB: Model = endpoint("igb,romfile=");
const EDU: Model = endpoint("edu");
const OHCI: Model = endpoint("pci-ohci");
const TEST_DEVICE: Model = endpoint("pci-testdev");

impl Bus {
    /// What it takes; what is there twice is taken twice as often.
    fn models(self) -> &'static [Model] {
        match self {
            Self::Root => &[
                ROOT_PORT,
                ROOT_PORT,
                ROOT_PORT,
                INTEL_ROOT_PORT,
                INTEL_ROOT_PORT,
                PCIE_TO_PCI,
                INTEL_BRIDGE,
                NVME,
                XHCI,
                E1000E,
                E1000E,
                EDU,
            ],
            Self::Expander => &[ROOT_PORT, INTEL_ROOT_PORT, PCIE_TO_PCI, INTEL_BRIDGE],
            Self::Link => {
                &[SWITCH, SWITCH, PCIE_TO_PCI, INTEL_BRIDGE, NVME, XHCI, RNG, E1000E, IGB, IGB, EDU]
            }
            Self::Switch => &[DOWNSTREAM_PORT],
            Self::Conventional => &[PCI_BRIDGE, EDU, EDU, OHCI, TEST_DEVICE],
        }
    }
}

impl Tree {
    /// The tree of a number: the same one each time.
    pub(super) fn generate(seed: u64) -> Self {
        let mut random = Random(seed);
        // On some machines no port redirects, on others most do.
        let redirects = if random.one_in(3) { 1 } else { 6 };
        let mut maker = Maker {
            random,
            redirects,
            devices: Vec::new(),
            without_redirect: Vec::new(),
            bridges: 0,
            left: FUNCTIONS,
        };
        if maker.random.one_in(3) {
            maker.devices.push(format!(
                "pxb-pcie,id=expander,bus_nr={EXPANDER_BUS},bus=pcie.0,addr={EXPANDER_SLOT:x}.0"
            ));
            maker.fill("expander", Bus::Expander, 1);
        }
        maker.fill("pcie.0", Bus::Root, 0);
        let ports = maker.without_redirect.join(";");
        let parameters =
            if ports.is_empty() { String::new() } else { format!("pci=disable_acs_redir={ports}") };
        Self { devices: maker.devices, parameters }
    }
}

struct Maker {
    random: Random,
    /// Of so many ports one does not redirect.
    redirects: usize,
    devices: Vec<String>,
    /// Ports that the kernel is not to switch redirection on for.
    without_redirect: Vec<String>,
    /// How many bridges there are by now.
    bridges: u8,
    /// How many functions there may be yet.
    left: usize,
}

impl Maker {
    fn fill(&mut self, bus: &str, kind: Bus, depth: usize) {
        let (first, slots) = match kind {
            // The chipset is in the first and in the last; so is an AMD IOMMU.
            Bus::Root => (2, 3 + self.random.below(4)),
            Bus::Expander => (0, 1 + self.random.below(2)),
            Bus::Link => (0, 1),
            Bus::Switch => (0, 1 + self.random.below(3)),
            // Hot-plug controllers of bridges leave out the first.
            Bus::Conventional => (1, 1 + self.random.below(3)),
        };
        let mut slot = first;
        for _ in 0..slots {
            self.slot(bus, kind, slot, depth);
            slot += 1 + u8::from(self.random.one_in(3));
        }
    }

    fn slot(&mut self, bus: &str, kind: Bus, slot: u8, depth: usize) {
        let functions = if self.random.one_in(4) { 2 + self.random.below(2) } else { 1 };
        let models = kind.models();
        let (alike, first) = (self.random.one_in(2), self.random.below(models.len()));
        for function in 0..functions {
            if self.left == 0 {
                return;
            }
            self.left -= 1;
            // One that is alone may say otherwise, and one that is not the first need not say it.
            let says_several = match function {
                0 => functions > 1 || self.random.one_in(8),
                _ => self.random.one_in(2),
            };
            let other = self.random.below(models.len());
            let model = &models[if function == 0 || alike { first } else { other }];
            self.function(model, bus, &format!("{slot:x}.{function}"), says_several, depth);
        }
    }

    fn function(&mut self, model: &Model, bus: &str, address: &str, says_several: bool, depth: usize) {
        let mut device = format!("{},bus={bus},addr={address}", model.name);
        if says_several {
            device.push_str(",multifunction=on");
        }
        let Some(behind) = model.behind else { return self.devices.push(device) };
        self.bridges += 1;
        let number = self.bridges;
        device.push_str(&format!(",id=bridge{number}"));
        if let Some(option) = model.number {
            device.push_str(&format!(",{option}={number}"));
        }
        self.devices.push(device);
        // Only what is on bus 0 has an address that is known before firmware has numbered the buses.
        if behind == Bus::Link && bus == "pcie.0" && self.random.one_in(self.redirects) {
            self.without_redirect.push(format!("0000:00:{address:0>4}"));
        }
        if depth < DEEPEST && !self.random.one_in(8) {
            self.fill(&format!("bridge{number}"), behind, depth + 1);
        }
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::{FUNCTIONS, Tree};

    const SEEDS: u64 = 2000;

    fn option<'a>(device: &'a str, name: &str) -> Option<&'a str> {
        device.split(',').find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
    }

    #[test]
    fn a_seed_is_one_tree() {
        let trees: Vec<Tree> = (0..SEEDS).map(Tree::generate).collect();
        assert!((0..SEEDS).zip(&trees).all(|(seed, tree)| Tree::generate(seed) == *tree));
        let different: BTreeSet<_> = trees.iter().map(|tree| &tree.devices).collect();
        assert_eq!(different.len(), trees.len());
    }

    #[test]
    fn a_bus_is_there_before_what_is_on_it() {
        for seed in 0..SEEDS {
            let mut buses = BTreeSet::from(["pcie.0".to_owned()]);
            for device in Tree::generate(seed).devices {
                assert!(buses.contains(option(&device, "bus").unwrap()), "{seed}: {device}");
                if let Some(id) = option(&device, "id") {
                    assert!(buses.insert(id.into()), "{seed}: {device}");
                }
            }
        }
    }

    #[test]
    fn a_place_is_taken_once_and_a_slot_of_several_says_so_in_its_first_function() {
        for seed in 0..SEEDS {
            let devices = Tree::generate(seed).devices;
            let mut places = BTreeMap::new();
            for device in &devices {
                let place = (option(device, "bus").unwrap(), option(device, "addr").unwrap());
                assert!(places.insert(place, device).is_none(), "{seed}: {device}");
            }
            for &(bus, address) in places.keys() {
                let (slot, function) = address.split_once('.').unwrap();
                if function != "0" {
                    let first = format!("{slot}.0");
                    let first = places.get(&(bus, first.as_str())).unwrap();
                    assert_eq!(option(first, "multifunction"), Some("on"), "{seed}: {first}");
                }
                let slot = u8::from_str_radix(slot, 16).unwrap();
                assert!(bus != "pcie.0" || (2..0x1f).contains(&slot), "{seed}: the chipset's slot {slot:x}");
            }
        }
    }

    #[test]
    fn numbers_of_bridges_are_unique() {
        for seed in 0..SEEDS {
            let devices = Tree::generate(seed).devices;
            for name in ["chassis", "chassis_nr"] {
                let numbers: Vec<&str> = devices.iter().filter_map(|device| option(device, name)).collect();
                let different: BTreeSet<_> = numbers.iter().collect();
                assert_eq!(different.len(), numbers.len(), "{seed}");
                assert!(!different.contains(&"0"), "{seed}");
            }
        }
    }

    #[test]
    fn the_kernel_is_told_of_ports_that_are_there() {
        let mut told = 0;
        for seed in 0..SEEDS {
            let tree = Tree::generate(seed);
            let Some(ports) = tree.parameters.strip_prefix("pci=disable_acs_redir=") else {
                assert_eq!(tree.parameters, "", "{seed}");
                continue;
            };
            for port in ports.split(';') {
                let place = port.strip_prefix("0000:00:").unwrap();
                let is_it = |device: &&String| {
                    device.contains("chassis=")
                        && option(device, "bus") == Some("pcie.0")
                        && format!("{:0>4}", option(device, "addr").unwrap()) == place
                };
                assert_eq!(tree.devices.iter().filter(is_it).count(), 1, "{seed}: {port}");
                told += 1;
            }
        }
        assert!(told > 100, "{told}");
    }

    #[test]
    fn trees_are_neither_bare_nor_without_end() {
        let sizes: Vec<usize> = (0..SEEDS).map(|seed| Tree::generate(seed).devices.len()).collect();
        // The expander is no function of its budget.
        assert!(sizes.iter().all(|&size| (3..=FUNCTIONS + 1).contains(&size)));
        assert!(sizes.iter().sum::<usize>() / sizes.len() > 10);
    }
}
