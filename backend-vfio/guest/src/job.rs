//! The main job's program, as it is built for a user.

use std::process::Command;

use sha2::{Digest, Sha256};

use crate::system::NVME;
use crate::{Failure, ensure, nvme};

/// Reads the disk, which holds pattern 2 by now, and says what it has read.
pub(crate) fn main_job() -> Result<(), Failure> {
    let address = NVME.to_string();
    let output =
        Command::new("/main-job").args(["--backend", "vfio", "--device", &address, "--json"]).output()?;
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure(output.status.success(), &format!("{}: {said}{errors}", output.status))?;
    let hash = Sha256::digest(nvme::contents(2)?);
    let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    ensure(said.contains(&format!("\"driver\":\"{hash}\"")), &format!("it has read something else: {said}"))?;
    ensure(said.contains("\"ok\":true"), &format!("something is wrong: {said}"))
}
