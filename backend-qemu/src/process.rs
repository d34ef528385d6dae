//! QEMU as a child of this process, which does not outlive it.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;

use crate::program::Program;
use crate::ram::unnamed;

/// A running QEMU. It ends when this is dropped, and when this process ends, however that ends.
#[derive(Debug)]
pub(crate) struct Process {
    /// Dropped first: that is what the thread waits for.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
    messages: File,
}

impl Process {
    /// Starts QEMU with sockets as its standard input and output, so that they need no names.
    pub(crate) fn start(
        program: &Program,
        arguments: Vec<OsString>,
        input: UnixStream,
        output: UnixStream,
    ) -> std::io::Result<Self> {
        let messages = unnamed("qemu-messages")?;
        let mut command = program.command();
        command.args(arguments);
        command.stdin(Stdio::from(OwnedFd::from(input)));
        command.stdout(Stdio::from(OwnedFd::from(output)));
        command.stderr(Stdio::from(messages.try_clone()?));
        let (stop, stopped) = mpsc::channel();
        let (started, outcome) = mpsc::channel();
        // A thread of its own: the signal comes when the thread that started the child ends, which a test's may do early.
        let thread = std::thread::Builder::new()
            .name("qemu".into())
            .spawn(move || keep(command, &started, &stopped))?;
        let gone = |_| Err(std::io::Error::other("the thread that starts QEMU has gone"));
        outcome.recv().unwrap_or_else(gone)?;
        Ok(Self { stop: Some(stop), thread: Some(thread), messages })
    }

    /// What QEMU has said on standard error.
    pub(crate) fn messages(&self) -> String {
        let mut said = Vec::new();
        let read = self.messages.try_clone().and_then(|mut file| {
            file.seek(SeekFrom::Start(0))?;
            file.read_to_end(&mut said)
        });
        match read {
            Ok(_) => String::from_utf8_lossy(&said).trim().to_owned(),
            Err(error) => format!("(its messages cannot be read: {error})"),
        }
    }
}

fn keep(mut command: Command, started: &Sender<std::io::Result<()>>, stopped: &Receiver<()>) {
    let spawned = command.spawn();
    // What the child has of sockets is not this process's.
    drop(command);
    match spawned {
        Ok(child) => {
            // Nobody listens when whoever asked has gone: then the next line returns at once.
            let _ = started.send(Ok(()));
            let _ = stopped.recv();
            end(child);
        }
        Err(error) => {
            let _ = started.send(Err(error));
        }
    }
}

fn end(mut child: Child) {
    // It may have ended by itself.
    let _ = child.kill();
    let _ = child.wait();
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A thread that has panicked has said so.
            let _ = thread.join();
        }
    }
}
