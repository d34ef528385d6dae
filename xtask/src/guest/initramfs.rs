//! The guest's first files, in the archive that Linux unpacks at its start (cpio, format "newc").

use std::fmt::Write;
use std::path::{Path, PathBuf};

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// An archive with programs under their names, the first of them `init`, and modules under names that sort in the order of loading.
pub(crate) fn archive(programs: &[(&str, PathBuf)], modules: &[impl AsRef<Path>]) -> Result<Vec<u8>, String> {
    let mut archive = Archive::default();
    for folder in ["dev", "proc", "sys", "modules"] {
        archive.add(folder, FOLDER, (0, 0), &[]);
    }
    // Where the first program's output goes: nothing else makes it before that program starts.
    archive.add("dev/console", CHARACTER_DEVICE, (5, 1), &[]);
    for (name, program) in programs {
        archive.add(name, PROGRAM, (0, 0), &read(program)?);
    }
    for (index, module) in modules.iter().map(AsRef::as_ref).enumerate() {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        archive.add(&format!("modules/{index:02}-{name}"), FILE, (0, 0), &read(module)?);
    }
    archive.add("TRAILER!!!", 0, (0, 0), &[]);
    Ok(archive.bytes)
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, (major, minor): (u32, u32), contents: &[u8]) {
        self.entries += 1;
        let (len, name_len) = (contents.len() as u32, name.len() as u32 + 1);
        // inode, mode, user, group, links, time, length, device of the file system (two), device of the node (two),
        // length of the name with its zero, checksum.
        let fields = [self.entries, mode, 0, 0, 1, 0, len, 0, 0, major, minor, name_len, 0];
        let mut header = String::from("070701");
        for field in fields {
            // Writing to a String does not fail.
            let _ = write!(header, "{field:08x}");
        }
        self.bytes.extend(header.bytes());
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}
