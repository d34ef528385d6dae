//! Runs commands one after the other, shows which and how long, and counts.

use std::process::Command;
use std::time::Instant;

/// A series of commands, each of which must succeed.
#[derive(Default)]
pub(crate) struct Steps {
    passed: usize,
    failed: Vec<String>,
}

impl Steps {
    /// Runs one command; its output is shown as it comes.
    pub(crate) fn run(&mut self, what: &str, command: &mut Command) {
        println!("\n==> {what}");
        let start = Instant::now();
        let outcome = match command.status() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(status.to_string()),
            Err(error) => Err(error.to_string()),
        };
        self.count(what, start, outcome);
    }

    /// Runs a step that is a function.
    pub(crate) fn call(&mut self, what: &str, step: impl FnOnce() -> Result<(), String>) {
        println!("\n==> {what}");
        let start = Instant::now();
        let outcome = step();
        self.count(what, start, outcome);
    }

    fn count(&mut self, what: &str, start: Instant, outcome: Result<(), String>) {
        let seconds = start.elapsed().as_secs_f64();
        match outcome {
            Ok(()) => {
                println!("<== {what}: ok ({seconds:.1} s)");
                self.passed += 1;
            }
            Err(why) => {
                println!("<== {what}: FAILED ({seconds:.1} s): {why}");
                self.failed.push(what.into());
            }
        }
    }

    /// Says how it went, in a line of its own.
    pub(crate) fn finish(self) -> Result<(), String> {
        println!();
        for what in &self.failed {
            println!("failed: {what}");
        }
        println!("{} passed, {} failed", self.passed, self.failed.len());
        if self.failed.is_empty() { Ok(()) } else { Err(format!("failed: {}", self.failed.join(", "))) }
    }
}
