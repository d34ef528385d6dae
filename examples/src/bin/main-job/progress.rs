//! How far a long transfer is, on a terminal.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar of `bytes` on standard error; nothing when that is no terminal.
pub(crate) fn bar(what: &'static str, bytes: u64) -> ProgressBar {
    let bar = ProgressBar::new(bytes);
    if std::io::stderr().is_terminal() {
        let style = ProgressStyle::with_template("{msg:10} {bar:40} {bytes}/{total_bytes} {bytes_per_sec}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message(what);
    } else {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    bar
}
