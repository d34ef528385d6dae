//! What needs a process of its own: to be nobody in particular, or to be killed.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitCode, Stdio};

use rustix::process::{Resource, Rlimit, setrlimit};

use crate::{Failure, ensure, limits, nvme};

pub(crate) const LOCKED_MEMORY: &str = "locked-memory";
const READ_FOR_EVER: &str = "read-for-ever";

/// Does what the name says.
pub(crate) fn run(name: &str) -> ExitCode {
    let result = match name {
        LOCKED_MEMORY => limits::locked_memory_alone(),
        READ_FOR_EVER => nvme::read_for_ever(),
        other => Err(format!("nothing is called {other}").into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Starts this program again, for one of these.
pub(crate) fn start(name: &str) -> Result<Child, Failure> {
    let mut command = Command::new("/init");
    if name == LOCKED_MEMORY {
        use std::os::unix::process::CommandExt;
        const NOBODY: u32 = 65534;
        command.uid(NOBODY).gid(NOBODY);
    }
    Ok(command.arg(name).stdout(Stdio::piped()).spawn()?)
}

/// Lets this process lock so many bytes at most. (It can lower its own limit, whoever it is.)
pub(crate) fn limit_locked_memory(locked: u64) -> Result<(), Failure> {
    Ok(setrlimit(Resource::Memlock, Rlimit { current: Some(locked), maximum: Some(locked) })?)
}

pub(crate) fn killed() -> Result<(), Failure> {
    let mut child = start(READ_FOR_EVER)?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().ok_or("no output")?).read_line(&mut line)?;
    let begun = line.trim() == "begun";
    child.kill()?;
    let status = child.wait()?;
    ensure(begun, &format!("it did not begin: {line}, {status}"))?;
    nvme::identify()
}
