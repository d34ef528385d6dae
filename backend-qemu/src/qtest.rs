//! The qtest protocol: QEMU does a processor's accesses for us, one line each.

use std::fmt::{self, Write as _};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::time::Duration;

use platform::sync::Mutex;

/// How long QEMU may take for one access. It does what an access asks of a device before it answers.
const TIMEOUT: Duration = Duration::from_secs(20);

/// The connection to QEMU has failed; nothing answers any more.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("QEMU does not answer: {0}")]
pub struct QtestError(pub String);

/// The width of an access.
#[derive(Clone, Copy)]
pub(crate) enum Width {
    Byte,
    Word,
    Long,
    Quad,
}

impl Width {
    const fn letter(self) -> char {
        match self {
            Self::Byte => 'b',
            Self::Word => 'w',
            Self::Long => 'l',
            Self::Quad => 'q',
        }
    }
}

/// A connection. Once it has failed every read is all ones, as on a bus where nobody answers, and [`Qtest::error`] says why.
pub(crate) struct Qtest {
    connection: Mutex<Connection>,
    failed: OnceLock<QtestError>,
}

struct Connection {
    stream: BufReader<UnixStream>,
    line: String,
}

impl Qtest {
    /// A connection over a socket whose other end QEMU has or will have.
    pub(crate) fn new(stream: UnixStream) -> std::io::Result<Self> {
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        let connection = Connection { stream: BufReader::new(stream), line: String::new() };
        Ok(Self { connection: Mutex::new(connection), failed: OnceLock::new() })
    }

    /// Why the connection has failed, if it has.
    pub(crate) fn error(&self) -> Result<(), QtestError> {
        self.failed.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// Waits until QEMU answers: then the machine is there.
    pub(crate) fn ping(&self) -> Result<(), QtestError> {
        self.command(format_args!("endianness"));
        self.error()
    }

    pub(crate) fn read(&self, width: Width, address: u64) -> u64 {
        self.command(format_args!("read{} {address:#x}", width.letter())).unwrap_or(u64::MAX)
    }

    pub(crate) fn write(&self, width: Width, address: u64, value: u64) {
        self.command(format_args!("write{} {address:#x} {value:#x}", width.letter()));
    }

    /// Writes 32 bits to a port.
    pub(crate) fn out32(&self, port: u16, value: u32) {
        self.command(format_args!("outl {port:#x} {value:#x}"));
    }

    /// The value in the answer, if there is one.
    fn command(&self, command: fmt::Arguments<'_>) -> Option<u64> {
        if self.failed.get().is_some() {
            return None;
        }
        // The lock orders the commands of all threads; QEMU answers in order.
        match self.connection.lock().exchange(command) {
            Ok(value) => value,
            Err(error) => {
                let _ = self.failed.set(QtestError(format!("{command}: {error}")));
                None
            }
        }
    }
}

impl Connection {
    fn exchange(&mut self, command: fmt::Arguments<'_>) -> std::io::Result<Option<u64>> {
        self.line.clear();
        writeln!(self.line, "{command}").map_err(std::io::Error::other)?;
        self.stream.get_mut().write_all(self.line.as_bytes())?;
        loop {
            self.line.clear();
            if self.stream.read_line(&mut self.line)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            let line = self.line.trim_end();
            // Interrupt lines, which come whenever they like.
            if line.starts_with("IRQ ") {
                continue;
            }
            let Some(answer) = line.strip_prefix("OK") else {
                return Err(std::io::Error::other(line.to_owned()));
            };
            let hex = answer.trim().strip_prefix("0x");
            return Ok(hex.and_then(|digits| u64::from_str_radix(digits, 16).ok()));
        }
    }
}

impl fmt::Debug for Qtest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.failed.get() {
            None => f.write_str("Qtest"),
            Some(error) => write!(f, "Qtest({error})"),
        }
    }
}
