//! What a guest says of its PCI tree, and a copy of its sysfs made of that.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::debian::make;

const CLASS: usize = 0x0a;
const IOMMU: [u8; 2] = [0x06, 0x08];

/// A function.
#[derive(Debug)]
struct Function {
    address: String,
    config: Vec<u8>,
    /// The number of its group.
    group: Option<u32>,
}

/// All functions that a guest has told of.
#[derive(Debug, Default)]
pub(super) struct Dump {
    functions: Vec<Function>,
    /// Set when all have been told of.
    complete: bool,
}

impl Dump {
    /// Reads a line of the guest's output. What else the console shows is passed over.
    pub(super) fn line(&mut self, line: &str) -> Result<(), String> {
        let Some(line) = line.strip_prefix("pci ") else { return Ok(()) };
        let bad = || format!("the guest said: pci {line}");
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["function", address, len, group] => {
                let group = if group == "-" { None } else { Some(group.parse().map_err(|_| bad())?) };
                let config = vec![0; len.parse().map_err(|_| bad())?];
                self.functions.push(Function { address: address.into(), config, group });
            }
            ["bytes", offset, digits] => {
                let config = self.functions.last_mut().map(|function| &mut function.config[..]);
                let offset = usize::from_str_radix(offset, 16).map_err(|_| bad())?;
                let place = config.and_then(|config| config.get_mut(offset..offset + digits.len() / 2));
                for (index, byte) in place.ok_or_else(bad)?.iter_mut().enumerate() {
                    let pair = digits.get(2 * index..2 * index + 2).ok_or_else(bad)?;
                    *byte = u8::from_str_radix(pair, 16).map_err(|_| bad())?;
                }
            }
            ["functions", count] => self.complete = count.parse() == Ok(self.functions.len()),
            _ => return Err(bad()),
        }
        Ok(())
    }

    /// How many functions there are.
    pub(super) fn len(&self) -> usize {
        self.functions.len()
    }

    /// The groups that the guest's kernel has formed.
    ///
    /// # Errors
    /// When it has not told of all functions, or of some that are behind no IOMMU: then there is nothing to compare.
    pub(super) fn groups(&self) -> Result<BTreeSet<Vec<String>>, String> {
        if !self.complete {
            return Err(format!("the guest told of {} functions and was not done", self.functions.len()));
        }
        let mut groups: BTreeMap<u32, Vec<String>> = BTreeMap::new();
        for function in &self.functions {
            match function.group {
                Some(group) => groups.entry(group).or_default().push(function.address.clone()),
                // An AMD IOMMU is a function itself.
                None if function.config.get(CLASS..CLASS + 2) == Some(&IOMMU) => {}
                None => return Err(format!("{} is behind no IOMMU", function.address)),
            }
        }
        Ok(groups.into_values().collect())
    }

    /// Writes what of the guest's sysfs says all this.
    pub(super) fn write(&self, sysfs: &Path) -> Result<(), String> {
        let error = |error: std::io::Error| format!("{}: {error}", sysfs.display());
        for function in &self.functions {
            let folder = sysfs.join("bus/pci/devices").join(&function.address);
            make(&folder)?;
            fs::write(folder.join("config"), &function.config).map_err(error)?;
            if let Some(group) = function.group {
                let link = format!("../../../../kernel/iommu_groups/{group}");
                symlink(link, folder.join("iommu_group")).map_err(error)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::Dump;

    const HOST: [&str; 2] = ["pci function 0000:00:00.0 256 0", "pci bytes 000 86801122"];

    fn read(lines: &[&str]) -> Result<Dump, String> {
        let mut dump = Dump::default();
        lines.iter().try_for_each(|line| dump.line(line)).map(|()| dump)
    }

    #[test]
    fn lines_become_functions_and_groups() {
        let more = [
            "a word of the kernel",
            "pci function 0000:00:01.0 256 -",
            "pci bytes 008 00000608",
            "pci function 0000:00:02.0 4096 0",
            "pci bytes ffe 1234",
            "pci functions 3",
        ];
        let dump = read(&[&HOST[..], &more].concat()).unwrap();
        assert_eq!(dump.functions[0].config[..5], [0x86, 0x80, 0x11, 0x22, 0]);
        assert_eq!(dump.functions[2].config[0xffe..], [0x12, 0x34]);
        let group = ["0000:00:00.0", "0000:00:02.0"].map(String::from).to_vec();
        assert_eq!(dump.groups(), Ok(BTreeSet::from([group])));
    }

    #[test]
    fn what_is_missing_is_no_result() {
        assert!(read(&HOST).unwrap().groups().is_err());
        assert!(read(&[&HOST[..], &["pci functions 2"]].concat()).unwrap().groups().is_err());
        // A network card without a group.
        let alone = ["pci function 0000:00:02.0 256 -", "pci bytes 008 00000002", "pci functions 2"];
        assert_eq!(
            read(&[&HOST[..], &alone].concat()).unwrap().groups(),
            Err("0000:00:02.0 is behind no IOMMU".into())
        );
    }

    #[test]
    fn broken_lines_are_refused() {
        for line in
            ["pci bytes 100 00", "pci bytes 000 0g", "pci bytes 000 123é", "pci function x y z", "pci what"]
        {
            assert!(read(&[HOST[0], line]).is_err(), "{line}");
        }
        assert!(read(&["pci bytes 000 00"]).is_err());
    }
}
