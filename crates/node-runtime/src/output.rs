//! What commands print.

use std::fmt::Display;
use std::io::{self, Write};

/// Writes to the standard output. That its reader has seen enough (`plan | head`) is no error.
///
/// # Errors
/// When it cannot be written for another reason.
pub fn print(text: &str) -> io::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Writes a line about what has been done. That it cannot be written is no reason to stop half-way.
pub fn tell(line: impl Display) {
    let _ = writeln!(io::stdout(), "{line}");
}
