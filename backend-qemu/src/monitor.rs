//! QEMU's monitor, for what no access of a processor tells: which interrupts have come to a processor that is halted.

use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use platform::sync::Mutex;

use crate::qtest::QtestError;

/// How long QEMU may take for an answer.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A connection by QMP, QEMU's protocol of JSON objects, one a line.
pub(crate) struct Monitor(Mutex<State>);

struct State {
    stream: BufReader<UnixStream>,
    greeted: bool,
}

impl Monitor {
    /// A connection over a socket whose other end QEMU has or will have.
    pub(crate) fn new(stream: UnixStream) -> std::io::Result<Self> {
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        Ok(Self(Mutex::new(State { stream: BufReader::new(stream), greeted: false })))
    }

    /// The vectors that have been raised on a processor and that it has not taken, lowest first: all since the start, since a
    /// halted processor takes none. One that is raised again counts once.
    pub(crate) fn raised_interrupts(&self, processor: u32) -> Result<Vec<u8>, QtestError> {
        let command = format!("info lapic {processor}");
        let failed = |error: std::io::Error| QtestError(format!("{command}: {error}"));
        let mut state = self.0.lock();
        if !state.greeted {
            state.execute(r#"{"execute":"qmp_capabilities"}"#).map_err(failed)?;
            state.greeted = true;
        }
        let order =
            format!(r#"{{"execute":"human-monitor-command","arguments":{{"command-line":"{command}"}}}}"#);
        let answer = state.execute(&order).map_err(failed)?;
        // Lines as JSON has them; of the request register: `IRR\t 65 98(level)`, or `IRR\t (none)`.
        let lines = answer.split(r"\r\n").flat_map(|line| line.split(r"\n"));
        let pending = lines.filter_map(|line| line.strip_prefix("IRR")).next();
        let pending = pending.ok_or_else(|| QtestError(format!("{command}: {answer}")))?;
        let number = |word: &str| word.trim_start_matches(r"\t").split('(').next()?.parse().ok();
        Ok(pending.split_whitespace().filter_map(number).collect())
    }
}

impl State {
    /// Sends a command and returns the line with its answer.
    fn execute(&mut self, command: &str) -> std::io::Result<String> {
        writeln!(self.stream.get_mut(), "{command}")?;
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            // The greeting, and events, come between.
            if line.starts_with(r#"{"return""#) {
                return Ok(line);
            }
            if line.starts_with(r#"{"error""#) {
                return Err(std::io::Error::other(line));
            }
        }
    }
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Monitor")
    }
}
